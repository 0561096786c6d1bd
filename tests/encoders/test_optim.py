import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from encoders.optim import LARS, OptimConfig, build_optimizer, learning_rate, set_learning_rate

EVERY_PARAMETER = ("0.weight", "0.bias", "1.weight", "1.bias")


def test_lars_follows_five_steps_written_in_numpy():
    generator = np.random.default_rng(0)
    weight, bias = generator.normal(size=(3, 4)), generator.normal(size=3)
    parameters = [nn.Parameter(torch.tensor(weight)), nn.Parameter(torch.tensor(bias))]
    optimizer = LARS(parameters, lr=0.5, momentum=0.9, weight_decay=1e-2, trust_coefficient=0.02)
    velocities = [np.zeros_like(weight), np.zeros_like(bias)]
    for step in range(5):
        rate = 0.5 / (1 + step)
        gradients = [generator.normal(size=(3, 4)), generator.normal(size=3)]
        penalised = gradients[0] + 1e-2 * weight
        local = 0.02 * np.linalg.norm(weight) / np.linalg.norm(penalised)
        velocities[0] = 0.9 * velocities[0] + rate * local * penalised
        velocities[1] = 0.9 * velocities[1] + rate * gradients[1]
        weight, bias = weight - velocities[0], bias - velocities[1]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = torch.tensor(gradient)
        set_learning_rate(optimizer, rate)
        optimizer.step()
    np.testing.assert_allclose(parameters[0].detach().numpy(), weight, rtol=1e-12)
    np.testing.assert_allclose(parameters[1].detach().numpy(), bias, rtol=1e-12)


def test_a_lars_step_does_not_depend_on_the_scale_of_the_gradient():
    steps = []
    for scale in (1.0, 10.0):
        parameter = nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
        parameter.grad = scale * torch.arange(6.0, dtype=torch.float64).view(2, 3)
        LARS([parameter], lr=0.1).step()
        steps.append(1 - parameter.detach())
    torch.testing.assert_close(steps[0], steps[1])


@pytest.mark.parametrize("what", ["weight", "gradient"])
def test_lars_survives_a_zero_weight_or_gradient(what):
    parameter = nn.Parameter(torch.zeros(2, 2) if what == "weight" else torch.ones(2, 2))
    parameter.grad = torch.ones(2, 2) if what == "weight" else torch.zeros(2, 2)
    before = parameter.detach().clone()
    LARS([parameter], lr=0.1).step()
    torch.testing.assert_close(parameter.detach(), before - 0.1 * parameter.grad)


@pytest.mark.parametrize(
    ("decay_all", "expected"),
    [(False, {"0.weight": 0.1}), (True, dict.fromkeys(EVERY_PARAMETER, 0.1))],
)
def test_decay_spares_biases_and_norms_unless_told_otherwise(decay_all, expected):
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    names = {parameter: name for name, parameter in net.named_parameters()}
    optimizer = build_optimizer(net, OptimConfig(weight_decay=0.1, decay_all=decay_all))
    decays = {
        names[parameter]: group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert decays == dict.fromkeys(EVERY_PARAMETER, 0.0) | expected


def test_frozen_parameters_are_left_out():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    optimizer = build_optimizer(net, OptimConfig())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_each_optimiser_lowers_a_quadratic_and_restores_exactly(name):
    net = nn.Linear(3, 1)
    config = OptimConfig(name=name, trust_coefficient=0.1 if name == "lars" else None)
    optimizer = build_optimizer(net, config)
    x = torch.randn(16, 3)

    def step(module, with_optimizer):
        with_optimizer.zero_grad()
        loss = (module(x) - 2).square().mean()
        loss.backward()
        set_learning_rate(with_optimizer, 0.05)
        with_optimizer.step()
        return loss.item()

    losses = [step(net, optimizer) for _ in range(30)]
    assert losses[-1] < losses[0] / 2
    twin = copy.deepcopy(net)
    twin_optimizer = build_optimizer(twin, config)
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(net, optimizer)
    step(twin, twin_optimizer)
    assert torch.equal(net.weight, twin.weight)


@pytest.mark.parametrize(("share", "num_steps"), [(0.3, 50), (0.25, 8), (0.5, 7)])
def test_one_cycle_is_torchs_without_the_momentum_cycle(share, num_steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.2, total_steps=num_steps, pct_start=share, cycle_momentum=False
    )
    config = OptimConfig(lr=0.2, schedule="one_cycle", warmup_share=share)
    for step in range(num_steps):
        assert learning_rate(config, step, num_steps, 64) == pytest.approx(
            scheduler.get_last_lr()[0], rel=1e-9, abs=1e-12
        )
        optimizer.step()
        if step < num_steps - 1:
            scheduler.step()


def test_cosine_warms_up_linearly_and_falls_to_zero():
    config = OptimConfig(lr=1.0, warmup_share=0.2)
    rates = [learning_rate(config, step, 20, 256) for step in range(20)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4:] == pytest.approx(
        [(1 + math.cos(math.pi * step / 16)) / 2 for step in range(16)]
    )


def test_cosine_can_end_above_zero():
    config = OptimConfig(lr=1.0, final_share=0.1)
    rates = [learning_rate(config, step, 20, 256) for step in (0, 10, 20)]
    assert rates == pytest.approx([1.0, 0.55, 0.1])


def test_a_capped_weight_moves_by_the_smaller_of_its_own_rate_and_the_learning_rate():
    """Weight of norm 2: its own rate is 0.02 * 2 / gradient norm, and the rate 0.3 is no factor."""
    for gradient_norm, rate in ((0.4, 0.1), (0.04, 0.3)):
        parameter = nn.Parameter(torch.full((2, 2), 1.0, dtype=torch.float64))
        parameter.grad = torch.full((2, 2), gradient_norm / 2, dtype=torch.float64)
        LARS([parameter], lr=0.3, trust_coefficient=0.02, trust_cap=True).step()
        expected = torch.full((2, 2), 1 - rate * gradient_norm / 2, dtype=torch.float64)
        torch.testing.assert_close(parameter.detach(), expected)


@pytest.mark.parametrize(
    ("num_steps", "schedule"), [(1, "one_cycle"), (2, "one_cycle"), (1, "cosine")]
)
def test_the_shortest_runs_have_a_learning_rate(num_steps, schedule):
    config = OptimConfig(schedule=schedule, warmup_share=0.3)
    assert all(0 < learning_rate(config, step, num_steps, 8) <= 0.1 for step in range(num_steps))


@pytest.mark.parametrize(("rule", "factor"), [("none", 1), ("linear", 4), ("sqrt", 2)])
def test_the_rate_scales_with_the_global_batch_as_named(rule, factor):
    config = OptimConfig(lr=0.3, lr_scaling=rule)
    assert learning_rate(config, 0, 10, 1024) == pytest.approx(0.3 * factor)


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "adam"},
        {"lr": 0.0},
        {"lr": math.nan},
        {"lr_scaling": "quadratic"},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"name": "lars", "decay_all": True},
        {"schedule": "step"},
        {"warmup_share": 1.0},
        {"schedule": "one_cycle", "warmup_share": 0.0},
        {"trust_coefficient": 0.1},
        {"name": "lars", "trust_coefficient": 0.0},
        {"final_share": -0.1},
        {"final_share": 1.5},
        {"schedule": "one_cycle", "warmup_share": 0.3, "final_share": 0.1},
        {"trust_cap": True},
        {"clip_norm": 0.0},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=f"optim {list(settings)[-1]} is .* must be"):
        OptimConfig(**settings)
