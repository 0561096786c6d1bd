"""Measuring an encoder beside an untrained one and raw pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.evaluate_job import EvaluateConfig, evaluate

CONFIG = EvaluateConfig(
    corpus="digits", encoder="tiny", num_queries=20, labels_per_class=(1, 2), num_draws=2, knn_k=1
)


@pytest.mark.ray
def test_every_source_of_vectors_is_measured_on_the_same_pictures(
    library: Any, local_ray: Any
) -> None:
    report = evaluate(CONFIG, library.context)
    assert (report["num_pictures"], report["num_queries"]) == (30, 20)
    assert report["corpus_id"] == library.catalog.corpus_id
    assert list(report["figures"]) == ["trained", "trained projector", "random init", "raw pixels"]
    for figures in report["figures"].values():
        assert list(figures) == [
            "recall@1", "recall@10", "kNN-1", "1 labels/class", "2 labels/class",
        ]  # fmt: skip
        assert all(0 <= figure["value"] <= 1 for figure in figures.values())
        assert figures["recall@1"]["low"] <= figures["recall@1"]["value"]
        assert figures["recall@1"]["value"] <= figures["recall@10"]["value"]
        assert (figures["recall@1"]["n"], figures["2 labels/class"]["n"]) == (20, 2)
    assert evaluate(CONFIG, library.context) == report

    # The encoder is an untrained one, drawn with seed 0: so is its twin, and they agree.
    assert report["figures"]["trained"] == report["figures"]["random init"]
    other = evaluate(replace(CONFIG, seed=1), library.context)["figures"]
    assert other["trained"] != other["random init"]

    # Files that have gone since the scan are left out of the queries, and stop nothing.
    for path in sorted(Path(library.pictures).rglob("*.png"))[:10]:
        path.unlink()
    few = evaluate(replace(CONFIG, error_budget=0.5, num_queries=30), library.context)
    assert few["num_queries"] == 20


@pytest.mark.parametrize(
    "setting",
    [{"num_queries": 0}, {"labels_per_class": ()}, {"labels_per_class": (0,)}, {"error_budget": 2}],
)
def test_settings_out_of_range_say_what_is_allowed(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))} "):
        replace(CONFIG, **setting)
