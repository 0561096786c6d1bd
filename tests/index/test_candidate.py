"""The settings at which a candidate is looked at, one after the other."""

from types import SimpleNamespace

import pytest

from index.candidate import MORE_REFINES, REFINES, Candidate
from index.choose import Recipe


def candidate(kind, nlist, num_rows):
    lossy, is_graph = kind in ("pq", "ivf-pq"), kind == "hnsw"
    part = SimpleNamespace(nlist=nlist, lossy=lossy, is_graph=is_graph, num_rows=num_rows)
    return Candidate(Recipe(kind=kind, nlist=nlist, why=""), [part], range(num_rows))


@pytest.mark.parametrize("kind", ["ivf", "exact", "hnsw"])
def test_without_codes_effort_alone_is_raised(kind):
    made = candidate(kind, 64, 10**6)
    assert made.refines == [1]
    steps = made.steps(24, 1)
    assert [refine for _, refine in steps] == [1] * len(steps)
    assert [nprobe for nprobe, _ in steps] == [24, 32, 48]


def test_with_codes_candidates_are_raised_together_with_lists():
    made = candidate("ivf-pq", 6, 10**6)
    assert made.steps(3, 64) == [(3, 64), (4, 128), (6, 256), (6, 512), (6, 1024)]
    assert made.steps(1, 1024) == [(1, 1024), (2, 1024), (3, 1024), (4, 1024), (6, 1024)]
    assert made.steps(made.most, 1) == [], "that is exact already"


def test_no_more_candidates_are_tried_than_a_small_part_of_the_rows():
    assert candidate("pq", 1, 1000).refines == [*REFINES]
    assert candidate("pq", 1, 30_000).refines == [*REFINES, 128, 256]
    assert candidate("pq", 1, 10**6).refines == [*REFINES, *MORE_REFINES]
