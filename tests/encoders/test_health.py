import math

import numpy as np
import pytest
import torch

from encoders.health import (
    CollapseError,
    HealthConfig,
    NonFiniteError,
    class_discrimination,
    dead_dimensions,
    discrimination,
    effective_rank,
    embedding_std,
    health_metrics,
    information,
    possible_rank,
)
from encoders.losses import unit_rows


def sphere(num: int, dim: int, seed: int = 0) -> torch.Tensor:
    return unit_rows(torch.randn(num, dim, generator=torch.Generator().manual_seed(seed)))


def test_the_std_is_one_on_a_sphere_and_zero_at_a_point():
    assert embedding_std(sphere(1000, 32)).item() == pytest.approx(1, abs=0.02)
    assert embedding_std(torch.ones(10, 32) / math.sqrt(32)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_the_effective_rank_counts_even_directions(rank):
    rows = torch.eye(8)[:rank].repeat(10, 1)
    assert effective_rank(rows).item() == pytest.approx(rank, rel=1e-4)


def test_the_effective_rank_is_the_entropy_of_singular_values():
    rows = torch.diag(torch.tensor([3.0, 1.0]))
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(rows).item() == pytest.approx(expected, rel=1e-6)


def test_the_figures_equal_a_loop():
    a, b = sphere(6, 4), sphere(6, 4, seed=1)
    figures = health_metrics(a, b)
    same = [float(x @ y) for x, y in zip(a, b, strict=True)]
    different = [float(a[i] @ b[j]) for i in range(6) for j in range(6) if i != j]
    pairs = [math.exp(-2 * float((a[i] - a[j]).norm() ** 2)) for i in range(6) for j in range(i)]
    assert figures["margin"] == pytest.approx(sum(same) / 6 - sum(different) / 30, abs=1e-5)
    assert figures["alignment"] == pytest.approx(sum(2 - 2 * c for c in same) / 6, rel=1e-5)
    assert figures["uniformity"] == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-4)


def test_perfect_views_align_and_a_collapse_shows_in_every_figure():
    spread, point = sphere(64, 16), torch.eye(16)[:1].repeat(64, 1)
    healthy, collapsed = health_metrics(spread, spread), health_metrics(point, point)
    assert healthy["alignment"] == collapsed["alignment"] == pytest.approx(0, abs=1e-6)
    assert healthy["margin"] == pytest.approx(1, abs=0.05)
    assert collapsed["margin"] == pytest.approx(0, abs=1e-6)
    assert healthy["uniformity"] < -2 < collapsed["uniformity"] == pytest.approx(0, abs=1e-6)
    assert healthy["effective_rank"] > 14 > 1.1 > collapsed["effective_rank"]


def naive_discrimination(cosines) -> float:
    wins = []
    for i, row in enumerate(cosines.tolist()):
        wins += [(row[i] > x) + 0.5 * (row[i] == x) for j, x in enumerate(row) if j != i]
    return sum(wins) / len(wins)


def test_discrimination_counts_how_often_the_own_view_is_nearer():
    a, b = sphere(9, 4), sphere(9, 4, seed=1)
    assert discrimination(a @ b.T).item() == pytest.approx(naive_discrimination(a @ b.T), abs=1e-6)
    assert discrimination(a @ a.T).item() == 1
    assert discrimination(-(a @ a.T)).item() == 0
    assert discrimination(torch.ones(5, 5)).item() == 0.5, "a collapse tells nothing apart"


def test_discrimination_of_random_rows_strays_from_a_half_as_stated():
    found = [discrimination(sphere(50, 8, i) @ sphere(50, 8, 100 + i).T).item() for i in range(100)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.02)
    assert np.std(found) == pytest.approx(0.29 / math.sqrt(50), rel=0.3)


def test_class_discrimination_equals_a_loop_and_knows_no_own_view():
    a, b = sphere(10, 4), sphere(10, 4, seed=1)
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3])
    cosines = (a @ b.T).tolist()
    means = []
    for i in range(10):
        others = [j for j in range(10) if j != i]
        same = [cosines[i][j] for j in others if labels[j] == labels[i]]
        rest = [cosines[i][j] for j in others if labels[j] != labels[i]]
        if same:
            means.append(sum(x > y for x in same for y in rest) / len(same) / len(rest))
    assert class_discrimination(a, b, labels).item() == pytest.approx(sum(means) / 9, abs=1e-6)


def test_dead_dimensions_are_those_that_do_not_vary():
    rows = sphere(20, 6)
    rows[:, 1] = 0.3
    rows[:, 4] *= 1e-3
    assert dead_dimensions(rows).item() == 2
    assert dead_dimensions(torch.ones(4, 3)).item() == 0


def test_information_reaches_its_ceiling_for_perfect_views_and_is_zero_for_equal_ones():
    rows = torch.eye(16)
    assert information(rows, rows, 0.01).item() == pytest.approx(math.log(16), abs=1e-4)
    assert information(rows[:1].repeat(8, 1), rows[:1].repeat(8, 1), 0.1).item() == pytest.approx(0)
    a, b = sphere(6, 4), sphere(6, 4, seed=1)
    losses = [
        math.log(sum(math.exp(float(x @ y) / 0.2) for y in b)) - float(x @ b[i]) / 0.2
        for i, x in enumerate(a)
    ]
    assert information(a, b, 0.2).item() == pytest.approx(math.log(6) - sum(losses) / 6, abs=1e-5)


@pytest.mark.parametrize(("num", "dim", "rank"), [(40, 8, 8), (8, 40, 8), (1500, 1200, 1024)])
def test_the_possible_rank_is_bounded_by_rows_dimensions_and_what_is_looked_at(num, dim, rank):
    assert possible_rank(num, dim) == rank


@pytest.mark.parametrize("kind", [CollapseError, NonFiniteError])
def test_the_errors_survive_the_way_between_processes(kind):
    made_of = kind("why").__reduce__()
    again = made_of[0](*made_of[1])
    assert type(again) is kind
    assert str(again) == "why"


@pytest.mark.parametrize(
    "settings",
    [
        {"every": 0},
        {"patience": 0},
        {"grace_steps": -1},
        {"min_std": 1.0},
        {"min_rank": -1},
        {"min_rank_share": 1.0},
        {"held_out": -1},
        {"held_out_share": 1.0},
    ],
)
def test_rules_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} "):
        HealthConfig(**settings)
