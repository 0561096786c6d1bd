import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from index.measure import TIE
from index.retrieval import directions, find_the_original, knn_accuracy, retrieve_classes
from index.vectors import unit


def normal(rows, dim=8, seed=0):
    return unit(np.random.default_rng(seed).normal(size=(rows, dim)))


def drawn_labels(rows, classes, seed=0):
    return [f"c{code}" for code in np.random.default_rng(seed).integers(0, classes, rows)]


def coarse(rows, dim=3, seed=0):
    """Vectors with many equal ones among them, so that ranks tie."""
    corners = np.random.default_rng(seed).integers(-1, 2, (rows, dim)).astype(np.float32)
    corners[(corners == 0).all(axis=1), 0] = 1
    return corners


def test_find_the_original_equals_a_loop():
    corpus = normal(60, seed=1)
    rng = np.random.default_rng(2)
    ids = rng.permutation(1000)[:60].astype(np.int64)
    rows = rng.permutation(60)[:25]
    queries = corpus[rows] + 0.4 * normal(25, seed=3)
    found = find_the_original(queries, ids[rows], ids, corpus, ks=(1, 5))
    for k, trials in found.items():
        hits = [
            sorted(range(60), key=lambda i, query=query: -float(query @ corpus[i])).index(row) < k
            for query, row in zip(unit(queries), rows, strict=True)
        ]
        assert trials.scores.tolist() == hits


def test_an_encoder_that_maps_all_to_one_point_scores_by_chance():
    ids = np.arange(50)
    for corpus in (np.ones((50, 4), np.float32), np.zeros((50, 4), np.float32)):
        found = find_the_original(corpus, ids, ids, corpus, ks=(1, 10))
        assert found[1].mean == pytest.approx(1 / 50)
        assert found[10].mean == pytest.approx(10 / 50)


def test_a_query_without_its_original_is_refused():
    with pytest.raises(ValueError, match="not in the corpus"):
        find_the_original(normal(1), np.array([7]), np.arange(3), normal(3))


def test_knn_accuracy_equals_a_loop_and_leaves_each_row_out():
    vectors = normal(40, seed=5)
    labels = drawn_labels(40, 3, seed=6)
    k, right = 4, []
    for i in range(40):
        near = sorted(
            (j for j in range(40) if j != i), key=lambda j, i=i: -float(vectors[i] @ vectors[j])
        )
        votes: dict[str, tuple[int, float]] = {}
        for j in near[:k]:
            count, total = votes.get(labels[j], (0, 0.0))
            votes[labels[j]] = (count + 1, total + float(vectors[i] @ vectors[j]))
        right.append(max(votes, key=votes.__getitem__) == labels[i])
    assert knn_accuracy(vectors, labels, k).scores.tolist() == right


def test_knn_accuracy_without_structure_is_chance():
    accuracy = knn_accuracy(normal(1000), ["a", "b"] * 500, 5).mean
    assert abs(accuracy - 0.5) < 4 * math.sqrt(0.25 / 1000)


def rounded_cosines(vectors):
    units = directions(vectors)
    return np.rint((units @ units.T) * np.float32(1 / TIE)).astype(int)


@settings(max_examples=25, derandomize=True)
@given(rows=st.integers(6, 40), classes=st.integers(1, 4), seed=st.integers(0, 99))
def test_average_precision_is_that_of_scikit_learn_with_and_without_ties(rows, classes, seed):
    labels = drawn_labels(rows, classes, seed)
    for vectors in (normal(rows, seed=seed), coarse(rows, seed=seed)):
        cosines = rounded_cosines(vectors)
        expected = {}
        for i in range(rows):
            others = [j for j in range(rows) if j != i]
            same = [labels[j] == labels[i] for j in others]
            if any(same):
                score = average_precision_score(same, cosines[i, others])
                expected.setdefault(labels[i], []).append(score)
        retrieved = retrieve_classes(vectors, labels)
        by_class = retrieved.precision.by_class()
        for name, scores in expected.items():
            assert by_class[retrieved.classes.index(name)] == pytest.approx(np.mean(scores))
        means = [np.mean(scores) for scores in expected.values()]
        assert retrieved.precision.mean == pytest.approx(np.mean(means))


def test_average_precision_of_a_hand_made_ranking():
    # Seen from the first: its class at places 1 and 3 of 4. (1/1 + 2/3) / 2.
    angles = np.radians([0, 10, 20, 30, 40])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    retrieved = retrieve_classes(vectors, ["a", "a", "b", "a", "b"])
    assert retrieved.precision.scores[0] == pytest.approx(5 / 6)
    assert retrieved.classes == ("a", "b")
    assert retrieved.precision.classes.tolist() == [0, 0, 1, 0, 1]


@settings(max_examples=15, derandomize=True)
@given(rows=st.integers(6, 11), k=st.integers(1, 7), seed=st.integers(0, 99))
def test_a_hit_among_the_first_k_is_that_of_all_orders_of_ties(rows, k, seed):
    vectors, labels = coarse(rows, dim=2, seed=seed), ["a", "b", *drawn_labels(rows - 2, 2, seed)]
    if min(labels.count("a"), labels.count("b")) < 2:
        return
    cosines = rounded_cosines(vectors)
    hits = retrieve_classes(vectors, labels, ks=(k,)).found[k].scores
    for i in range(rows):
        others = sorted((j for j in range(rows) if j != i), key=lambda j, i=i: -cosines[i, j])
        last = cosines[i, others[min(k, len(others)) - 1]]
        sure = [j for j in others if cosines[i, j] > last]
        tied = [j for j in others if cosines[i, j] == last]
        ways = list(combinations(tied, min(k, len(others)) - len(sure)))
        expected = np.mean([any(labels[j] == labels[i] for j in [*sure, *way]) for way in ways])
        assert hits[i] == pytest.approx(expected)


def test_search_by_class_is_chance_when_all_pictures_are_one_point():
    vectors, labels = np.ones((30, 4), np.float32), ["a"] * 10 + ["b"] * 20
    retrieved = retrieve_classes(vectors, labels, ks=(1,))
    np.testing.assert_allclose(retrieved.precision.by_class(), [9 / 29, 19 / 29])
    np.testing.assert_allclose(retrieved.found[1].by_class(), [9 / 29, 19 / 29])


def test_search_by_class_is_perfect_on_classes_apart_and_does_not_depend_on_order():
    rng = np.random.default_rng(0)
    labels = [f"c{i % 3}" for i in range(60)]
    vectors = np.eye(3, 8)[[i % 3 for i in range(60)]] + 0.05 * rng.normal(size=(60, 8))
    apart = retrieve_classes(vectors, labels)
    assert apart.precision.mean == 1
    assert apart.found[1].mean == apart.found[10].mean == 1
    noise = normal(60)
    order = rng.permutation(60)
    shuffled = retrieve_classes(noise[order], [labels[i] for i in order])
    np.testing.assert_allclose(
        shuffled.precision.scores, retrieve_classes(noise, labels).precision.scores[order]
    )


def test_queries_in_several_blocks_score_as_in_one(monkeypatch):
    vectors, labels = coarse(50, dim=4), drawn_labels(50, 3)
    whole = retrieve_classes(vectors, labels), knn_accuracy(normal(50), labels)
    monkeypatch.setattr("index.retrieval.BLOCK_ROWS", 7)
    again = retrieve_classes(vectors, labels), knn_accuracy(normal(50), labels)
    assert again[0].precision.scores.tolist() == whole[0].precision.scores.tolist()
    assert again[0].found[10].scores.tolist() == whole[0].found[10].scores.tolist()
    assert again[1].scores.tolist() == whole[1].scores.tolist()


def test_a_picture_alone_in_its_class_asks_nothing_and_stays_in_the_way():
    vectors = np.array([[1, 0], [0.8, 0.6], [0.9, 0.1]], np.float32)
    retrieved = retrieve_classes(vectors, ["a", "a", "alone"], ks=(1,))
    assert retrieved.precision.scores.tolist() == [0.5, 0.5]
    assert retrieved.found[1].scores.tolist() == [0, 0]
    with pytest.raises(ValueError, match="none of 3 classes has two"):
        retrieve_classes(vectors, ["a", "b", "c"])
