"""An index that is changed over and over answers as brute force over what is alive."""

import numpy as np
import pytest

from index.choose import IndexConfig
from index.folder import Folder
from index.measure import exact_top_k, recall_at_k
from index.removal import remove_pictures
from index.rounding import unit_float16
from index.search import Searcher
from index.update import Instructions, compact_index, update_index
from index.vectors import unit
from index.versions import collect, roll_back, version_names

DIM = 8
SMALL = {"num_queries": 40, "part_rows": 150}


def normalised(vectors):
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return (vectors / norms).astype(np.float32)


class Library:
    """Pictures with vectors, an index that has to follow them, and what it ought to hold.

    Embedding sets are published as the embed job does: the whole set anew, under another id.
    """

    def __init__(self, tmp_path, publish, config, seed):
        self.rng = np.random.default_rng(seed)
        self.centres = self.rng.normal(size=(6, DIM))
        self.folder = Folder.at(tmp_path / "ix")
        self._place, self._publish, self._config = tmp_path, publish, config
        self._count = 0
        self.pictures: dict[int, np.ndarray] = {}
        self.removed: set[int] = set()
        self.held: dict[str, tuple[dict[int, np.ndarray], set[int]]] = {}

    def draw(self, count):
        near = self.centres[self.rng.integers(0, len(self.centres), count)]
        drawn = unit(near + 0.5 * self.rng.normal(size=(count, DIM)))
        # Until normalising once more, as publishing does, changes nothing.
        while not np.array_equal(drawn, again := normalised(drawn)):
            drawn = again
        return drawn

    def insert(self, count):
        first = max(self.pictures, default=-1) + 1
        for offset, vector in enumerate(self.draw(count)):
            self.pictures[first + 2 * offset] = vector

    def replace(self, count):
        for picture, vector in zip(self.some(count), self.draw(count), strict=False):
            self.pictures[picture] = vector

    def delete(self, count):
        for picture in self.some(count):
            del self.pictures[picture]

    def some(self, count):
        known = sorted(self.pictures)
        return self.rng.choice(known, min(count, len(known) // 2), replace=False).tolist()

    def store(self):
        self._count += 1
        ids = np.array(sorted(self.pictures), np.int64)
        vectors = np.array([self.pictures[picture] for picture in ids.tolist()])
        place = Folder.at(self._place / f"set-{self._count}")
        return self._publish(place, vectors, ids=ids, shard_rows=64)

    def index(self, **options):
        told = Instructions(**options)
        done = update_index(self.store(), self.folder, self._config, told=told)
        self.note()
        return done

    def note(self):
        """What the version in service holds."""
        version = Searcher.open(self.folder).version
        self.held[version] = dict(self.pictures), set(self.removed)

    def remove(self, count):
        chosen = self.some(count)
        self.removed |= set(chosen)
        remove_pictures(self.folder, np.array(chosen, np.int64))
        self.note()

    def restore(self):
        back = np.array(sorted(self.removed), np.int64)
        self.removed = set()
        return self.index(restored=back)

    def compact(self, **options):
        done = compact_index(self.folder, **options)
        self.note()
        return done

    def roll_back(self):
        names = [name for name in version_names(self.folder) if name in self.held]
        name = str(self.rng.choice(names))
        roll_back(self.folder, name)
        self.pictures, self.removed = (held.copy() for held in self.held[name])

    def collect(self):
        collect(self.folder, keep=int(self.rng.integers(1, 3)))

    def alive(self):
        ids = np.array(sorted(set(self.pictures) - self.removed), np.int64)
        vectors = np.array([self.pictures[picture] for picture in ids.tolist()])
        return ids, unit_float16(vectors).astype(np.float32)

    def check(self):
        """Everything that reads an index, beside brute force over what is alive."""
        searcher = Searcher.open(self.folder)
        ids, vectors = self.alive()
        np.testing.assert_array_equal(searcher.ids, ids)
        np.testing.assert_array_equal(searcher.vectors_of(ids), vectors)
        streamed = list(searcher.iter_batches(37))
        np.testing.assert_array_equal(np.concatenate([some for some, _ in streamed]), ids)
        np.testing.assert_array_equal(np.concatenate([some for _, some in streamed]), vectors)
        assert searcher.door["rows"] == len(ids)
        np.testing.assert_allclose(searcher.mean, vectors.mean(axis=0), atol=1e-3)
        queries = unit(self.draw(20).astype(np.float32))
        k = min(10, len(ids))
        _, truth = exact_top_k(queries, k, [(ids, vectors)])
        exact = searcher.search(queries, k, exact=True)
        np.testing.assert_allclose(exact.scores, np.minimum(truth, 1), atol=1e-5)
        assert exact.num_searched == len(ids)
        tuned = searcher.search(queries, k)
        assert np.isin(tuned.ids, ids).all()
        assert recall_at_k(tuned.scores, np.minimum(truth, 1)).mean() >= 0.95
        self._check_filters(searcher, queries, ids, vectors)
        reach = searcher.range_search(queries[:2], 0.7)
        assert (
            reach.num_matching.tolist() == ((queries[:2] @ vectors.T) >= 0.7).sum(axis=1).tolist()
        )
        for query, ids_K, scores_K in zip(queries, exact.ids, exact.scores, strict=True):
            reached = searcher.range_search(query[None], float(scores_K[-1]))
            np.testing.assert_array_equal(reached.ids[:k], ids_K)
            np.testing.assert_array_equal(reached.scores[:k], scores_K)
        recall = searcher.door["recall"]
        assert recall["low"] >= 0.95 or recall["value"] == 1.0

    def _check_filters(self, searcher, queries, ids, vectors):
        for share in (0.5, 0.1):
            some = ids[self.rng.random(len(ids)) < share]
            unknown = np.array([10**6, 10**7], np.int64)
            chosen = searcher.select(np.concatenate([some, unknown, list(self.removed)]))
            np.testing.assert_array_equal(chosen.ids, some)
            k = min(5, len(some))
            if not k:
                continue
            rows = np.isin(ids, some)
            _, truth = exact_top_k(queries, k, [(some, vectors[rows])])
            found = searcher.search(queries, k, within=chosen)
            assert np.isin(found.ids, some).all()
            assert found.num_searched == len(some)
            assert recall_at_k(found.scores, np.minimum(truth, 1)).mean() >= 0.95
            excluded = some[:3]
            less = searcher.search(queries, k, within=chosen, exclude_ids=excluded)
            assert not np.isin(less.ids, excluded).any()


STEPS = {
    "insert": lambda library: (library.insert(25), library.index()),
    "delete": lambda library: (library.delete(8), library.index()),
    "upsert": lambda library: (library.replace(6), library.insert(4), library.index()),
    "all at once": lambda library: (
        library.insert(9),
        library.delete(5),
        library.replace(5),
        library.index(),
    ),
    "remove": lambda library: library.remove(7),
    "restore": lambda library: library.restore(),
    "compact": lambda library: library.compact(),
    "retrain": lambda library: library.compact(retrain=True),
    "roll back": lambda library: library.roll_back(),
    "collect": lambda library: library.collect(),
    "again": lambda library: library.index(),
}


@pytest.fixture
def library(tmp_path, publish_store):
    def make(kind="ivf", *, seed=0, rows=300):
        made = Library(tmp_path, publish_store, IndexConfig(kind=kind, **SMALL), seed)
        made.insert(rows)
        made.index()
        return made

    return make


@pytest.mark.parametrize("kind", ["exact", "ivf", "pq", "ivf-pq", "hnsw"])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_after_any_steps_an_index_answers_as_brute_force_over_what_is_alive(library, kind, seed):
    made = library(kind, seed=seed)
    names = list(STEPS)
    order = [names[i] for i in np.random.default_rng([seed, len(kind)]).permutation(len(names))]
    for name in [*order, *made.rng.choice(names, 6).tolist()]:
        STEPS[name](made)
        made.check()
