import math

import pytest
import torch

from encoders.health import (
    CollapseError,
    HealthConfig,
    HealthWatch,
    NonFiniteError,
    effective_rank,
    embedding_std,
    health_metrics,
    possible_rank,
)
from encoders.losses import unit_rows

SICK = {"embedding_std": 0.001, "effective_rank": 1.0}
WELL = {"embedding_std": 0.9, "effective_rank": 30.0}


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


def watch(**settings) -> HealthWatch:
    return HealthWatch(HealthConfig(**settings), "Lower optim.lr.")


def test_a_collapse_stops_the_run_and_says_since_when_and_what_to_do():
    health = watch(patience=3, grace_steps=0)
    health.check(20, WELL, 128)
    health.check(40, SICK, 128)
    health.check(60, SICK, 128)
    with pytest.raises(CollapseError, match=r"since step 40 .* step 80 .*0\.0010.*Lower optim\.lr"):
        health.check(80, SICK, 128)


def test_a_low_rank_alone_is_a_collapse_whatever_the_dimension():
    with pytest.raises(CollapseError, match=r"few directions.* rank is 1\.2 of 8 .*least 1\.5 is"):
        watch(patience=1, grace_steps=0).check(20, WELL | {"effective_rank": 1.2}, 8)


def test_few_of_many_possible_directions_are_a_collapse():
    health = watch(patience=1, grace_steps=0, min_rank_share=0.1)
    health.check(20, WELL | {"effective_rank": 13.0}, 128)
    health.check(40, WELL | {"effective_rank": 5.0}, 48)
    with pytest.raises(CollapseError, match=r"rank is 12\.0 of 128 .*at least 12\.8.*Lower optim"):
        health.check(60, WELL | {"effective_rank": 12.0}, 128)


def test_a_method_may_gather_two_classes_on_one_line_but_not_in_one_point():
    health = watch(patience=1, grace_steps=0)
    line = torch.eye(16)[:1].repeat(64, 1)
    line[::2] *= -1
    health.check(20, health_metrics(line, line), None)
    with pytest.raises(CollapseError, match="the same embedding"):
        health.check(40, health_metrics(line.abs(), line.abs()), None)


@pytest.mark.parametrize(("num", "dim", "rank"), [(40, 8, 8), (8, 40, 8), (1500, 1200, 1024)])
def test_the_possible_rank_is_bounded_by_rows_dimensions_and_what_is_looked_at(num, dim, rank):
    assert possible_rank(torch.zeros(num, dim)) == rank


def test_a_run_that_recovers_or_has_just_begun_goes_on():
    health = watch(patience=2, grace_steps=100)
    for step in (20, 40, 60, 80):
        health.check(step, SICK, 128)
    for step in range(100, 400, 40):
        health.check(step, SICK, 128)
        health.check(step + 20, WELL, 128)


def test_a_restored_watch_continues_counting():
    health, restored = (watch(patience=2, grace_steps=0) for _ in range(2))
    health.check(20, SICK, 128)
    restored.load_state_dict(health.state_dict())
    with pytest.raises(CollapseError, match="since step 20"):
        restored.check(40, SICK, 128)


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
    ],
)
def test_rules_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} "):
        HealthConfig(**settings)
