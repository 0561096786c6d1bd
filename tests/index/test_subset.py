"""Exact search of a selection, whether its vectors are kept or fetched."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from index import subset
from index.rank import Ranker
from index.selection import Selection
from index.subset import MAX_KEPT, Subsets
from index.vector_writer import VectorWriter
from index.vectors import VectorFile, unit

NUM_ROWS, DIM = 700, 12


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: Any) -> VectorFile:
    file = tmp_path_factory.mktemp("subset") / "vectors.arrow"
    rows = unit(np.random.default_rng(0).normal(size=(NUM_ROWS, DIM))).astype(np.float16)
    rows[100:140] = rows[100]
    with VectorWriter(str(file), DIM) as writer:
        writer.add(np.arange(NUM_ROWS) * 2 + 3, rows)
    return VectorFile(file)


@pytest.fixture(params=["kept", "fetched"], autouse=True)
def limit(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "fetched":
        monkeypatch.setattr(subset, "KEPT_BYTES", 0)


def truth(vectors: VectorFile, query: np.ndarray, k: int, rows: np.ndarray) -> list[int]:
    scores = vectors.gather(rows) @ query
    pairs = sorted(zip(-scores, vectors.ids[rows].tolist(), strict=True))
    return [picture for _, picture in pairs[:k]]


def test_answers_are_those_of_brute_force(vectors: VectorFile) -> None:
    rng = np.random.default_rng(1)
    subsets = Subsets(Ranker([], vectors))
    queries = unit(rng.normal(size=(7, DIM)))
    for count in (1, 9, 300, NUM_ROWS):
        rows = np.sort(
            rng.choice(
                np.setdiff1d(np.arange(NUM_ROWS), np.arange(101, 140)),
                min(count, NUM_ROWS - 39),
                replace=False,
            )
        )
        chosen = Selection(vectors.ids, rows)
        for k in (1, min(5, len(rows)), len(rows)):
            for _ in range(2):  # made, and found again
                ids, scores = subsets.top(queries, k, chosen)
                assert ids.shape == scores.shape == (7, k)
                expected = [truth(vectors, query, k, rows) for query in queries]
                cosines = [
                    vectors.gather(vectors.rows_of(np.array(e))) @ q
                    for e, q in zip(expected, queries, strict=True)
                ]
                np.testing.assert_allclose(scores, cosines, atol=1e-6)
                assert np.isin(ids, vectors.ids[rows]).all()


def test_equal_pictures_come_by_id(vectors: VectorFile) -> None:
    chosen = Selection(vectors.ids, np.arange(90, 150))
    ids, _ = Subsets(Ranker([], vectors)).top(vectors.gather(np.array([100])), 40, chosen)
    assert ids[0].tolist() == vectors.ids[100:140].tolist()


def test_only_the_last_selections_are_kept(vectors: VectorFile) -> None:
    subsets = Subsets(Ranker([], vectors))
    query = vectors.gather(np.array([0]))
    chosen = [Selection(vectors.ids, np.arange(n, n + 20)) for n in range(2 * MAX_KEPT)]
    for one in chosen:
        assert subsets.top(query, 3, one)[0].shape == (1, 3)
        subsets.top(query, 3, chosen[0])
    kept = subsets._kept
    if kept:
        assert list(kept) == [*chosen[-MAX_KEPT + 1 :], chosen[0]]


def test_threads_with_selections_of_their_own_get_their_own_answers(vectors: VectorFile) -> None:
    subsets = Subsets(Ranker([], vectors))
    queries = vectors.gather(np.arange(5))
    chosen = [Selection(vectors.ids, np.arange(n, NUM_ROWS, 23)) for n in range(12)]
    wrong = []

    def run(start: int) -> None:
        for turn in range(40):
            one = chosen[(start + turn) % len(chosen)]
            ids, _ = subsets.top(queries, 4, one)
            if not np.isin(ids, one.ids).all():
                wrong.append(start)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
