"""Whether stated intervals cover the true recall, on corpora that are not kind."""

import numpy as np
import pytest
from scipy.stats import binom

from index import tune
from index.artifact import Folder
from index.build import build_index
from index.choose import IndexConfig, Recipe
from index.measure import Proportion, exact_top_k, recall_at_k
from index.queries import QuerySet
from index.search import Searcher
from index.tune import FIRST_LOOK, MORE_REFINES, OTHER_LOOKS, REFINES, Candidate, Tuned, judge
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
        target = (0.8, 0.9, 0.97)[seed % 3]
        kind = ("ivf", "ivf-pq")[seed % 2]
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
    vectors, _ = clustered(40_000, 16, classes=40, noise=0.3)
    config = IndexConfig(kind="ivf-pq", num_queries=200)
    door = build_index(make_store(vectors), Folder.at(tmp_path / "ix"), config)
    assert max(step["recall"] for step in door["tried"] if step["refine"] == REFINES[-1]) < 0.95
    assert door["parameters"]["refine"] in MORE_REFINES
    assert 0.95 <= door["recall"]["low"] < 1, "an index that was searched, not an exact scan"


class Scripted(Candidate):
    """A candidate whose queries each find all or nothing, at a true recall per effort."""

    def __init__(self, recalls, rng):
        object.__setattr__(self, "recipe", Recipe(kind="ivf", nlist=len(recalls), why=""))
        object.__setattr__(self, "parts", [])
        object.__setattr__(self, "vectors", None)
        self.__dict__.update(recalls=recalls, rng=rng)

    @property
    def most(self):
        return len(self.recalls) + 1

    def ladder(self):
        return list(range(1, len(self.recalls) + 1))

    def ranker(self, _refine):
        return self

    def top(self, queries, k, *, nprobe):
        share = self.recalls[nprobe - 1] if nprobe < self.most else 1.0
        hit = self.rng.random(len(queries)) < share
        scores = np.where(hit[:, None], 1.0, -1.0) * np.ones((1, k))
        return np.zeros((len(queries), k), np.int64), scores.astype(np.float32)


def judged(recalls, rng, num_queries=200, target=0.9):
    queries = QuerySet(
        ids=np.full(num_queries, -1),
        vectors=np.zeros((num_queries, 1), np.float32),
        true_ids=np.zeros((num_queries, 1), np.int64),
        true_scores=np.ones((num_queries, 1), np.float32),
        judging=np.ones(num_queries, bool),
    )
    tuned = Tuned(
        nprobe=1,
        refine=1,
        exact=False,
        recall=Proportion.exact(1, 1),
        latency=None,
        tried=[],
    )
    return judge(Scripted(recalls, rng), tuned, queries, target)


def test_looking_again_and_again_keeps_the_interval_honest(monkeypatch):
    monkeypatch.setattr(tune, "_latency", lambda *_: None)
    rng = np.random.default_rng(0)
    recalls = [0.9, 0.905, 0.91, 0.915, 0.92, 0.925, 0.93, 0.935, 0.94]
    missed = looks = 0
    for _ in range(1500):
        found = judged(recalls, rng)
        truth = recalls[found.nprobe - 1] if found.nprobe <= len(recalls) else 1.0
        missed += not found.recall.low <= truth <= found.recall.high
        looks += found.looks
    assert looks > 3000, "the test is of looking several times"
    assert missed <= binom.ppf(0.999, 1500, 0.05)
    assert missed > 0


def test_the_shares_of_all_looks_sum_to_what_may_be_wrong():
    shares = [FIRST_LOOK, *(OTHER_LOOKS / 2**look for look in range(1, 60))]
    assert sum(shares) <= 0.05 + 1e-12


def test_exact_intervals_cover_at_least_as_often_as_they_say():
    intervals = [Proportion.exact(hits, 120) for hits in range(121)]
    low, high = np.array([(one.low, one.high) for one in intervals]).T
    for share in np.linspace(0.001, 0.999, 333):
        chance = binom.pmf(np.arange(121), 120, share)[(low <= share) & (share <= high)].sum()
        assert chance >= 0.95 - 1e-12


def test_exact_intervals_are_the_published_ones():
    # Newcombe 1998, table I, method 5: 81 of 263, and 0 of 20.
    found = Proportion.exact(81, 263)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2527, 0.3676)
    assert round(Proportion.exact(0, 20).high, 4) == 0.1684
