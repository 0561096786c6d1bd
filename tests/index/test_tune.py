"""Whether stated intervals cover the true recall, on corpora that are not kind."""

import numpy as np
import pytest

from index.build import build_index
from index.candidate import MORE_REFINES, REFINES, efforts
from index.choose import IndexConfig
from index.folder import Folder
from index.latency import Latency
from index.measure import exact_top_k, recall_at_k
from index.queries import QuerySet
from index.search import Searcher
from index.tune import tune
from index.vectors import unit


def class_sorted(rng):
    centres = rng.normal(size=(20, 8))
    return centres[np.sort(rng.integers(0, 20, 1200))] + rng.normal(size=(1200, 8))


def duplicated(rng):
    distinct = rng.normal(size=(500, 8)) + rng.normal(size=(25, 8))[np.arange(500) // 20]
    return distinct[np.sort(np.r_[np.arange(500), np.repeat(rng.choice(500, 20), 35)])]


def drifted(rng):
    early = rng.normal(size=(8, 8))[rng.integers(0, 8, 800)] + 0.3 * rng.normal(size=(800, 8))
    return np.concatenate([early, 3 + rng.normal(size=(400, 8))])


KINDS = ("ivf", "ivf-pq", "hnsw")
CORPORA = {"class-sorted": class_sorted, "duplicated": duplicated, "drifted": drifted}


def true_recall(searcher, queries, own, k=10):
    """Recall over all of a population, by brute force."""
    _, truth = exact_top_k(queries, k, searcher.iter_batches(), exclude_Q=own)
    hits = searcher.search(queries, k + 1)
    scores = np.where(hits.ids == own[:, None], -np.inf, hits.scores)
    scores = -np.sort(-scores, axis=1)[:, :k]
    return float(recall_at_k(scores.astype(np.float32), np.minimum(truth, 1)).mean())


def covered(make_store, tmp_path, corpus, trials):
    """How many of the trials' intervals hold the true recall, and how many reach the target."""
    rng = np.random.default_rng(7)
    outside = corpus == "out-of-distribution"
    store = make_store(CORPORA.get(corpus, class_sorted)(rng), name=f"corpus-{corpus}")
    asked = make_store(rng.normal(size=(1500, 8)), name="asked") if outside else None
    inside = reached = 0
    for seed in range(trials):
        kind, target = KINDS[seed % 3], (0.8, 0.9, 0.97)[seed // 3 % 3]
        config = IndexConfig(kind=kind, num_queries=240, target_recall=target, seed=seed)
        folder = Folder.at(tmp_path / f"{corpus}-{seed}")
        recall = build_index(store, folder, config, queries=asked)["recall"]
        searcher = Searcher.open(folder, verify="sizes")
        if outside:
            queries = np.concatenate([unit(rows) for _, rows in asked.iter_batches()])
            own = np.full(len(queries), -1)
        else:
            queries, own = unit(searcher.vectors_of(searcher.ids)), searcher.ids
        truth = true_recall(searcher, queries, own)
        inside += recall["low"] <= truth <= recall["high"]
        reached += truth >= target
    return inside, reached


@pytest.mark.parametrize("corpus", [*CORPORA, "out-of-distribution"])
def test_stated_intervals_cover_the_true_recall(make_store, tmp_path, corpus):
    inside, reached = covered(make_store, tmp_path, corpus, 12)
    # Of 12 trials at 95 %, fewer than 9 inside would happen twice in 10,000.
    assert inside >= 9
    assert reached >= 9


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("corpus", [*CORPORA, "out-of-distribution"])
def test_stated_intervals_cover_the_true_recall_in_95_percent_of_200_trials(
    make_store, tmp_path, corpus
):
    inside, reached = covered(make_store, tmp_path, corpus, 200)
    assert inside >= 190, f"{inside} of 200"
    assert reached >= 190, f"{reached} of 200"


def test_more_candidates_are_compared_where_codes_cannot_tell_a_cluster_apart(
    make_store, clustered, tmp_path
):
    # Codes are learnt from what lies wide apart, and say little of what lies close together.
    wide, tight = (clustered(40_000, 16, classes=10, noise=noise)[0] for noise in (0.5, 0.02))
    is_tight = np.random.default_rng(0).random(40_000) < 0.5
    vectors = np.where(is_tight[:, None], tight, wide)
    config = IndexConfig(kind="ivf-pq", num_queries=400)
    door = build_index(make_store(vectors), Folder.at(tmp_path / "ix"), config)
    assert max(step["recall"] for step in door["tried"] if step["refine"] == REFINES[-1]) < 0.95
    assert door["parameters"]["refine"] in MORE_REFINES
    assert 0.95 <= door["recall"]["low"] < 1, "an index that was searched, not an exact scan"


class Curve:
    """A candidate whose recall at each effort is given, with 4 candidates a result."""

    refines = (4,)

    def __init__(self, recalls, *, lossy=True):
        self.recalls = dict(zip(efforts("ivf-pq", 2 ** (len(recalls) // 2)), recalls, strict=True))
        self.most = max(self.recalls) + lossy
        self.looked = []

    def ladder(self):
        return list(self.recalls)

    def latency(self, _queries, nprobe, _refine):
        return Latency(p50=nprobe, p95=nprobe, p99=nprobe, queries_per_s=1 / nprobe, n=1)


@pytest.fixture
def tuned(monkeypatch):
    queries = QuerySet(
        ids=np.arange(100_000),
        vectors=np.zeros((1, 1), np.float32),
        true_ids=np.zeros((1, 1), np.int64),
        true_scores=np.zeros((1, 1), np.float32),
        judging=np.zeros(1, np.bool_),
    )

    def hits(candidate, queries, nprobe, _refine):
        candidate.looked.append(nprobe)
        return candidate.recalls[nprobe] * len(queries.ids), len(queries.ids)

    monkeypatch.setattr("index.tune.hits_of", hits)
    return lambda candidate: tune(candidate, queries, 0.95)


def test_more_lists_that_find_less_do_not_hide_fewer_that_find_enough(tuned):
    # Nprobe 1, 2, 3, 4, 6, 8, ... 64: enough from 3 to 8, and less the more lists share candidates.
    recalls = [0.5, 0.8, 0.96, 0.97, 0.97, 0.96, 0.94, 0.93, 0.92, 0.91, 0.90, 0.89]
    found = tuned(Curve(recalls))
    assert (found.nprobe, found.refine, found.exact) == (3, 4, False)


def test_the_least_effort_may_lie_between_two_that_were_looked_at(tuned):
    recalls = [0.5, 0.7, 0.8, 0.96, 0.97, 0.98, 0.99, 0.99, 0.99, 0.99, 0.99, 0.99]
    candidate = Curve(recalls)
    assert tuned(candidate).nprobe == 4
    assert max(candidate.looked) == 6, "nothing far above it is tried"


def test_where_recall_only_falls_no_more_is_tried(tuned):
    recalls = [0.5, 0.8, 0.9, 0.92, 0.91, 0.90, 0.89, 0.88, 0.87, 0.86, 0.85, 0.84]
    candidate = Curve(recalls)
    assert tuned(candidate).exact
    assert max(candidate.looked) < 64


def test_without_codes_the_last_effort_is_exact(tuned):
    found = tuned(Curve([0.5, 0.6, 0.7, 0.8, 0.9, 0.94], lossy=False))
    assert (found.exact, found.nprobe) == (True, 8)
    assert found.recall.low == 1
