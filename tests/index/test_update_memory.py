"""Changes of an index that is to keep to a limit of memory."""

import dataclasses
import weakref

from index import budget
from index.budget import FIXED_BYTES, Budget
from index.choose import IndexConfig
from index.part import Part
from index.search import Searcher
from index.update import compact_index
from index.vectors import BATCH_ROWS

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
