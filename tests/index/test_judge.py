"""Looking several times, and the intervals that allow for it."""

import numpy as np
from scipy.stats import binom

from index.candidate import Candidate, Tuned
from index.choose import Recipe
from index.judge import FIRST_LOOK, OTHER_LOOKS, judge
from index.measure import Proportion
from index.queries import QuerySet


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

    def steps(self, nprobe, refine):
        return [(step, refine) for step in range(nprobe, len(self.recalls) + 1)]

    def ranker(self, _refine):
        return self

    def latency(self, *_):
        return None

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


def test_looking_again_and_again_keeps_the_interval_honest():
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
