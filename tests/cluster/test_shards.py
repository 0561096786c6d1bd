"""The shard protocol: what is committed stays, what is not is done again."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import fs as pafs

from cluster import shards
from cluster.catalog import Catalog
from cluster.context import Context
from cluster.pixels_job import PixelCache, PixelWork, build_pixels
from cluster.plan import PLAN, Plan, Shard, ShardRow, plan_shards, write_plan
from cluster.scan_job import ScanConfig, scan
from cluster.shard_actor import ShardActor, ShardError, attempts_file
from cluster.shard_job import ErrorBudgetError, ShardJob
from cluster.shards import commit, committed, read_picture
from cluster.where import Profile
from encoders.picture import open_picture
from encoders.preprocess import PreprocessConfig
from index.artifact import CorruptArtifactError, check_file, publish
from index.folder import Folder

SIZE = 16


def actor(context: Context) -> tuple[ShardActor, Folder]:
    folder = context.workspace.folder("pixels", "mine")
    arguments = {
        "location": context.workspace.location,
        "name": "mine",
        "preprocess": {"size": SIZE},
        "profile": Profile(cpus_per_actor=1),
    }
    return ShardActor(context.workspace.location, folder.path, PixelWork, arguments), folder


def planned(folder: Folder, shard: Shard) -> pa.Table:
    """What a worker is sent of a shard."""
    plan = write_plan(folder, [shard])
    return pa.table({"plan": [plan], "position": [0], "number": [shard.number]})


def test_a_plan_cuts_by_id_and_a_grown_corpus_changes_only_the_end(
    context: Context, catalog: Catalog
) -> None:
    before = plan_shards(catalog, key="k", shard_rows=8)
    assert [[row.id for row in shard.rows] for shard in before] == [
        list(range(8)),
        list(range(8, 16)),
        list(range(16, 20)),
    ]
    folder = Path(catalog.door["config"]["folder"])
    (folder / "new.png").write_bytes(next(folder.rglob("*.png")).read_bytes())
    scan(ScanConfig(source=str(folder), corpus="mine"), context)
    grown = Catalog.open(context.workspace.folder("corpora", "mine"))
    after = plan_shards(grown, key="k", shard_rows=8)
    assert [shard.name for shard in after[:2]] == [shard.name for shard in before[:2]]
    assert [row.id for row in after[2].rows] == [16, 17, 18, 19, 20]
    assert after[2].name != before[2].name


def test_a_shard_name_says_all_that_decides_its_content() -> None:
    row = ShardRow(id=1, uri="a.png", bytes=10, mtime_ns=5)
    names = {
        Shard.of(0, "k", (row,)).name,
        Shard.of(0, "other key", (row,)).name,
        Shard.of(0, "k", (ShardRow(1, "a.png", 10, 6),)).name,
        Shard.of(0, "k", (ShardRow(1, "a.png", 11, 5),)).name,
        Shard.of(0, "k", (ShardRow(2, "a.png", 10, 5),)).name,
    }
    assert len(names) == 5


def test_a_shard_travels_by_way_of_a_plan(context: Context, catalog: Catalog) -> None:
    folder = context.workspace.folder("pixels", "mine")
    shards = plan_shards(catalog, key="k", shard_rows=8)
    plan = Plan(folder, write_plan(folder, shards))
    for position in (2, 0, 1):
        found = plan.shard(position, shards[position].number)
        assert (found.name, found.rows) == (shards[position].name, shards[position].rows)


def test_work_is_committed_once_and_found_again(context: Context, catalog: Catalog) -> None:
    worker, folder = actor(context)
    (shard,) = plan_shards(catalog, key="k", shard_rows=100)
    assert committed(folder, shard) is None
    done = json.loads(worker(planned(folder, shard))["record"][0].as_py())
    assert (done["rows"], done["ok"], done["failed"]) == (20, 20, {})
    assert committed(folder, shard) == done
    assert not [name for name in (folder / "shards").names() if name.endswith(".attempts")]


def test_a_shard_whose_pictures_were_out_of_reach_is_done_again(
    context: Context, catalog: Catalog
) -> None:
    worker, folder = actor(context)
    (shard,) = plan_shards(catalog, key="k", shard_rows=100)
    picture = Path(shard.rows[3].uri)
    picture.rename(picture.with_suffix(".away"))
    away = json.loads(worker(planned(folder, shard))["record"][0].as_py())
    assert (away["ok"], away["failed"]) == (19, {"missing": 1})
    assert committed(folder, shard) is None
    picture.with_suffix(".away").rename(picture)
    back = json.loads(worker(planned(folder, shard))["record"][0].as_py())
    assert back["ok"] == 20
    assert committed(folder, shard) == back


@pytest.mark.parametrize("damage", ["torn record", "no file", "short file", "flipped bit"])
def test_a_damaged_shard_counts_as_not_done(
    context: Context, catalog: Catalog, damage: str
) -> None:
    worker, folder = actor(context)
    (shard,) = plan_shards(catalog, key="k", shard_rows=100)
    (file,) = json.loads(worker(planned(folder, shard))["record"][0].as_py())["files"]
    record, data = folder.local_path(f"shards/{shard.name}.json"), folder.local_path(file)
    if damage == "torn record":
        record.write_bytes(record.read_bytes()[:20])
    elif damage == "no file":
        data.unlink()
    elif damage == "short file":
        data.write_bytes(data.read_bytes()[:-1])
    else:
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
        assert committed(folder, shard) is not None
    assert committed(folder, shard, "full") is None


def test_the_same_shard_done_twice_gives_the_same_bytes(context: Context, catalog: Catalog) -> None:
    worker, folder = actor(context)
    (shard,) = plan_shards(catalog, key="k", shard_rows=100)
    first = json.loads(worker(planned(folder, shard))["record"][0].as_py())
    folder.remove(f"shards/{shard.name}.json")
    again = json.loads(worker(planned(folder, shard))["record"][0].as_py())
    assert again["files"] == first["files"]
    names = [name for name in (folder / "shards").names() if not name.startswith(PLAN)]
    assert names == [Path(*first["files"]).name, f"{shard.name}.json"]


def test_what_is_committed_is_not_done_again_when_ray_asks_twice(
    context: Context, catalog: Catalog
) -> None:
    worker, folder = actor(context)
    (shard,) = plan_shards(catalog, key="k", shard_rows=100)
    first = json.loads(worker(planned(folder, shard))["record"][0].as_py())
    Path(shard.rows[0].uri).unlink()
    assert json.loads(worker(planned(folder, shard))["record"][0].as_py()) == first


def test_a_pipe_where_a_picture_was_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert read_picture(ShardRow(0, str(tmp_path / "a.png"), 10, 5)) == ("changed", b"", None)


def test_a_shard_that_keeps_killing_its_worker_is_refused(
    context: Context, catalog: Catalog
) -> None:
    worker, folder = actor(context)
    (shard,) = plan_shards(catalog, key="k", shard_rows=100)
    sent = planned(folder, shard)
    folder.write_atomic(attempts_file(shard, sent["plan"][0].as_py()), b"3")
    refused = json.loads(worker(sent)["record"][0].as_py())
    assert "its worker died 3 times" in refused["error"]
    assert committed(folder, shard) is None


def test_a_file_that_changed_since_the_scan_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (3, 2)).save(path)
    data = path.read_bytes()
    found = path.stat()
    row = ShardRow(0, str(path), found.st_size, found.st_mtime_ns)
    assert read_picture(row) == ("ok", data, open_picture(data))
    path.write_bytes(b"another")
    older = ShardRow(0, str(path), found.st_size, found.st_mtime_ns - 1)
    assert read_picture(older) == ("changed", b"", None)
    path.unlink()
    assert read_picture(row) == ("missing", b"", None)


def test_a_file_that_is_no_picture_gets_its_status(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"words")
    found = path.stat()
    row = ShardRow(0, str(path), found.st_size, found.st_mtime_ns)
    assert read_picture(row) == ("unreadable", b"words", None)


def test_a_commit_record_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    shard = Shard.of(0, "k", (ShardRow(0, "a", 1, 1),))
    commit(folder, shard, {"rows": 1, "ok": 1, "failed": {}, "files": {}})
    assert (folder / "shards").names() == [f"{shard.name}.json"]


@pytest.mark.ray
def test_pixels_skip_bad_pictures_and_stop_when_too_many_are_bad(
    context: Context, pictures: Any, local_ray: Any
) -> None:
    folder = pictures(210, size=SIZE, formats=("png",))
    broken = sorted(folder.rglob("*.png"))[:3]
    for path in broken:
        path.write_bytes(path.read_bytes()[:-40])
    scan(ScanConfig(source=str(folder), corpus="mine"), context)
    catalog = Catalog.open(context.workspace.folder("corpora", "mine"))
    preprocess = PreprocessConfig(size=SIZE)
    with pytest.raises(ErrorBudgetError, match="3 of 210 pictures failed"):
        build_pixels(catalog, preprocess, context, error_budget=0.01)
    cache = build_pixels(catalog, preprocess, context, error_budget=0.05)
    assert len(cache) == 207
    assert cache.read(np.array([0, 206, 5])).shape == (3, SIZE, SIZE, 3)
    assert not set(cache.ids) & {row.id for row in catalog.by_uri() if Path(row.uri) in broken}


@pytest.mark.ray
def test_encoders_that_normalise_otherwise_share_one_cache(
    context: Context, catalog: Catalog
) -> None:
    first = build_pixels(catalog, PreprocessConfig(size=16), context, error_budget=0.05)
    other = PreprocessConfig(size=16, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    assert build_pixels(catalog, other, context, error_budget=0.05).id == first.id
    padded = PreprocessConfig(size=16, fit="pad")
    assert build_pixels(catalog, padded, context, error_budget=0.05).id != first.id


def test_pixels_that_were_damaged_or_out_of_reach_are_mended_by_the_next_run(
    context: Context, pictures: Any, local_ray: Any
) -> None:
    folder = pictures(20, size=SIZE, formats=("png",))
    scan(ScanConfig(source=str(folder), corpus="mine"), context)
    catalog = Catalog.open(context.workspace.folder("corpora", "mine"))
    away = next(folder.rglob("*.png"))
    away.rename(away.with_suffix(".away"))
    preprocess = PreprocessConfig(size=SIZE)
    without = build_pixels(catalog, preprocess, context, error_budget=0.5)
    assert (len(without), without.failed) == (19, {"missing": 1})
    away.with_suffix(".away").rename(away)
    whole = build_pixels(catalog, preprocess, context, error_budget=0.5)
    assert (len(whole), whole.failed) == (20, {})
    assert whole.id != without.id
    (file,) = whole.folder.local_path("shards").glob("*.arrow")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    mended = build_pixels(catalog, preprocess, context, error_budget=0.5)
    assert mended.id == whole.id
    assert PixelCache.open(mended.folder, verify="full").id == whole.id


def test_pixels_in_an_object_store_are_copied_here_checked_and_kept_private(
    context: Context, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    worker, here = actor(context)
    (shard,) = plan_shards(catalog, key="k", shard_rows=100)
    record = json.loads(worker(planned(here, shard))["record"][0].as_py())
    store = Folder(pafs._MockFileSystem(), "bucket").make()
    for file in record["files"]:
        store.write_atomic(file, here.read_bytes(file))
    body = {"id": "i", "plan": "p", "config": {"size": SIZE}, "rows": {"ok": 20}}
    publish(store, "pixels", body, record["files"])
    assert len(PixelCache.open(store)) == 20
    (private,) = (tmp_path / "temporary").iterdir()
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    (copy,) = (path for path in private.iterdir() if path.is_file())
    copy.write_bytes(copy.read_bytes()[:-8])
    assert len(PixelCache.open(store)) == 20
    private.chmod(0o777)
    PixelCache.open(store)
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


@pytest.mark.ray
def test_what_a_worker_raises_comes_out_as_it_was_raised(
    context: Context, catalog: Catalog, local_ray: Any
) -> None:
    worker, folder = actor(context)
    (shard,) = plan_shards(catalog, key="k", shard_rows=100)
    (file,) = json.loads(worker(planned(folder, shard))["record"][0].as_py())["files"]
    folder.remove(file)
    folder.local_path(file).mkdir()
    arguments = {
        "location": context.workspace.location,
        "name": "mine",
        "preprocess": {"size": SIZE},
    }
    with pytest.raises(ShardError, match=r"^\[Errno 21\] Is a directory") as raised:
        ShardJob("pixels", folder, [shard], PixelWork, arguments, 0.5).run(context)
    assert raised.value.errno == errno.EISDIR
    assert committed(folder, shard) is None


def test_a_disk_that_takes_no_more_leaves_nothing_half_written(
    context: Context, catalog: Catalog, full_disk: Any
) -> None:
    worker, folder = actor(context)
    (shard,) = plan_shards(catalog, key="k", shard_rows=100)
    sent = planned(folder, shard)
    with full_disk(2_000):
        failed = json.loads(worker(sent)["record"][0].as_py())
    assert failed["errno"] == errno.EFBIG
    assert committed(folder, shard) is None
    plan = sent["plan"][0].as_py()
    assert {f"shards/{name}" for name in (folder / "shards").names()} == {
        attempts_file(shard, plan),
        f"shards/{plan}",
    }
    done = json.loads(worker(planned(folder, shard))["record"][0].as_py())
    assert done["ok"] == 20


def test_a_file_larger_than_any_picture_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (3, 2)).save(path)
    os.truncate(path, 4 << 40)
    found = path.stat()
    row = ShardRow(0, str(path), found.st_size, found.st_mtime_ns)
    assert read_picture(row) == ("too_large", b"", None)


def test_a_file_that_does_not_fit_into_memory_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: Any) -> bytes:
        raise MemoryError

    monkeypatch.setattr(shards, "read_bytes", short)
    assert read_picture(ShardRow(0, str(tmp_path / "a.png"), 10, 5)) == ("too_large", b"", None)


@pytest.mark.parametrize("unreadable", ["record", "data"])
def test_a_shard_that_the_disk_cannot_read_counts_as_not_done(
    context: Context,
    catalog: Catalog,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    unreadable: str,
) -> None:
    worker, folder = actor(context)
    (shard,) = plan_shards(catalog, key="k", shard_rows=100)
    (file,) = json.loads(worker(planned(folder, shard))["record"][0].as_py())["files"]
    name = f"shards/{shard.name}.json" if unreadable == "record" else file
    method = "read_bytes" if unreadable == "record" else "sha256"

    def broken(_: Folder, name: str) -> None:
        raise OSError(errno.EIO, "Input/output error", name)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, method, broken)
        assert committed(folder, shard, "full") is None
        assert name in caplog.text
        if unreadable == "data":
            stated = {"bytes": folder.size_bytes(file), "sha256": "0"}
            with pytest.raises(CorruptArtifactError, match=f"{file}: the disk cannot read it"):
                check_file(folder, file, stated)
    assert committed(folder, shard, "full") is not None


def test_an_error_of_the_disk_names_the_file() -> None:
    """The kernel refuses to read what no process has at its address 0."""
    with pytest.raises(OSError, match="Input/output error") as raised:
        Folder.at("/proc/self").sha256("mem")
    assert raised.value.errno == errno.EIO
    assert raised.value.filename == f"/proc/{os.getpid()}/mem"
