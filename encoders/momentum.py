"""Target networks that follow an online network by exponential moving average."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import nn

from encoders.batchnorm import hold_running_statistics

__all__ = ["MomentumConfig", "follow", "make_target"]

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True, kw_only=True, slots=True)
class MomentumConfig:
    """How slowly a target network follows its online network."""

    start: float = 0.99
    """Momentum of the first optimiser step: share of the target that stays; 0 copies, 1 freezes."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Keep the momentum, or raise it along a half cosine over the run (BYOL)."""
    end: float = 1.0
    """Of cosine alone: where it ends; 1 in BYOL, 0.999 in solo-learn's MoCo v2+."""

    def __post_init__(self) -> None:
        if not 0 <= self.start <= 1:
            raise ValueError(
                f"momentum start is {self.start}; it must lie in [0, 1]. "
                "Use 0.99 for short runs and 0.996 for long ones."
            )
        end_ok = self.start <= self.end <= 1 and (self.end == 1 or self.schedule == "cosine")
        if not end_ok:
            raise ValueError(
                f"momentum end is {self.end} from {self.start} by schedule {self.schedule}; "
                "a cosine may end between its start and 1, and a constant has no end. "
                "Leave it at 1, or set the schedule to cosine."
            )

    def at(self, step: int, num_steps: int) -> float:
        """Momentum after optimiser step ``step`` of ``num_steps``, counted from 0.

        Source: Grill et al. 2020 (BYOL), section 3.1: 1 - (1 - start) (cos(pi k / K) + 1) / 2;
        an end below 1 takes its place.

        >>> MomentumConfig(start=0.9).at(5, 10)
        0.95
        """
        if self.schedule == "constant":
            return self.start
        share_left = (math.cos(math.pi * step / num_steps) + 1) / 2
        return self.end - (self.end - self.start) * share_left


def make_target(online: Net) -> Net:
    """A frozen copy of an online network, to be moved only by `follow`."""
    target = copy.deepcopy(online).requires_grad_(False)
    hold_running_statistics(target)
    return target


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """Move a target network: t <- momentum * t + (1 - momentum) * o, in place.

    Float buffers (running statistics) are averaged like parameters; integer buffers (counters) are
    copied, since averaging them would round to nothing.

    Args:
        target: made by `make_target`.
        online: the network it follows, with the same tensors in the same order.
        momentum: in [0, 1].
    """
    moving, following = [], []
    tensors = zip(_tensors(target), _tensors(online), strict=True)
    for target_tensor, online_tensor in tensors:
        if target_tensor.is_floating_point():
            moving.append(target_tensor)
            following.append(online_tensor)
        else:
            target_tensor.copy_(online_tensor)
    if moving:  # a projector may be empty
        torch._foreach_lerp_(moving, following, 1 - momentum)


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]
