"""A workspace in a bucket, of S3's and of Google's interface: what a disk gets, to the bit."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import fs as pafs
from rich.console import Console

from cluster.context import Context
from cluster.embed_job import EmbedConfig, embed
from cluster.picture_uri import Place
from cluster.pretrain_job import PretrainJobConfig, pretrain
from cluster.runlog import read_run
from cluster.scan_job import ScanConfig, scan
from cluster.workspace import Workspace
from encoders.recipes import simclr_small, tiny
from index.embeddings import EmbeddingStore

TRAINING = PretrainJobConfig(
    corpus="digits", name="mine", training=replace(tiny(simclr_small()), epochs=2), log_every=1
)


def whole_way(location: str, source: Path) -> tuple[Workspace, Any]:
    """Scan, train and embed; returns the vectors as they are read from the workspace."""
    context = Context(Workspace.at(location), console=Console(file=io.StringIO()))
    scan(ScanConfig(source=str(source), corpus="digits", labels="folder"), context)
    pretrain(replace(TRAINING, checkpoint_every=2), context)
    embed(EmbedConfig(corpus="digits", encoder="mine", shard_rows=10), context)
    store = EmbeddingStore.open(context.workspace.folder("embeddings", "digits-mine"))
    assert all(store.thumbnail(picture) for ids in store.iter_ids() for picture in ids.tolist())
    return context.workspace, np.concatenate([vectors for _, vectors in store.iter_batches()])


def files_of(workspace: Workspace, kind: str) -> dict[str, Any]:
    """The files of a kind's artefacts, and when each was written."""
    root = workspace.root / kind
    found = root.fs.get_file_info(pafs.FileSelector(root.path, recursive=True))
    return {info.path: info.mtime_ns for info in found if info.is_file}


def test_a_bucket_holds_what_a_disk_holds_and_is_gone_on_with(
    bucket: Place,
    pictures: Any,
    tmp_path: Path,
    train_here: Any,
    shards_here: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train_here(monkeypatch)
    source = pictures(24, size=24, formats=["png"])
    _, on_disk = whole_way(str(tmp_path / "disk"), source)
    location = bucket.uri("pictures/a/workspace")
    workspace, in_bucket = whole_way(location, source)
    np.testing.assert_array_equal(in_bucket, on_disk)
    assert workspace.names("embeddings") == ["digits-mine"]
    assert str(workspace.root) == f"{bucket.base.partition(':')[0]}://pictures/a/workspace"
    attempts = read_run(workspace.folder("runs", "mine"))["attempts"]
    before = files_of(workspace, "embeddings")
    assert len(before) > 3
    whole_way(location, source)
    assert files_of(workspace, "embeddings") == before, "nothing was new"
    assert read_run(workspace.folder("runs", "mine"))["attempts"] == attempts
