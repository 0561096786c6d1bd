"""Optimisers, and the learning rate as a pure function of the step: no state to restore."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

__all__ = [
    "LARS",
    "OptimConfig",
    "build_optimizer",
    "learning_rate",
    "peak_learning_rate",
    "set_learning_rate",
]

# Where one_cycle starts and ends, as shares of the peak; torch's OneCycleLR has the same defaults.
ONE_CYCLE_START = 1 / 25
ONE_CYCLE_END = 1 / 25e4
# The batch at which a scaled learning rate is quoted, since Goyal et al. 2017.
REFERENCE_BATCH = 256
DEFAULT_TRUST = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """How weights are updated."""

    name: Literal["sgd", "lars", "adamw"] = "sgd"
    """sgd for batches up to about 1024, lars for larger ones, adamw for transformers."""
    lr: float = 0.1
    """Peak learning rate; with lr_scaling linear or sqrt, the one at a global batch of 256."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """Multiply lr by 1, by batch_size / 256, or by its square root (SimCLR, section B.1)."""
    momentum: float = 0.9
    """Momentum of sgd and lars; beta1 of adamw."""
    weight_decay: float = 1e-4
    """L2 penalty for sgd and lars, decoupled decay for adamw."""
    decay_all: bool = False
    """Decay biases and norm scales too, as many published recipes do; never with lars."""
    schedule: Literal["cosine", "one_cycle"] = "cosine"
    """cosine: linear warm-up, half cosine down. one_cycle: cosine up from lr / 25, cosine down."""
    warmup_share: float = 0.0
    """Share of the run's steps spent warming up; 10 of 1000 epochs is 0.01."""
    final_share: float = 0.0
    """Of cosine alone: the share of the peak that it falls to (SupCon's authors: 0.001)."""
    trust_coefficient: float | None = None
    """Of lars alone: its eta, 0.001 when not given."""
    trust_cap: bool = False
    """Of lars alone: no weight's own rate exceeds lr (LARC), as solo-learn's recipes have it."""
    clip_norm: float | None = None
    """Scale gradients down to this global norm; none leaves them as they are."""

    def __post_init__(self) -> None:
        one_of = {
            "name": ("sgd", "lars", "adamw"),
            "lr_scaling": ("none", "linear", "sqrt"),
            "schedule": ("cosine", "one_cycle"),
        }
        for field, names in one_of.items():
            _check(field, getattr(self, field) in names, getattr(self, field), " or ".join(names))
        _check("lr", 0 < self.lr < math.inf, self.lr, "above 0, such as 0.1 for sgd")
        _check("momentum", 0 <= self.momentum < 1, self.momentum, "in [0, 1), such as 0.9")
        _check("weight_decay", 0 <= self.weight_decay < math.inf, self.weight_decay, "0 or more")
        _check("decay_all", not (self.decay_all and self.name == "lars"), True, "false for lars")
        share, trust, clip = self.warmup_share, self.trust_coefficient, self.clip_norm
        share_ok = 0 <= share < 1 and not (share == 0 and self.schedule == "one_cycle")
        _check("warmup_share", share_ok, share, "in [0, 1), and above 0 for one_cycle: say 0.3")
        final = self.final_share
        final_ok = final == 0 or (self.schedule == "cosine" and 0 < final <= 1)
        _check("final_share", final_ok, final, "in [0, 1], and 0 for one_cycle")
        trust_ok = trust is None or (self.name == "lars" and trust > 0)
        _check("trust_coefficient", trust_ok, trust, "above 0 for lars and left out otherwise")
        _check("trust_cap", not (self.trust_cap and self.name != "lars"), True, "left to lars")
        _check("clip_norm", clip is None or clip > 0, clip, "above 0")


def _check(field: str, ok: bool, value: object, allowed: str) -> None:
    if not ok:
        raise ValueError(f"optim {field} is {value!r}; it must be {allowed}. Change optim.{field}.")


def peak_learning_rate(config: OptimConfig, batch_size: int) -> float:
    """The highest learning rate of the schedule."""
    growth = batch_size / REFERENCE_BATCH
    return config.lr * {"none": 1.0, "linear": growth, "sqrt": math.sqrt(growth)}[config.lr_scaling]


def learning_rate(config: OptimConfig, step: int, num_steps: int, batch_size: int) -> float:
    """The learning rate of optimiser step ``step`` of ``num_steps``, counted from 0.

    Source: Loshchilov and Hutter 2017 (cosine); Smith and Topin 2019 (one_cycle, in the cosine form
    and without the momentum cycle of torch's OneCycleLR).
    """
    peak = peak_learning_rate(config, batch_size)
    if config.schedule == "one_cycle":
        top = config.warmup_share * num_steps - 1
        if step <= top:
            return _cosine(peak * ONE_CYCLE_START, peak, step / top if top > 0 else 1.0)
        return _cosine(peak, peak * ONE_CYCLE_END, (step - top) / max(num_steps - 1 - top, 1))
    warmup = round(config.warmup_share * num_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup) / max(num_steps - warmup, 1)
    return _cosine(peak, peak * config.final_share, share)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """An optimiser over the module's trainable parameters, to be given its rate at each step."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decayed = [p for p in trainable if p.ndim > 1 or config.decay_all]
    exempt = [p for p in trainable if not (p.ndim > 1 or config.decay_all)]
    decays = ((decayed, config.weight_decay), (exempt, 0.0))
    groups = [{"params": params, "weight_decay": decay} for params, decay in decays if params]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999))
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    trust = DEFAULT_TRUST if config.trust_coefficient is None else config.trust_coefficient
    return LARS(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        trust_coefficient=trust,
        trust_cap=config.trust_cap,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling: each weight matrix moves in proportion to its own norm.

    Biases and norm scales (one dimension or none) get neither adaptation nor decay. The learning
    rate stands inside the momentum, so changing it does not rescale past steps. Never waits for the
    device.

    Args:
        params: parameters or groups of them; a group may set ``weight_decay``.
        lr: learning rate.
        momentum: in [0, 1).
        weight_decay: L2 penalty, part of the norm that the adaptation divides by.
        trust_coefficient: eta, the share of a weight's norm that one step at lr 1 may move.
        trust_cap: a weight's rate is the smaller of lr and eta times the ratio of its norm to its
            gradient's, instead of their product: lr is then a ceiling and no factor.

    Source: You et al. 2017, algorithm 1, with the trust ratio and exclusions of Chen et al. 2020
    (SimCLR): the norm of the penalised gradient instead of the sum of both norms. The cap is LARC's
    clipping mode (github.com/NVIDIA/apex), which solo-learn's LARS has as well.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = DEFAULT_TRUST,
        trust_cap: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "trust_cap": trust_cap,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient. A closure is not supported."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient = parameter.grad
        assert gradient is not None
        if parameter.ndim > 1:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
            weight_norm, gradient_norm = parameter.norm(), gradient.norm()
            ratio = group["trust_coefficient"] * weight_norm / gradient_norm
            if group["trust_cap"]:
                ratio = (ratio / group["lr"]).clamp(max=1)
            usable = (weight_norm > 0) & (gradient_norm > 0)
            gradient = gradient * torch.where(usable, ratio, 1.0)
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        velocity = state["momentum_buffer"]
        velocity.mul_(group["momentum"]).add_(gradient, alpha=group["lr"])
        parameter.sub_(velocity)
