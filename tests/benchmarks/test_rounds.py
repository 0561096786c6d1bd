from __future__ import annotations

import doctest

import pytest

import benchmarks.rounds
from benchmarks.rounds import Spread, ratio, spread

ROUNDS = [
    {"ours": {"rate": 30.0}, "theirs": {"rate": 10.0}},
    {"ours": {"rate": 8.0}, "theirs": {"rate": 2.0}},
    {"ours": {"rate": 40.0}, "theirs": {"rate": 20.0}},
]


def test_examples_are_true() -> None:
    result = doctest.testmod(benchmarks.rounds)
    assert result.attempted > 0
    assert result.failed == 0


def test_a_spread_is_median_and_range() -> None:
    assert spread([4.0, 1.0, 3.0, 2.0]) == Spread(median=2.5, low=1.0, high=4.0, n=4)


def test_ratios_are_taken_within_each_round_and_not_between_medians() -> None:
    found = ratio(ROUNDS, "ours", "theirs", "rate")
    assert (found.low, found.median, found.high) == (2.0, 3.0, 4.0)
    medians = [spread([one[name]["rate"] for one in ROUNDS]).median for name in ("ours", "theirs")]
    assert medians == [30.0, 10.0]


def test_a_ratio_is_the_inverse_of_the_other_way_round() -> None:
    there, back = (
        ratio(ROUNDS, *pair, "rate") for pair in (("ours", "theirs"), ("theirs", "ours"))
    )
    assert there.median == pytest.approx(1 / back.median)
    assert there.low == pytest.approx(1 / back.high)
