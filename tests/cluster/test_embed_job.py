"""Embedding exactly once: by any number of actors, killed anywhere, again only where needed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cluster.catalog import Catalog
from cluster.context import Context
from cluster.embed_job import EmbedConfig, embed
from cluster.scan_job import ScanConfig, scan
from cluster.shard_job import ErrorBudgetError
from cluster.where import CHECKOUT, Where
from cluster.workspace import Workspace
from index.embeddings import EmbeddingStore
from index.folder import Folder
from index.lock import sole_writer

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

CONFIG = EmbedConfig(corpus="digits", encoder="tiny", shard_rows=8)


@pytest.fixture
def context(tmp_path: Path, pictures: Any, make_encoder: Any) -> Context:
    context = Context(Workspace.at(tmp_path / "workspace"), console=Console(file=io.StringIO()))
    scan(ScanConfig(source=str(pictures(30, size=24)), corpus="digits"), context)
    make_encoder(context.workspace)
    return context


def store_of(context: Context, name: str = "digits-tiny") -> EmbeddingStore:
    return EmbeddingStore.open(context.workspace.folder("embeddings", name))


def contents(store: EmbeddingStore) -> dict[int, bytes]:
    return {
        int(picture_id): vector.tobytes()
        for ids, vectors in store.iter_stored()
        for picture_id, vector in zip(ids, vectors, strict=True)
    }


def shard_times(folder: Folder) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.local_path("shards").iterdir()}


def test_two_actors_write_what_one_does_and_a_re_run_does_nothing(
    context: Context, tmp_path: Path, local_ray: Any
) -> None:
    profiles = tmp_path / "where.yaml"
    profiles.write_text(
        "metadata: {lookalike: {profiles: {two: {embed_actors: 2, cpus_per_actor: 1}}}}"
    )
    one = embed(CONFIG, context)
    assert one["pictures"] == {"ok": 30}
    two_actors = Context(
        context.workspace, Where(profile="two", ray_config=profiles), console=context.console
    )
    two = embed(EmbedConfig(corpus="digits", encoder="tiny", shard_rows=8, name="two"), two_actors)
    assert contents(store_of(context)) == contents(store_of(context, "two"))
    assert two["embeddings_id"] == one["embeddings_id"]
    before = shard_times(store_of(context).folder)
    assert embed(CONFIG, context) == one
    assert shard_times(store_of(context).folder) == before


def test_a_grown_corpus_redoes_its_last_shard_and_who_reads_the_old_set_still_can(
    context: Context, local_ray: Any
) -> None:
    embed(CONFIG, context)
    reader = store_of(context)
    before, read_before = shard_times(reader.folder), contents(reader)
    folder = Path(
        Catalog.open(context.workspace.folder("corpora", "digits")).door["config"]["folder"]
    )
    (folder / "new.png").write_bytes(next(folder.rglob("*.png")).read_bytes())
    scan(ScanConfig(source=str(folder), corpus="digits"), context)
    assert embed(CONFIG, context)["pictures"] == {"ok": 31}
    after = shard_times(reader.folder)
    kept = {name for name in before if name[:5] in {"00000", "00001", "00002"}}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert contents(reader) == read_before
    assert contents(store_of(context)).items() > read_before.items()
    previous = store_of(context).door
    embed(EmbedConfig(corpus="digits", encoder="tiny", shard_rows=16), context)
    data = {name for name in shard_times(reader.folder) if not name.endswith(".json")}
    doors = [previous, store_of(context).door]
    assert data == {Path(name).name for door in doors for name in door["files"]}


def test_a_flipped_bit_is_mended_by_running_the_command_again(
    context: Context, local_ray: Any
) -> None:
    first = embed(CONFIG, context)
    store = store_of(context)
    damaged = store.folder.local_path(store.door["shards"][1]["vectors"])
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert embed(CONFIG, context)["embeddings_id"] == first["embeddings_id"]
    assert contents(store_of(context)) == contents(store)


def test_bad_pictures_are_named_and_too_many_stop_the_job(context: Context, local_ray: Any) -> None:
    folder = Path(
        Catalog.open(context.workspace.folder("corpora", "digits")).door["config"]["folder"]
    )
    broken = sorted(folder.rglob("*.png"))[:2]
    for path in broken:
        path.write_bytes(path.read_bytes()[:-40])
    scan(ScanConfig(source=str(folder), corpus="digits"), context)
    report = embed(CONFIG, context)
    assert report["pictures"] == {"ok": 28, "unreadable": 2}
    assert report["bad_pictures"] == [
        {"file": str(path), "status": "unreadable"} for path in broken
    ]
    strict = EmbedConfig(corpus="digits", encoder="tiny", shard_rows=8, error_budget=0.05)
    with pytest.raises(ErrorBudgetError, match="2 of 30 pictures failed"):
        embed(strict, context)


def test_a_set_is_not_replaced_by_one_of_another_layer_encoder_or_corpus(
    context: Context, make_encoder: Any, local_ray: Any
) -> None:
    embed(CONFIG, context)
    make_encoder(context.workspace, "other", seed=1)
    for other, what in (
        (replace(CONFIG, layer="projector"), "layer 'backbone', not 'projector'"),
        (replace(CONFIG, encoder="other", name="digits-tiny"), "encoder 'tiny', not 'other'"),
    ):
        with pytest.raises(ValueError, match=what):
            embed(other, context)
    with (
        sole_writer(context.workspace.folder("embeddings", "digits-tiny"), "embedding"),
        pytest.raises(ValueError, match="another process is embedding"),
    ):
        embed(CONFIG, context)


@pytest.mark.parametrize(
    "setting", [{"shard_rows": 0}, {"error_budget": 1.5}, {"thumbnail_edge": 8}]
)
def test_settings_out_of_range_say_what_is_allowed(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))} .*has to be"):
        EmbedConfig(corpus="digits", encoder="tiny", **setting)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_vectors_of_an_unharmed_run(
    context: Context, pictures: Any
) -> None:
    folder = pictures(200, size=24, formats=("png",))
    scan(ScanConfig(source=str(folder), corpus="digits"), context)

    def command(name: str) -> list[str]:
        line = f"embed --corpus digits --encoder tiny --shard-rows 2 --name {name} --json"
        location = ["--workspace", context.workspace.location]
        return [sys.executable, "-m", "cluster", *line.split(), *location]

    started_s = time.monotonic()
    whole = subprocess.run(command("whole"), cwd=CHECKOUT, capture_output=True, check=True)
    expected = json.loads(whole.stdout)["embeddings_id"]
    took_s = time.monotonic() - started_s
    moments = np.random.default_rng(0).uniform(0.3, 0.95, 2) * took_s
    for moment in moments:
        with subprocess.Popen(
            command("killed"),
            cwd=CHECKOUT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as driver:
            time.sleep(moment)
            os.killpg(driver.pid, signal.SIGKILL)
    ended = subprocess.run(command("killed"), cwd=CHECKOUT, capture_output=True, check=True)
    assert json.loads(ended.stdout)["embeddings_id"] == expected
    store = store_of(context, "killed")
    assert contents(store) == contents(store_of(context, "whole"))
    left = set(store.folder.names()) | {f"shards/{n}" for n in (store.folder / "shards").names()}
    records = {f"shards/{shard['name']}.json" for shard in store.door["shards"]}
    assert left == {".lock", "embeddings.json", "shards"} | records | set(store.door["files"])
