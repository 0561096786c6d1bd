import math
from collections import defaultdict

import numpy as np
import pytest

from encoders import probe
from encoders.probe import knn_accuracy


def clusters(num: int, seed: int, classes: int = 4, noise: float = 0.3):
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(classes, 8))
    labels = np.arange(num) % classes * 10  # labels need not be 0, 1, 2
    vectors = centres[labels // 10] + noise * generator.normal(size=(num, 8))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


def naive(bank, bank_labels, queries, query_labels, k, temperature) -> float:
    correct = 0
    for query, label in zip(queries, query_labels, strict=True):
        nearest = sorted(range(len(bank)), key=lambda row: -float(bank[row] @ query))[:k]
        votes: dict[int, float] = defaultdict(float)
        for row in nearest:
            votes[bank_labels[row]] += math.exp(float(bank[row] @ query) / temperature)
        correct += max(votes, key=votes.__getitem__) == label
    return correct / len(queries)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (5, 0.1), (5, 1.0), (20, 0.07)])
def test_it_equals_a_loop(k, temperature, monkeypatch):
    monkeypatch.setattr(probe, "QUERIES_AT_ONCE", 7)
    data = (*clusters(60, 0, noise=0.9), *clusters(30, 1, noise=0.9))
    expected = naive(*data, k, temperature)
    assert knn_accuracy(*data, k=k, temperature=temperature) == pytest.approx(expected)
    assert 0.3 < expected < 1


def test_shuffled_labels_fall_to_chance():
    bank, labels = clusters(400, 0)
    queries, query_labels = clusters(400, 1)
    assert knn_accuracy(bank, labels, queries, query_labels, k=10) > 0.95
    shuffled = np.random.default_rng(0).permutation(labels)
    assert knn_accuracy(bank, shuffled, queries, query_labels, k=10) == pytest.approx(0.25, abs=0.1)


def test_unlabelled_rows_take_no_part():
    bank, labels = clusters(40, 0)
    queries, query_labels = clusters(20, 1)
    expected = knn_accuracy(bank[:20], labels[:20], queries[:10], query_labels[:10], k=3)
    labels[20:] = -1
    query_labels[10:] = -1
    assert knn_accuracy(bank, labels, queries, query_labels, k=3) == expected


def test_a_class_that_the_bank_lacks_counts_as_wrong():
    bank, labels = clusters(40, 0)
    kept = labels != 30
    queries, query_labels = clusters(40, 1, noise=0.01)
    accuracy = knn_accuracy(bank[kept], labels[kept], queries, query_labels, k=3)
    assert accuracy == 0.75


def test_a_tiny_temperature_lets_the_nearest_decide():
    bank = np.eye(3, dtype=np.float32)
    query = np.array([[0.8, 0.42, 0.42]], np.float32)
    query /= np.linalg.norm(query)
    labels = np.array([1, 2, 2])
    assert knn_accuracy(bank, labels, query, np.array([1]), k=3, temperature=1e-4) == 1
    assert knn_accuracy(bank, labels, query, np.array([2]), k=3, temperature=100.0) == 1


@pytest.mark.parametrize("k", [0, 21])
def test_more_neighbours_than_labelled_rows_are_refused(k):
    bank, labels = clusters(40, 0)
    labels[20:] = -1
    with pytest.raises(ValueError, match=f"k={k} over 20 labelled bank rows"):
        knn_accuracy(bank, labels, bank, labels, k=k)


def test_a_probe_without_labelled_queries_is_refused():
    bank, labels = clusters(40, 0)
    with pytest.raises(ValueError, match="0 labelled queries"):
        knn_accuracy(bank, labels, bank, np.full(40, -1), k=3)
