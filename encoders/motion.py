"""How far a step moves the weights, and how far the target network is behind."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from encoders.method import Method

__all__ = ["Motion"]

# Networks of a method by the attribute that holds them, each with the target that follows it.
TARGETS = {
    "backbone": ("target_backbone", "key_backbone"),
    "projector": ("target_projector", "key_projector"),
}


class Motion:
    """What a method's networks were before a step, to be held against what they are after it.

    Cost: a copy of all weights until the step is made.
    """

    def __init__(self, method: Method) -> None:
        self._networks = {}
        self._targets = {}
        for name, targets in TARGETS.items():
            self._networks[name] = getattr(method, name)
            for target in targets:
                if hasattr(method, target):
                    self._targets[name] = getattr(method, target)
        self._before = {name: _copies(net) for name, net in self._networks.items()}
        self._targets_before = {name: _copies(net) for name, net in self._targets.items()}

    @torch.no_grad()
    def figures(self) -> dict[str, Tensor]:
        """Float scalars on the device, after the step.

        Returns:
            ``update_ratio`` norm of the step over that of the backbone's weights;
            ``head_update_ratio`` the same of the projector, unless it is empty; ``weight_rms``, the
            root mean square of the backbone's; with a target network ``ema_drift``, its distance
            from the online network over the latter's norm, and ``ema_update``, its own step over
            its norm.
        """
        figures = {}
        for name, ratio in (("backbone", "update_ratio"), ("projector", "head_update_ratio")):
            if self._before[name]:
                figures[ratio] = _moved(self._before[name], self._networks[name])
        weights = _tensors(self._networks["backbone"])
        figures["weight_rms"] = _norm(weights) / math.sqrt(sum(w.numel() for w in weights))
        if self._targets:
            online = [t for net in self._networks.values() for t in _tensors(net)]
            target = [t for net in self._targets.values() for t in _tensors(net)]
            before = [t for tensors in self._targets_before.values() for t in tensors]
            figures["ema_drift"] = _ratio(target, online)
            figures["ema_update"] = _ratio(target, before)
        return figures


def _tensors(network: nn.Module) -> list[Tensor]:
    return [parameter.detach() for parameter in network.parameters()]


def _copies(network: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in _tensors(network)]


def _moved(before: list[Tensor], network: nn.Module) -> Tensor:
    return _ratio(_tensors(network), before)


def _ratio(now: list[Tensor], then: list[Tensor]) -> Tensor:
    """Distance of two lists of tensors over the norm of the second."""
    return _norm(torch._foreach_sub(now, then)) / _norm(then).clamp(min=1e-12)


def _norm(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.nn.utils.get_total_norm(tensors)
