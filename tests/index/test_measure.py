import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from index.measure import (
    Proportion,
    exact_top_k,
    few_label_accuracy,
    find_the_original,
    knn_accuracy,
    recall_at_k,
)
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


@settings(max_examples=25, deadline=None)
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


def test_find_the_original_equals_a_loop():
    corpus = normal(60, seed=1)
    rng = np.random.default_rng(2)
    ids = rng.permutation(1000)[:60].astype(np.int64)
    rows = rng.permutation(60)[:25]
    queries = corpus[rows] + 0.4 * normal(25, seed=3)
    figures = find_the_original(queries, ids[rows], ids, corpus, ks=(1, 5))
    for k, figure in figures.items():
        hits = 0
        for query, row in zip(unit(queries), rows, strict=True):
            order = sorted(range(60), key=lambda i: -float(query @ corpus[i]))
            hits += order.index(row) < k
        assert figure.value == pytest.approx(hits / 25)
        assert figure.n == 25


def test_an_encoder_that_maps_all_to_one_point_scores_by_chance():
    corpus = np.ones((50, 4), np.float32)
    ids = np.arange(50)
    figures = find_the_original(corpus, ids, ids, corpus, ks=(1, 10))
    assert figures[1].value == pytest.approx(1 / 50)
    assert figures[10].value == pytest.approx(10 / 50)


def test_a_query_without_its_original_is_refused():
    with pytest.raises(ValueError, match="not in the corpus"):
        find_the_original(normal(1), np.array([7]), np.arange(3), normal(3))


def test_knn_accuracy_equals_a_loop_and_leaves_each_row_out():
    vectors = normal(40, seed=5)
    labels = [str(x) for x in np.random.default_rng(6).integers(0, 3, 40)]
    k, right = 4, 0
    for i in range(40):
        near = sorted(
            (j for j in range(40) if j != i), key=lambda j: -float(vectors[i] @ vectors[j])
        )
        votes: dict[str, tuple[int, float]] = {}
        for j in near[:k]:
            count, total = votes.get(labels[j], (0, 0.0))
            votes[labels[j]] = (count + 1, total + float(vectors[i] @ vectors[j]))
        right += max(votes, key=votes.__getitem__) == labels[i]
    assert knn_accuracy(vectors, labels, k).value == pytest.approx(right / 40)


def test_knn_accuracy_without_structure_is_chance():
    labels = ["a", "b"] * 500
    assert abs(knn_accuracy(normal(1000), labels, 5).value - 0.5) < 4 * math.sqrt(0.25 / 1000)


def test_few_label_accuracy_is_high_on_clusters_and_chance_on_noise():
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(4), 50)
    labels = [f"c{code}" for code in codes]
    clusters = 4 * rng.normal(size=(4, 8))[codes] + rng.normal(size=(200, 8))
    good = few_label_accuracy(clusters, labels, 5, seeds=range(3))
    assert good.mean > 0.95
    assert (good.num_draws, good.labels_per_class, good.classes) == (3, 5, 4)
    noise = few_label_accuracy(normal(200), labels, 5, seeds=range(8))
    assert abs(noise.mean - 0.25) < 0.06
    assert noise.sd > 0


def test_few_label_accuracy_leaves_small_classes_out_or_refuses():
    labels = ["a"] * 20 + ["b"] * 20 + ["rare"] * 3
    assert few_label_accuracy(normal(43), labels, 5, seeds=[0]).classes == 2
    with pytest.raises(ValueError, match="two are needed"):
        few_label_accuracy(normal(43), labels, 20, seeds=[0])
