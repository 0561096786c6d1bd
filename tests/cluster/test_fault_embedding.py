"""Embedding killed at every change of the disk, on a full disk, and over damaged files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster.catalog import Catalog
from cluster.decode_limit import DecodeLimit
from cluster.embed_job import EmbedConfig, embed
from cluster.plan import Plan, plan_shards, write_plan
from cluster.scan_job import ScanConfig, scan
from cluster.shard_actor import ShardActor, attempts_file
from cluster.shards import commit, committed
from cluster.workspace import Workspace
from index.artifact import CorruptArtifactError
from index.embeddings import EmbeddingStore

pytestmark = pytest.mark.usefixtures("no_fsync")

EMBED = """
    import io

    import torch
    from rich.console import Console

    from cluster.context import Context
    from cluster.embed_job import EmbedConfig, embed
    from cluster.workspace import Workspace

    torch.set_num_threads(1)

    def run(home):
        context = Context(Workspace.at(home), console=Console(file=io.StringIO()))
        embed(EmbedConfig(corpus="mine", encoder="tiny", shard_rows=4), context)
"""
NAME = "mine-tiny"


@pytest.fixture
def embed_here(shards_here: str, quiet: Any) -> Any:
    """Embeds without Ray."""

    def run(home: Path) -> dict[str, Any]:
        config = EmbedConfig(corpus="mine", encoder="tiny", shard_rows=4)
        return embed(config, quiet(Workspace.at(home)))

    return run


@pytest.fixture
def home(tmp_path: Path, pictures: Any, make_encoder: Any, quiet: Any, embed_here: Any) -> Path:
    """A workspace with six pictures embedded, of which the last shard has two; and two more."""
    folder = pictures(8, size=16, formats=("png",))
    context = quiet(Workspace.at(tmp_path / "workspace"))
    later = sorted(folder.rglob("*.png"))[6:]
    for path in later:
        path.rename(path.with_suffix(".later"))
    scan(ScanConfig(source=str(folder), corpus="mine"), context)
    make_encoder(context.workspace)
    embed_here(tmp_path / "workspace")
    for path in later:
        path.with_suffix(".later").rename(path)
    scan(ScanConfig(source=str(folder), corpus="mine"), context)
    return tmp_path / "workspace"


def answers(home: Path, verify: Any = "full") -> list[Any]:
    """Vectors and thumbnails by id, hashes, and the mean."""
    store = EmbeddingStore.open(Workspace.at(home).folder("embeddings", NAME), verify=verify)
    rows = [
        (int(number), vector.tobytes(), store.thumbnail(int(number)))
        for ids, vectors in store.iter_stored()
        for number, vector in zip(ids, vectors, strict=True)
    ]
    hashes = [hashes.tobytes() for _, hashes in store.iter_content_hashes()]
    return [rows, hashes, store.mean.tolist(), store.door["rows"]]


@pytest.mark.slow
def test_whatever_is_killed_old_or_new_vectors_are_there_and_the_next_run_finishes(
    home: Path, forge: Any, embed_here: Any, shards_here: str
) -> None:
    before = answers(home)
    whole = shutil.copytree(home, home.with_name("whole"))
    embed_here(whole)
    after = answers(whole)
    assert (len(before[0]), len(after[0])) == (6, 8)

    def check(home: Path, is_done: bool) -> None:
        assert answers(home) in ([after] if is_done else [before, after])

    assert forge.walk(shards_here + EMBED, home, check) > 25


@pytest.mark.parametrize("verify", ["full", "sizes"])
def test_all_damage_to_vectors_and_thumbnails_is_noticed_before_they_are_used(
    home: Path, assert_noticed: Any, verify: str
) -> None:
    """Commit records are read by the next run alone."""
    refused = assert_noticed(home / "embeddings" / NAME, lambda: answers(home, verify))
    assert sorted({name.partition(".")[2] or name for name in refused}) == [
        "json",
        "parquet",
        "thumbs.arrow",
    ]
    assert len(refused) == 5


def test_the_next_run_mends_all_damage_to_shards_and_records(
    home: Path, every_damage: Any, embed_here: Any, caplog: pytest.LogCaptureFixture
) -> None:
    embed_here(home)
    oracle = answers(home)
    copy = home.with_name("copy")
    for path, damage in every_damage(home / "embeddings" / NAME / "shards"):
        if path.suffix == ".arrow" or ("flipped" in damage and int(damage.split()[4]) % 5):
            continue  # a run for each takes its time, and a reader's test walks them all
        shutil.rmtree(copy, ignore_errors=True)
        embed_here(shutil.copytree(home, copy))
        assert answers(copy) == oracle, f"{path}, {damage}"


@pytest.fixture
def record(tmp_path: Path, pictures: Any, quiet: Any) -> Any:
    """Folder and shard of a record as `commit` writes it."""
    context = quiet(Workspace.at(tmp_path / "workspace"))
    scan(ScanConfig(source=str(pictures(4, size=16)), corpus="mine"), context)
    catalog = Catalog.open(context.workspace.folder("corpora", "mine"))
    folder = context.workspace.folder("pixels", "mine")
    (shard,) = plan_shards(catalog, key="k", shard_rows=100)
    done = {"rows": 4, "ok": 3, "failed": {"empty": 1}, "vector_sum": [0.25, 7.5], "files": {}}
    return folder, shard, commit(folder, shard, done)


def test_a_record_with_one_flipped_bit_is_no_record_or_says_the_same(record: Any) -> None:
    folder, shard, done = record
    path = folder.local_path(f"shards/{shard.name}.json")
    whole = path.read_bytes()
    assert committed(folder, shard) == done
    refused = 0
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << (place % 8)
        path.write_bytes(data)
        found = committed(folder, shard)
        refused += found is None
        assert found is None or {name: found.get(name) for name in done} == done, place
    assert refused > 0.8 * len(whole)


def test_a_plan_that_was_damaged_stops_the_job_and_plans_nothing_else(record: Any) -> None:
    folder, shard, _ = record
    name = write_plan(folder, [shard])
    assert Plan(folder, name).shard(0, 0).rows == shard.rows
    path = folder.local_path(f"shards/{name}")
    whole = path.read_bytes()
    for place in range(0, len(whole), 50):
        data = bytearray(whole)
        data[place] ^= 4
        path.write_bytes(data)
        with pytest.raises(CorruptArtifactError, match="Run it again"):
            Plan(folder, name)


def test_a_garbled_count_of_attempts_is_one_attempt(record: Any) -> None:
    folder, shard, _ = record
    location = str(folder).partition("/pixels")[0]
    seen: list[frozenset[int]] = []

    class Work:
        limit = DecodeLimit()

        def __call__(self, _: Any, crashed: frozenset[int]) -> dict[str, Any]:
            seen.append(crashed)
            return {"rows": 4, "ok": 4, "failed": {}, "files": {}}

    folder.remove(f"shards/{shard.name}.json")
    plan = write_plan(folder, [shard])
    folder.write_atomic(attempts_file(shard, plan), b"\xff")
    actor = ShardActor(location, folder.path, Work, {})
    assert json.loads(actor.do(plan, 0, shard.number))["ok"] == 4
    assert seen == [frozenset()]
