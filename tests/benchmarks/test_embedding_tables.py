"""What the page says of embedding, and what its pictures are."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import benchmarks.embedding_loops
from benchmarks.embedding import CASES
from benchmarks.page import render
from benchmarks.pictures import write_jpegs
from benchmarks.scaled_decoding import drift

MACHINE = {
    "cpu": "Abacus", "cores": 2, "memory_gb": 3, "system": "x", "python": "3.11", "torch": "2.9",
    "load": 0.1,
}  # fmt: skip
STAMP = {"command": "python -m benchmarks.it", "date": "2026-01-01 00:00", "machine": MACHINE}


def write(folder: Path, name: str, **body: Any) -> None:
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**STAMP, **body}))


def test_examples_are_true() -> None:
    result = doctest.testmod(benchmarks.embedding_loops)
    assert result.attempted > 0
    assert result.failed == 0


def test_each_case_meets_its_goals_or_is_said_to_miss_them(tmp_path: Path) -> None:
    rates = {
        "lookalike": 90.0,
        "bare loop": 110.0,
        "ray.data.read_images": 30.0,
        "DataLoader": 60.0,
    }
    one = {name: {"pictures_per_s": r, "whole_per_s": r / 2} for name, r in rates.items()}
    for name, size, goal in (("b", 32, 2.0), ("a", 224, 4.0)):
        settings = {"title": f"{size} px", "pictures": 5000, "size": size, "goal": goal, "seed": 0}
        write(tmp_path, f"embedding/{name}", settings=settings, rounds=[one, one])
    page = render(tmp_path)
    assert "| 32 px (5,000) | 90 (90 to 90) | 110 (110 to 110) | 60 (60 to 60) | 45 (45" in page
    assert page.index("| 32 px (5,000)") < page.index("| 224 px (5,000)")
    assert "- 32 px, of the bare loop: 0.818 (0.818 to 0.818), n = 2; goal at least 0.9:" in page
    assert "- 32 px, times read_images: 3 (3 to 3), n = 2; goal at least 2: reached." in page
    assert "- 224 px, times read_images: 3 (3 to 3), n = 2; goal at least 4: **missed**." in page
    assert "- 32 px, times the DataLoader: 1.5 (1.5 to 1.5), n = 2." in page


def test_growth_shows_time_and_memory_of_each_step_at_each_size(tmp_path: Path) -> None:
    cases = [
        {
            "pictures": num,
            "rounds": [
                {
                    "scan": {"seconds": num / 1000, "peak_mb": 3.0},
                    "embed": {"seconds": 2.0, "peak_mb": 1.0, "actor_peak_mb": 400},
                }
            ],
        }
        for num in (1000, 4000)
    ]
    write(tmp_path, "growth", settings={"edge": 8, "size": 32, "seed": 0}, cases=cases)
    page = render(tmp_path)
    assert "| scan | 1 s, 3 MB | 4 s, 3 MB |" in page
    assert "| embed | 2 s, 1 MB, actor 400 MB | 2 s, 1 MB, actor 400 MB |" in page


def test_drift_is_the_distance_of_two_ways_beside_that_of_the_nearest_other() -> None:
    full = np.eye(3, dtype=np.float32)
    scaled = full.copy()
    scaled[0] = [0.6, 0.8, 0.0]
    found = drift(scaled, full)
    assert found["moved_most"] == pytest.approx(0.4)
    assert found["moved_median"] == 0
    assert found["nearest_other_median"] == pytest.approx(1.0)
    assert found["finds_itself"] == pytest.approx(2 / 3)


def test_photographs_of_a_size_are_written_in_turn(tmp_path: Path) -> None:
    write_jpegs(5, tmp_path, size=(64, 48), distinct=2, seed=0)
    files = sorted(tmp_path.rglob("*.jpg"))
    assert len(files) == 5
    assert len({path.read_bytes() for path in files}) == 2
    with Image.open(files[0]) as image:
        assert image.size == (64, 48)


def test_cases_have_a_quarter_to_warm_up_with() -> None:
    for case in CASES.values():
        assert case.num >= 4 * case.shard_rows
        assert case.num % case.shard_rows == 0
