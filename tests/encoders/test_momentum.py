import math

import pytest
import torch
from torch import nn

from encoders.momentum import MomentumConfig, follow, make_target


def online_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def drift(net: nn.Module, step: int) -> None:
    """Move every parameter and float buffer by a known amount, and count a batch."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(step)
        net[1].running_mean.add_(step)
        net[1].running_var.mul_(1 + step)
        net[1].num_batches_tracked.add_(1)


def test_three_steps_follow_the_closed_form_in_parameters_and_buffers():
    online = online_network()
    target = make_target(online)
    history = [{name: t.clone() for name, t in online.state_dict().items()}]
    for step in (1, 2, 3):
        drift(online, step)
        history.append({name: t.clone() for name, t in online.state_dict().items()})
        follow(target, online, 0.9)
    weights = [0.9**3, 0.1 * 0.9**2, 0.1 * 0.9, 0.1]
    for name, tensor in target.state_dict().items():
        if tensor.is_floating_point():
            expected = sum(w * state[name] for w, state in zip(weights, history, strict=True))
            torch.testing.assert_close(tensor, expected)
        else:
            assert torch.equal(tensor, history[-1][name])


@pytest.mark.parametrize(("momentum", "same_as_online"), [(0.0, True), (1.0, False)])
def test_momentum_zero_copies_and_one_freezes(momentum, same_as_online):
    online = online_network()
    start = make_target(online)
    target = make_target(online)
    drift(online, 1)
    follow(target, online, momentum)
    wanted = online if same_as_online else start
    for tensor, other in zip(target.parameters(), wanted.parameters(), strict=True):
        assert torch.equal(tensor, other)


def test_a_target_is_a_frozen_copy_whose_statistics_only_follow():
    online = online_network()
    target = make_target(online)
    assert not any(parameter.requires_grad for parameter in target.parameters())
    target(torch.randn(8, 3))
    assert torch.equal(target[1].running_mean, torch.zeros(4))
    online(torch.randn(8, 3))
    assert not torch.equal(online[1].running_mean, torch.zeros(4))


def test_networks_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="zip"):
        follow(make_target(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), 0.5)


def test_the_cosine_schedule_rises_from_the_start_to_one():
    config = MomentumConfig(start=0.9, schedule="cosine")
    values = [config.at(step, 10) for step in range(11)]
    assert values[0] == pytest.approx(0.9)
    assert values[5] == pytest.approx(0.95)
    assert values[10] == 1
    assert values == sorted(values)
    assert values[3] == pytest.approx(1 - 0.1 * (math.cos(0.3 * math.pi) + 1) / 2)


def test_the_cosine_can_end_below_one():
    config = MomentumConfig(start=0.99, end=0.999)
    assert [config.at(step, 10) for step in (0, 5, 10)] == pytest.approx([0.99, 0.9945, 0.999])


def test_the_constant_schedule_stays():
    config = MomentumConfig(start=0.97, schedule="constant")
    assert {config.at(step, 10) for step in range(11)} == {0.97}


def test_a_momentum_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"1\.5.*\[0, 1\]"):
        MomentumConfig(start=1.5)


@pytest.mark.parametrize(
    "settings",
    [
        {"start": 0.9, "end": 0.8},
        {"start": 0.9, "end": 1.1},
        {"start": 0.9, "end": 0.95, "schedule": "constant"},
    ],
    ids=str,
)
def test_an_end_that_cannot_be_reached_is_refused(settings):
    with pytest.raises(ValueError, match=f"momentum end is {settings['end']}"):
        MomentumConfig(**settings)
