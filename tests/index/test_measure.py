import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from index.measure import Proportion, exact_top_k, recall_at_k
from index.vectors import unit


def normal(rows, dim=8, seed=0):
    return unit(np.random.default_rng(seed).normal(size=(rows, dim)))


def test_wilson_agrees_with_published_values():
    # Newcombe 1998, table I: 81 of 263, and 0 of 20.
    interval = Proportion.wilson(81, 263)
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)
    interval = Proportion.wilson(0, 20)
    assert (interval.low, round(interval.high, 4)) == (0, 0.1611)
    assert Proportion.wilson(20, 20).low == pytest.approx(1 - 0.1611, abs=1e-4)


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        Proportion.wilson(0, 0)


@given(successes=st.integers(0, 50), n=st.integers(50, 60))
def test_an_interval_contains_its_value_and_mirrors(successes, n):
    a, b = Proportion.wilson(successes, n), Proportion.wilson(n - successes, n)
    assert 0 <= a.low <= a.value <= a.high <= 1
    assert a.low == pytest.approx(1 - b.high, abs=1e-12)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    shares = np.linspace(0.5, 0.99, 50)
    intervals = [Proportion.wilson(x, 200) for x in range(201)]
    low, high = np.array([(i.low, i.high) for i in intervals]).T
    covered = [
        binom.pmf(np.arange(201), 200, share)[(low <= share) & (share <= high)].sum()
        for share in shares
    ]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.005)
    assert min(covered) > 0.9


@settings(max_examples=25)
@given(n=st.integers(1, 30), k=st.integers(1, 12), batch=st.integers(1, 9), seed=st.integers(0, 9))
def test_exact_search_equals_a_loop(n, k, batch, seed):
    corpus, queries = normal(n, seed=seed), normal(4, seed=seed + 100)
    ids = np.arange(n, dtype=np.int64) * 2 + 1
    exclude = np.array([1, 3, 5, 999])
    batches = [(ids[i : i + batch], corpus[i : i + batch]) for i in range(0, n, batch)]
    found, scores = exact_top_k(queries, k, batches, exclude_Q=exclude)
    for q in range(4):
        pairs = sorted(
            (-float(queries[q] @ corpus[i]), int(ids[i])) for i in range(n) if ids[i] != exclude[q]
        )[: found.shape[1]]
        assert found[q].tolist() == [picture for _, picture in pairs]
        np.testing.assert_allclose(scores[q], [-score for score, _ in pairs], atol=1e-6)
    left = min(n - int(picture in ids) for picture in exclude)
    assert found.shape[1] == min(k, left)


def test_recall_counts_ties_and_misses():
    truth = np.array([[0.9, 0.8], [0.9, 0.8]], np.float32)
    found = np.array([[0.8, 0.8], [0.9, -np.inf]], np.float32)
    assert recall_at_k(found, truth).tolist() == [1.0, 0.5]
    with pytest.raises(ValueError, match="truth is"):
        recall_at_k(found[:, :1], truth)


def test_trials_that_do_not_count_alike_widen_the_interval():
    plain = Proportion.wilson(30, 100)
    assert Proportion.wilson(30, 100, effective_n=100) == plain
    wide = Proportion.wilson(30, 100, effective_n=25)
    same = Proportion.wilson(7.5, 25)
    assert (wide.value, wide.n) == (0.3, 100)
    assert (wide.low, wide.high) == (same.low, same.high)
    assert wide.low < plain.low < plain.high < wide.high
