"""Which pictures count in which figure, and what sets sources apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cluster.contenders import Sample
from cluster.figures import FigureConfig, compare, labelled_sample, measure

CONFIG = FigureConfig(labels_per_class=(1, 3), num_draws=3, knn_k=2)


def sample_of(num: int) -> Sample:
    ids = np.arange(num, dtype=np.int64) * 3
    return Sample(ids=ids, query_ids=ids[::2], queries={}, caches={})


def vectors_of(codes: np.ndarray, spread: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.eye(16)[codes]
    return np.asarray(centres + spread * rng.normal(size=(len(codes), 16)), np.float32)


def measured(labels: list[str | None], config: FigureConfig = CONFIG) -> Any:
    names = sorted({label for label in labels if label})
    codes = np.array([names.index(label) if label else 15 for label in labels])
    vectors, sample = vectors_of(codes, 0.3), sample_of(len(labels))
    labelled = labelled_sample(labels, config, 0)
    return measure(vectors, vectors[::2], sample, labelled, config, 0), labelled


def test_all_figures_are_there_when_every_class_is_large() -> None:
    figures, labelled = measured(["a", "b", "c"] * 10)
    assert {title: list(group) for title, group in figures.groups.items()} == {
        "find the original": ["recall@1", "recall@10"],
        "search by class": ["mAP", "class recall@1", "class recall@10"],
        "classify": [
            "kNN-2", "1 labels/class", "3 labels/class", "linear probe", "linear probe, balanced",
        ],
    }  # fmt: skip
    assert labelled.notes == []
    assert figures.probe_settings["num_train"] == 24


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([None] * 12, "the corpus has no labels, so nothing is measured that needs classes"),
        (["a"] * 10 + [None] * 2, "all labels are 'a', so nothing"),
    ],
)
def test_without_two_classes_only_originals_are_looked_for(
    labels: list[str | None], said: str
) -> None:
    figures, labelled = measured(labels)
    assert list(figures.groups) == ["find the original"]
    (note,) = labelled.notes
    assert said in note
    assert "--labels folder" in note


def test_a_picture_without_a_label_never_counts() -> None:
    labels: list[str | None] = ["a", "b"] * 8
    alone, _ = measured(labels)
    among, labelled = measured([*labels, *[None] * 9])
    assert "9 of 25 pictures have no label" in labelled.notes[0]
    for name, trials in alone.trials.items():
        if not name.startswith("recall"):
            assert among.trials[name].scores.tolist() == trials.scores.tolist()


def test_small_classes_are_left_out_and_named() -> None:
    _, labelled = measured(["a"] * 9 + ["b"] * 9 + ["c"] * 3 + ["d"])
    assert labelled.notes == [
        "search by class: 1 of 4 classes have fewer than 2 pictures and are left out (d).",
        "1 labels/class: 1 of 4 classes have fewer than 2 pictures and are left out (d).",
        "3 labels/class: 2 of 4 classes have fewer than 4 pictures and are left out (c, d).",
        "linear probe: 2 of 4 classes have fewer than 5 pictures and are left out (c, d).",
    ]


def test_more_labels_than_any_class_has_are_not_measured() -> None:
    figures, labelled = measured(["a", "b"] * 4, FigureConfig(labels_per_class=(50, 2)))
    assert "50 labels/class" not in figures.trials
    assert "2 labels/class" in figures.trials
    said = "50 labels/class: not measured, as it needs two classes of 51 pictures."
    assert said in labelled.notes


def test_more_neighbours_than_there_are_all_vote() -> None:
    figures, labelled = measured(["a", "b"] * 3, FigureConfig(knn_k=50))
    assert "kNN-5" in figures.trials
    assert "--knn-k 50: there are no more than 5 other pictures" in labelled.notes[-1]
    # Six pictures: that one of ten is the original, or of the class, says nothing.
    assert not {"recall@10", "class recall@10"} & set(figures.trials)


def test_many_classes_and_pictures_are_sampled_and_said_so(monkeypatch: Any) -> None:
    monkeypatch.setattr("cluster.figures.MAX_CLASSES", 3)
    labels = [f"c{number % 6}" for number in range(120)]
    config = FigureConfig(labels_per_class=(1,), probe_pictures=40)
    figures, labelled = measured(labels, config)
    assert len(labelled.names) == 120
    assert len({labelled.names[row] for row in labelled.few}) == 3
    assert len(labelled.few) == 60
    assert len(labelled.probe) == 40
    assert labelled.notes == [
        "Classifiers learn 3 of 6 classes, drawn at random.",
        "The linear probe takes 40 of 60 labelled pictures.",
    ]
    assert len(figures.trials["mAP"].scores) == 120


def test_sources_are_compared_trial_by_trial_with_the_better_baseline_and_the_best() -> None:
    labels = ["a", "b", "c"] * 20
    codes, sample = np.arange(60) % 3, sample_of(60)
    labelled = labelled_sample(labels, CONFIG, 0)
    by_source = {}
    for name, spread in (("good", 0.2), ("poor", 0.8), ("random init", 3.0), ("raw pixels", 1.2)):
        vectors = vectors_of(codes, spread)
        by_source[name] = measure(vectors, vectors[::2], sample, labelled, CONFIG, 0)
    baselines = ["random init", "raw pixels"]
    report = compare(by_source, {"good": baselines, "poor": baselines})
    cells = {source: figures["mAP"] for source, figures in report["figures"].items()}
    assert "to_best" not in cells["good"]
    assert cells["good"]["to_baseline"]["against"] == "raw pixels"
    assert cells["good"]["to_baseline"]["low"] > 0
    assert cells["poor"]["to_best"]["against"] == "good"
    assert cells["poor"]["to_best"]["high"] < 0
    assert "to_baseline" not in cells["raw pixels"]
    expected = cells["poor"]["value"] - cells["raw pixels"]["value"]
    assert cells["poor"]["to_baseline"]["value"] == pytest.approx(expected)
    assert report["figures"]["good"]["1 labels/class"]["sd"] >= 0
    assert report["classes"]["b"]["queries"] == 20
    means = [found["mAP"]["good"] for found in report["classes"].values()]
    assert np.mean(means) == pytest.approx(cells["good"]["value"])
