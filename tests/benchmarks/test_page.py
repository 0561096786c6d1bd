from __future__ import annotations

import doctest
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import benchmarks.accuracy_table
import benchmarks.page
import benchmarks.tables
from benchmarks.accuracy_table import compared, verdict
from benchmarks.page import SECTIONS, command_of, render
from benchmarks.rounds import Spread
from benchmarks.tables import judged, measured_on
from cluster.where import CHECKOUT
from index.trials import Difference

MACHINE = {
    "cpu": "Abacus", "cores": 2, "memory_gb": 3, "system": "x", "python": "3.11", "torch": "2.9",
    "load": 0.1,
}  # fmt: skip
STAMP = {"command": "python -m benchmarks.it", "date": "2026-01-01 00:00", "machine": MACHINE}


def write(folder: Path, name: str, **body: Any) -> None:
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**STAMP, **body}))


def accuracy(folder: Path, contestant: str, seed: int, knn: float) -> None:
    write(
        folder,
        f"accuracy_60s/{contestant}-seed{seed}",
        contestant=contestant,
        seed=seed,
        budget_s=60,
        batch=128,
        settings={"lr": 0.1},
        run={"steps": 100},
        knn20=knn,
        **{f"labels_{n}": [knn - 0.1, knn + 0.1] for n in (1, 5, 10)},
    )


@pytest.mark.parametrize("module", [benchmarks.tables, benchmarks.accuracy_table])
def test_examples_are_true(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_without_results_every_section_says_how_to_measure_it(tmp_path: Path) -> None:
    page = render(tmp_path)
    for title, name, _ in SECTIONS:
        assert f"## {title}\n\nNot measured yet: `{command_of(name)}`." in page
    assert doctest.testmod(benchmarks.page).failed == 0
    assert "Not measured yet: `make bench-accuracy`." in page


def test_a_table_says_who_in_it_was_measured_at_another_time() -> None:
    assert "2026-01-01 00:00 UTC; `python" in measured_on(STAMP)
    earlier = {"b": "2025-12-24", "a": "2025-12-31", "c": "2025-12-24"}
    line = measured_on({**STAMP, "earlier": earlier})
    assert "2026-01-01 00:00 UTC (b, c: 2025-12-24; a: 2025-12-31); `python" in line


def test_a_goal_that_is_reached_by_the_median_alone_is_reached() -> None:
    found = Spread(median=20.0, low=15.0, high=22.0, n=5)
    assert judged("x", found, 20.0).endswith("reached by the median, not by every round.")
    assert judged("x", found, 15.0).endswith(": reached.")
    assert judged("x", found, 22.0, at_least=False).endswith(": reached.")
    assert "**missed**" in judged("x", found, 20.1)
    assert "**missed**" in judged("x", found, 19.9, at_least=False)
    assert "reached" in judged("x", found, 20.0, at_least=False)


def test_a_missed_goal_of_augmentation_is_said_beside_those_reached(tmp_path: Path) -> None:
    rates = {"lookalike": 100.0, "lightly": 10.0, "torchvision": 50.0, "kornia": 25.0}
    rounds = [{name: {"views_per_s": rate * k} for name, rate in rates.items()} for k in (1, 2, 4)]
    write(
        tmp_path,
        "augmentation",
        settings={"pictures": 8, "batch": 4, "seed": 0},
        cases=[{"size": size, "rounds": rounds} for size in (32, 96)],
    )
    page = render(tmp_path)
    assert "- 32 px, times lightly: 10 (10 to 10), n = 3; goal at least 20: **missed**." in page
    assert "- 96 px, times lightly: 10 (10 to 10), n = 3; goal at least 8: reached." in page
    assert "200 (100 to 400)" in page
    assert "100 (50 to 200): 2x" in page
    assert "Abacus, 2 cores" in page
    assert "`python -m benchmarks.it`" in page


def test_the_faster_of_lightlys_loaders_is_the_one_to_beat(tmp_path: Path) -> None:
    rates = {"lookalike": 90.0, "lightly, 2 loaders": 30.0, "lightly, 8 loaders": 45.0}
    one = {name: {"images_per_s": rate} for name, rate in {**rates, "bare loop": 120.0}.items()}
    settings = {"parameters": 7, "batch": 4, "pictures": 8, "warmup": 1, "seed": 0}
    write(tmp_path, "simclr_end_to_end", settings=settings, rounds=[one, one])
    page = render(tmp_path)
    assert "- times lightly, 8 loaders: 2 (2 to 2), n = 2; goal at least 1.5: reached." in page
    assert "- of the bare loop: 0.75 (0.75 to 0.75), n = 2; goal at least 0.9: **missed**." in page


def test_overhead_is_what_a_step_takes_longer_in_percent(tmp_path: Path) -> None:
    rounds = [
        {
            "Ray Train": {"images_per_s": rate, "images_per_s_median": rate},
            "plain process": {"images_per_s": 100.0, "images_per_s_median": 100.0},
        }
        for rate in (100.0, 80.0, 50.0)
    ]
    settings = {"batch": 4, "epochs": 1, "pictures": 8, "warmup": 1, "seed": 0}
    write(tmp_path, "train_overhead", settings=settings, rounds=rounds)
    assert "in %: 25 (0 to 100), n = 3; goal at most 3: **missed**." in render(tmp_path)


def test_only_the_longest_budget_is_shown_and_methods_meet_their_rivals(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        accuracy(tmp_path, "lookalike-simclr", seed, 0.80 + seed / 100)
        accuracy(tmp_path, "lightly-simclr", seed, 0.70 + seed / 50)
    accuracy(tmp_path, "raw-pixels", 0, 0.9)
    write(tmp_path, "accuracy_5s/broken", contestant="lightly-byol")
    page = render(tmp_path)
    assert "as take 60 s on all cores" in page
    assert "lightly-byol" not in page
    assert "| lookalike-simclr | lightly-simclr | +9.0 (+6.5 to +11.5) |" in page
    row = next(line for line in page.splitlines() if "| lookalike-simclr | raw-pixels |" in line)
    assert row.count("**missed**") == 4
    assert "| lookalike-simclr | 81.0 ±1.0 |" in page


def test_runs_are_paired_by_seed_and_a_baseline_of_one_run_meets_them_all() -> None:
    def runs(values: dict[int, float]) -> list[dict[str, Any]]:
        return [{"seed": seed, "knn20": value} for seed, value in values.items()]

    ours = runs({0: 0.5, 1: 0.6, 2: 0.9})
    found = compared(ours, runs({2: 0.8, 1: 0.5, 7: 0.0}), "knn20")
    assert found.n == 2
    assert found.value == pytest.approx(0.1)
    assert compared(ours, runs({5: 0.4}), "knn20").n == 3
    assert compared(ours, runs({7: 0.4, 8: 0.4}), "knn20").n == 0


def test_a_single_seed_below_is_missed_and_no_interval_is_made_up() -> None:
    nan = float("nan")
    assert verdict(Difference(value=-0.01, low=-1, high=1, n=1)) == "-1.0 (n = 1) **missed**"
    assert verdict(Difference(value=nan, low=nan, high=nan, n=0)) == "no common seed"
    assert np.isnan(
        compared([], [{"seed": 0, "knn20": 0.1}, {"seed": 1, "knn20": 0.1}], "knn20").value
    )


def test_an_index_shows_its_fastest_setting_that_reaches_the_recall(tmp_path: Path) -> None:
    curve = [
        {"setting": str(n), "recall": recall, "queries_per_s": rate}
        for n, recall, rate in ((1, 0.91, 900.0), (2, 0.96, 300.0), (3, 0.97, 400.0))
    ]
    sizes = {"grown_mb": 7.0, "disk_bytes_per_vector": 272.0, "build_s": 2.0, "peak_mb": 50.0}
    settings = {
        "k": 10, "vectors": 5000, "dim": 32, "clusters": 50, "noise": 1.0, "queries": 9, "seed": 0,
        "source": "clusters",
    }  # fmt: skip
    write(
        tmp_path, "index_curves", settings=settings, rounds=[{"graph": {**sizes, "curve": curve}}]
    )
    assert "| graph | 900 | 400 | not reached | 7 | 272 | 2 | 50 |" in render(tmp_path)


def test_readme_says_no_number_that_the_page_does_not() -> None:
    readme, page = (
        (CHECKOUT / name).read_text(encoding="utf-8")
        for name in ("README.md", "docs/benchmarks.md")
    )
    section = readme.partition("## Beside others")[2].partition("\n## ")[0]
    rows = [line.split("|", 2)[2] for line in section.splitlines() if line.startswith("| ")]
    said = [number.rstrip(",") for row in rows for number in re.findall(r"\d[\d,]*\.?\d*", row)]
    assert len(said) > 15
    there = {number.rstrip(",") for number in re.findall(r"\d[\d,]*\.?\d*", page)}
    assert set(said) <= there
