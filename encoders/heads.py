"""Projector and predictor: the small MLPs that sit on a backbone while it is trained.

Shapes: N pictures, D width of a layer.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import nn

__all__ = ["PredictorConfig", "ProjectorConfig", "build_predictor", "build_projector"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProjectorConfig:
    """The MLP from features to the space in which the loss compares pictures."""

    hidden_dim: int = 512
    """Width of the hidden layers."""
    output_dim: int = 128
    """Dimension in which the loss compares pictures."""
    num_layers: int = 2
    """Linear layers; 1 is a linear projection, 0 leaves the projector out."""
    batch_norm: bool = True
    """BatchNorm after each hidden layer (SimCLR, BYOL: yes; MoCo v2: no)."""
    output_batch_norm: bool = False
    """BatchNorm without scale or shift after the last layer as well (official SimCLR: yes)."""

    def __post_init__(self) -> None:
        if min(self.hidden_dim, self.output_dim) < 1 or self.num_layers < 0:
            raise ValueError(
                f"projector num_layers {self.num_layers}, hidden_dim {self.hidden_dim}, output_dim "
                f"{self.output_dim}: dimensions must be 1 or more, num_layers 0 or more."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictorConfig:
    """The MLP with which BYOL's online network predicts the target's projection."""

    hidden_dim: int = 512
    """Width of the hidden layers."""
    num_layers: int = 2
    """Linear layers; the last returns to the projector's output dimension."""
    batch_norm: bool = True
    """BatchNorm after each hidden layer."""

    def __post_init__(self) -> None:
        if self.hidden_dim < 1 or self.num_layers < 1:
            raise ValueError(
                f"predictor of {self.num_layers} layers and {self.hidden_dim} hidden: "
                "both must be 1 or more; BYOL collapses without a predictor."
            )


def build_projector(config: ProjectorConfig, input_dim: int) -> nn.Sequential:
    """An MLP from ``[N, input_dim]`` to ``[N, config.output_dim]``; empty when it has 0 layers."""
    if config.num_layers == 0:
        return nn.Sequential()
    hidden = [config.hidden_dim] * (config.num_layers - 1)
    layers = _mlp([input_dim, *hidden, config.output_dim], batch_norm=config.batch_norm)
    if config.output_batch_norm:
        layers.append(nn.BatchNorm1d(config.output_dim, affine=False))
    return nn.Sequential(*layers)


def build_predictor(config: PredictorConfig, dim: int) -> nn.Sequential:
    """An MLP from the projector's ``[N, dim]`` back to ``[N, dim]``."""
    hidden = [config.hidden_dim] * (config.num_layers - 1)
    return nn.Sequential(*_mlp([dim, *hidden, dim], batch_norm=config.batch_norm))


def _mlp(dims: list[int], *, batch_norm: bool) -> list[nn.Module]:
    """Linear layers with ReLU between; a bias before BatchNorm would be subtracted again."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(dims[:-1]):
        layers.append(nn.Linear(before, after, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm1d(after))
        layers.append(nn.ReLU(inplace=True))
    layers.append(nn.Linear(dims[-2], dims[-1]))
    return layers
