"""Settings far from what is usual, which a verdict names beside the usual causes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from encoders.pretrain_config import PretrainConfig

__all__ = ["suspects"]

# Peak learning rate and weight decay that published recipes and ours stay within, by optimiser.
USUAL_RATE = {"sgd": (1e-3, 1.0), "lars": (1e-2, 20.0), "adamw": (1e-6, 1e-2)}
USUAL_DECAY = {"sgd": (0.0, 1e-2), "lars": (0.0, 1e-2), "adamw": (0.0, 0.3)}
USUAL_TEMPERATURE = (0.02, 1.0)
USUAL_MOMENTUM = (0.9, 0.9999)
FEWEST_DIMENSIONS = 8


def suspects(config: PretrainConfig) -> str:
    """A sentence that names the settings which stand out; empty when none does."""
    found = [
        f"{name} {value:g} ({low:g} to {high:g} is usual)"
        for name, value, (low, high) in _looked_at(config)
        if not low <= value <= high
    ]
    return f"Of the settings these stand out: {', '.join(found)}." if found else ""


def _looked_at(config: PretrainConfig) -> Iterator[tuple[str, float, tuple[float, float]]]:
    """Dotted name, value and usual range."""
    optim = config.optim
    yield "optim.lr", optim.lr, USUAL_RATE[optim.name]
    yield "optim.weight_decay", optim.weight_decay, USUAL_DECAY[optim.name]
    yield "projector.output_dim", config.projector.output_dim, (FEWEST_DIMENSIONS, 1 << 20)
    method: dict[str, Any] = asdict(config.method)
    if "temperature" in method:
        yield "method.temperature", method["temperature"], USUAL_TEMPERATURE
    if "momentum" in method:
        yield "method.momentum.start", method["momentum"]["start"], USUAL_MOMENTUM
    if "key_groups" in method:
        yield "method.key_groups", method["key_groups"], (2, config.batch_size)
