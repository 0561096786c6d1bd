"""A second job that comes to its end while a first one is under way."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cluster.catalog import Catalog
from cluster.context import Context
from cluster.embed_job import EmbedConfig, embed
from cluster.picture_uri import Place
from cluster.pixels_job import build_pixels
from cluster.scan_job import ScanConfig, scan
from cluster.shard_job import ShardJob
from cluster.workspace import Workspace
from encoders.preprocess import PreprocessConfig
from index import folder as folders
from index.artifact import CorruptArtifactError, open_door, publish
from index.embeddings import EmbeddingStore
from index.folder import Folder
from index.lock import sole_writer

CONFIG = EmbedConfig(corpus="digits", encoder="tiny", shard_rows=4, name="set")
Meanwhile = Callable[[Callable[[], object]], None]


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Meanwhile:
    """Has something happen between the driver's plan and its workers, once."""

    def plan(happens: Callable[[], object]) -> None:
        run = ShardJob.run

        def run_late(job: ShardJob, context: Context) -> Any:
            monkeypatch.setattr(ShardJob, "run", run)
            happens()
            return run(job, context)

        monkeypatch.setattr(ShardJob, "run", run_late)

    return plan


def prepared(location: str, pictures: Any, make_encoder: Any) -> Context:
    context = Context(Workspace.at(location), console=Console(file=io.StringIO()))
    scan(ScanConfig(source=str(pictures(10, size=24)), corpus="digits"), context)
    make_encoder(context.workspace)
    return context


@pytest.fixture
def here(tmp_path: Any, pictures: Any, make_encoder: Any, shards_here: str) -> Context:
    return prepared(str(tmp_path / "workspace"), pictures, make_encoder)


@pytest.fixture
def there(
    bucket: Place, pictures: Any, make_encoder: Any, shards_here: str, request: Any
) -> Context:
    location = bucket.uri(f"pictures/{request.node.originalname}/workspace")
    return prepared(location, pictures, make_encoder)


def vectors(context: Context, name: str) -> np.ndarray:
    store = EmbeddingStore.open(context.workspace.folder("embeddings", name))
    return np.concatenate([vectors for _, vectors in store.iter_batches()])


def test_workers_embed_with_the_encoder_that_the_driver_saw(
    here: Context, make_encoder: Any, meanwhile: Meanwhile
) -> None:
    before = embed(replace(CONFIG, name="before"), here)
    meanwhile(lambda: make_encoder(here.workspace, seed=1))
    done = embed(CONFIG, here)
    assert done["encoder_id"] == before["encoder_id"]
    np.testing.assert_array_equal(vectors(here, "set"), vectors(here, "before"))


def test_workers_refuse_another_encoder_where_the_driver_s_is_no_more(
    here: Context, make_encoder: Any, meanwhile: Meanwhile
) -> None:
    meanwhile(lambda: [make_encoder(here.workspace, seed=seed) for seed in (1, 2)])
    with pytest.raises(ValueError, match=r"encoder 'tiny': is \w+ now and was \w+ when this job"):
        embed(CONFIG, here)


def test_a_set_that_another_job_published_meanwhile_is_not_replaced(
    there: Context, make_encoder: Any, meanwhile: Meanwhile
) -> None:
    make_encoder(there.workspace, "other", seed=1)
    meanwhile(lambda: embed(replace(CONFIG, encoder="other"), there))
    with pytest.raises(ValueError, match="another job published this set"):
        embed(CONFIG, there)
    folder = there.workspace.folder("embeddings", "set")
    assert open_door(folder, "embeddings", verify="full")["parents"]["encoder"] == "other"
    with pytest.raises(ValueError, match="was made with encoder 'other'"):
        embed(CONFIG, there)


def test_two_that_embed_the_same_both_end_and_delete_nothing_of_each_other(
    there: Context, meanwhile: Meanwhile
) -> None:
    young = there.workspace.folder("embeddings", "set") / "shards"
    meanwhile(
        lambda: [young.write_atomic("00009-in-the-works.parquet", b"1"), embed(CONFIG, there)]
    )
    assert embed(CONFIG, there)["pictures"] == {"ok": 10}
    assert young.exists("00009-in-the-works.parquet")


def test_what_nobody_names_leaves_a_bucket_after_a_day(
    there: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = there.workspace.folder("embeddings", "set") / "shards"
    folder.write_atomic("00009-left.parquet", b"1")
    embed(CONFIG, there)
    assert folder.exists("00009-left.parquet")
    monkeypatch.setattr(folders, "SETTLED_NS", 0)
    embed(CONFIG, there)
    assert not folder.exists("00009-left.parquet")


def test_pixels_of_another_scan_are_not_taken_for_one_s_own(
    here: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = Catalog.open(here.workspace.folder("corpora", "digits"))
    config = PreprocessConfig(size=16)
    other = build_pixels(catalog, config, here, error_budget=0.5)
    clear = ShardJob.clear

    def replaced(job: ShardJob, *doors: Any) -> None:
        clear(job, *doors)
        door = open_door(job.folder, "pixels")
        forged = {key: value for key, value in door.items() if key not in ("files", "door_sha256")}
        publish(job.folder, "pixels", {**forged, "plan": "another"}, door["files"])

    monkeypatch.setattr(ShardJob, "clear", replaced)
    other.folder.remove("pixels.json")
    with pytest.raises(ValueError, match="another job published other pixels"):
        build_pixels(catalog, config, here, error_budget=0.5)


def test_an_encoder_is_published_by_one_at_a_time(here: Context, make_encoder: Any) -> None:
    folder = here.workspace.folder("encoders", "tiny")
    with (
        sole_writer(folder, "publishing this encoder"),
        pytest.raises(ValueError, match="another process is publishing this encoder"),
    ):
        make_encoder(here.workspace, seed=1)


def test_a_file_that_vanishes_as_it_is_checked_is_damage(
    here: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = here.workspace.folder("encoders", "tiny")
    sha256 = Folder.sha256

    def vanish(folder: Folder, name: str) -> str:
        folder.remove(name)
        return sha256(folder, name)

    monkeypatch.setattr(Folder, "sha256", vanish)
    with pytest.raises(CorruptArtifactError, match="deleted while it was read"):
        open_door(folder, "encoder", door="card.json")


def test_a_damaged_set_of_a_corpus_that_grew_is_mended(here: Context, tmp_path: Any) -> None:
    embed(CONFIG, here)
    folder = here.workspace.folder("embeddings", "set")
    first, *_, last = EmbeddingStore.open(folder).door["shards"]
    folder.remove(first["vectors"])
    config = Catalog.open(here.workspace.folder("corpora", "digits")).door["config"]
    source = Path(config["folder"])
    (source / "new.png").write_bytes(next(source.rglob("*.png")).read_bytes())
    scan(ScanConfig(source=str(source), corpus="digits"), here)
    assert embed(CONFIG, here)["pictures"] == {"ok": 11}
    assert folder.exists(last["vectors"]), "somebody may have it open"


def test_a_damaged_set_is_not_replaced_by_that_of_another_encoder(
    here: Context, make_encoder: Any
) -> None:
    embed(CONFIG, here)
    make_encoder(here.workspace, "other", seed=1)
    folder = here.workspace.folder("embeddings", "set")
    first, second, *_ = EmbeddingStore.open(folder).door["shards"]
    folder.remove(first["vectors"])
    with pytest.raises(ValueError, match="was made with encoder 'tiny'"):
        embed(replace(CONFIG, encoder="other"), here)
    assert folder.exists(second["vectors"])
