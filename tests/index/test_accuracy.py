import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from index.accuracy import STRENGTHS, few_label_accuracy, linear_probe
from index.vectors import unit


def normal(rows, dim=8, seed=0):
    return unit(np.random.default_rng(seed).normal(size=(rows, dim)))


def clusters(sizes, spread=1.0, seed=0):
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(len(sizes)), sizes)
    vectors = rng.normal(size=(len(sizes), 8))[codes] + spread * rng.normal(size=(len(codes), 8))
    return np.asarray(vectors, np.float32), [f"c{code}" for code in codes]


def test_few_label_accuracy_is_high_on_clusters_and_chance_on_noise():
    vectors, labels = clusters([50] * 4, spread=0.25)
    good = few_label_accuracy(vectors, labels, 5, seeds=range(3))
    assert good.mean > 0.95
    assert (len(good.scores), good.unit) == (3, "draws")
    noise = few_label_accuracy(normal(200), labels, 5, seeds=range(8))
    assert abs(noise.mean - 0.25) < 0.06
    assert noise.sd > 0


def test_few_label_accuracy_leaves_small_classes_out_or_refuses():
    labels = ["a"] * 20 + ["b"] * 20 + ["rare"] * 3
    vectors = np.concatenate([np.eye(2, 8).repeat(20, axis=0), normal(3)])
    vectors = vectors + 0.01 * normal(43, seed=1)
    assert few_label_accuracy(vectors, labels, 5, seeds=[0]).mean == 1
    with pytest.raises(ValueError, match="two are needed"):
        few_label_accuracy(normal(43), labels, 20, seeds=[0])


def test_draws_depend_on_seed_and_labels_alone():
    labels = ["a", "b"] * 30
    vectors = normal(60)
    rotated = vectors @ np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0]
    one = few_label_accuracy(vectors, labels, 3, seeds=range(4)).scores
    np.testing.assert_allclose(few_label_accuracy(rotated, labels, 3, range(4)).scores, one)


def test_the_linear_probe_equals_one_that_is_written_out():
    vectors, labels = clusters([10, 24, 41], spread=1.2)
    labels = np.array(labels)
    found = linear_probe(vectors, list(labels), seed=3)
    rng, parts = np.random.default_rng(3), {"learn": [], "choose": [], "test": []}
    for name in ("c0", "c1", "c2"):
        rows = list(rng.permutation(np.flatnonzero(labels == name)))
        fifth = len(rows) // 5
        parts["test"] += rows[:fifth]
        parts["choose"] += rows[fifth : 2 * fifth]
        parts["learn"] += rows[2 * fifth :]
    assert [len(parts[name]) for name in ("learn", "choose", "test")] == [47, 14, 14]

    def fit(rows, strength):
        units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        shifted = units - units[rows].mean(axis=0)
        features = shifted / np.linalg.norm(shifted, axis=1, keepdims=True)
        model = LogisticRegression(C=strength, max_iter=3000).fit(features[rows], labels[rows])
        return model.predict(features)

    chosen = [
        balanced_accuracy_score(
            labels[parts["choose"]], fit(parts["learn"], strength)[parts["choose"]]
        )
        for strength in STRENGTHS
    ]
    assert found.strength == STRENGTHS[int(np.argmax(chosen))]
    predicted = fit(parts["learn"] + parts["choose"], found.strength)[parts["test"]]
    assert found.num_train == 61
    assert found.accuracy.mean == pytest.approx(np.mean(predicted == labels[parts["test"]]))
    assert found.balanced.mean == pytest.approx(
        balanced_accuracy_score(labels[parts["test"]], predicted)
    )


def test_no_test_label_is_learnt_from():
    vectors, labels = normal(200), ["a", "b"] * 100
    # With noise for vectors, only a leak could lift it off chance.
    scores = [linear_probe(vectors, labels, seed).accuracy.mean for seed in range(6)]
    assert abs(np.mean(scores) - 0.5) < 0.12


def test_labels_in_random_order_are_learnt_by_chance_and_clusters_well():
    vectors, labels = clusters([40] * 4, spread=0.3)
    assert linear_probe(vectors, labels, seed=0).accuracy.mean > 0.9
    shuffled = list(np.random.default_rng(0).permutation(labels))
    assert linear_probe(vectors, shuffled, seed=0).accuracy.mean < 0.55


def test_the_linear_probe_leaves_small_classes_out_or_refuses():
    vectors, labels = clusters([20, 20, 4])
    assert len(np.unique(linear_probe(vectors, labels, seed=0).balanced.classes)) == 2
    with pytest.raises(ValueError, match="1 classes have 5 pictures"):
        linear_probe(*clusters([20, 4]), seed=0)


def test_one_label_of_many_classes_raises_no_doubts():
    labels = [f"c{i % 30}" for i in range(60)]
    accuracy = few_label_accuracy(np.eye(30)[np.arange(60) % 30], labels, 1, seeds=[0])
    assert accuracy.mean == 1
