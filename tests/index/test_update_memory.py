"""Changes of an index that is to keep to a limit of memory."""

import dataclasses
import weakref

import numpy as np
import pytest

from index import budget
from index.artifact import CorruptArtifactError
from index.budget import FIXED_BYTES, Budget
from index.choose import IndexConfig
from index.part import Part
from index.removal import remove_pictures
from index.search import Searcher
from index.update import compact_index
from index.vectors import BATCH_ROWS, VECTORS
from index.versions import version_names

IVF = IndexConfig(kind="ivf", num_queries=60)


def test_what_a_change_would_not_find_room_for_is_built_anew(folder, grow):
    small = Budget(limit_bytes=None, dim=8, part_rows=1)
    limit = FIXED_BYTES + 6 * BATCH_ROWS * 8 + 640 * 8
    config = dataclasses.replace(IVF, memory=f"{limit}B")
    assert small.allows_change(10**9, 10**12), "without a limit anything is"
    grow(600, config)
    done = grow(640, config)
    assert (done.action, done.why) == (
        "built",
        f"to change it takes more than the memory that it may take, {limit}B",
    )
    assert grow(640, config).action == "reused"
    assert len(Searcher.open(folder)) == 640


def test_what_outgrew_its_training_is_built_without_a_list_of_what_came(folder, grow, monkeypatch):
    config = dataclasses.replace(IVF, memory="30MB")
    grow(200, config)

    def refuse(*_given, **_more):
        raise AssertionError("as long as the set, it may take more than the memory of a build")

    monkeypatch.setattr("index.update.compare", refuse)
    done = grow(600, config)
    assert (done.action, done.why) == ("built", "it was trained for 200 rows, and there are 600")
    assert len(Searcher.open(folder)) == 600


def test_pictures_whose_removal_finds_no_room_are_left_out_of_a_build(folder, grow):
    limit = FIXED_BYTES + 6 * BATCH_ROWS * 8 + 700 * 8
    config = dataclasses.replace(IVF, memory=f"{limit}B")
    grow(600, config)
    before = Searcher.open(folder).ids
    done = remove_pictures(folder, np.array([5, 8, 11, 6]))
    assert (done.action, done.why, done.unknown.tolist()) == (
        "built",
        f"3 removed, and to change it takes more than the memory that it may take, {limit}B",
        [6],
    )
    assert done.door["removed"]["rows"] == 3
    assert np.array_equal(Searcher.open(folder).ids, np.setdiff1d(before, [5, 8, 11]))
    assert remove_pictures(folder, np.array([14])).door["removed"]["rows"] == 4
    assert grow(600, config).action == "reused"
    assert not np.isin([5, 8, 11, 14], Searcher.open(folder).ids).any()


def test_a_removal_builds_nothing_of_damaged_vectors(folder, grow):
    limit = FIXED_BYTES + 6 * BATCH_ROWS * 8 + 700 * 8
    grow(600, dataclasses.replace(IVF, memory=f"{limit}B"))
    searcher = Searcher.open(folder)
    path = searcher.folder.local_path(VECTORS)
    data = bytearray(path.read_bytes())
    stored = searcher.vectors_of(searcher.ids[300:301]).astype(np.float16)
    data[data.index(stored.tobytes())] ^= 1  # no norm, nor order of ids, tells of it
    path.write_bytes(data)
    with pytest.raises(CorruptArtifactError, match="sha256 differs"):
        remove_pictures(folder, np.array([5]))
    assert version_names(folder) == [searcher.version]


def test_what_cannot_be_compacted_within_its_memory_is_built_anew(folder, grow, monkeypatch):
    config = dataclasses.replace(IVF, memory="30MB")
    grow(600, config)
    remove_pictures(folder, np.array([5, 8]))
    monkeypatch.setattr(budget, "CHANGE_ROW_BYTES", 20_000)  # as if rows were many
    said = []
    done = compact_index(folder, say=said.append)
    why = "to compact it takes more than the memory that it may take, 30MB"
    assert (done.action, done.why, said) == ("built", why, [f"Training anew: {why}"])
    assert len(Searcher.open(folder)) == 598
    assert compact_index(folder).why == "it is compact already"


def test_too_little_memory_is_told_before_anything_is_written(folder, grow, monkeypatch):
    config = dataclasses.replace(IVF, memory="30MB")
    grow(600, config)
    remove_pictures(folder, np.array([5, 8]))
    before = {path: path.stat().st_mtime_ns for path in folder.local_path().rglob("*")}
    monkeypatch.setattr(budget, "FIXED_BYTES", 40_000_000)
    for verb in (
        lambda: remove_pictures(folder, np.array([11])),
        lambda: compact_index(folder),
        lambda: compact_index(folder, retrain=True),
    ):
        with pytest.raises(ValueError, match=r"memory 30MB: .* at least 41MB.* --memory 41MB"):
            verb()
    after = {path: path.stat().st_mtime_ns for path in folder.local_path().rglob("*")}
    assert after.keys() == before.keys()
    assert version_names(folder) == ["v000001", "v000002"]


def test_a_delta_that_memory_does_not_hold_is_folded_in(folder, grow, monkeypatch):
    config = dataclasses.replace(IVF, memory="30MB")
    grow(600, config)
    monkeypatch.setattr(budget, "DELTA_NUMBER_BYTES", 30_000)  # as if vectors were long
    assert grow(620, config).action == "changed"
    done = grow(660, config)
    assert (done.action, done.why) == ("compacted", "60 rows are too many for a delta")
    assert len(Searcher.open(folder)) == 660


def test_drift_is_told_with_one_part_in_memory_at_a_time(folder, grow, monkeypatch):
    config = dataclasses.replace(IVF, kind="ivf-pq", memory="30MB", part_rows=200)
    grow(600, config)
    held, most = weakref.WeakSet(), []
    really_open = Part.open

    def counted(*given):
        part = really_open(*given)
        held.add(part)
        most.append(len(held))
        return part

    monkeypatch.setattr(Part, "open", counted)
    assert grow(640, config).action == "changed"
    assert compact_index(folder).action == "compacted"
    assert max(most) <= 2, "one of the base and the delta's"
    assert len(Searcher.open(folder)) == 640
