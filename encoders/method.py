"""What a training method is: modules, a loss over two views of a batch, and an update after it.

Shapes: N pictures of this rank, S edge, D embedding.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor, nn

from encoders.backbone import Backbone

__all__ = ["Batch", "Method", "MethodConfig", "MethodOutput", "Parts"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """This rank's share of one global batch, augmented and normalised."""

    view_a: Tensor
    """float32 [N, 3, S, S], channels_last: first view of each picture."""
    view_b: Tensor
    """float32 [N, 3, S, S]: second view, row for row."""
    ids: Tensor
    """int64 [N]: picture ids."""
    labels: Tensor | None
    """int64 [N]: classes, -1 for none; None when the corpus has no labels."""
    step: int
    """Optimiser step, from 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodOutput:
    """What a forward pass gives."""

    loss: Tensor
    """Scalar whose mean over the ranks is the loss of the global batch."""
    embeddings_a: Tensor
    """float32 [N, D]: detached unit embeddings of the first views, for health checks."""
    embeddings_b: Tensor
    """The same for the second views."""
    num_candidates: Tensor | int | None = None
    """N of the bound log N - loss on mutual information; None when the loss proves none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What a method is built around."""

    backbone: Backbone
    """The network to be trained, in training mode."""
    projector: nn.Sequential
    """Its head."""
    embedding_dim: int
    """D of the projector's output."""
    seed: int
    """Of the run."""


class Method(nn.Module, abc.ABC):
    """A way to train a backbone and its projector from two views of each picture.

    Parameters that require gradients are trained; everything else that training depends on is a
    buffer or a frozen parameter, so that ``state_dict`` holds all of it.
    """

    needs_labels: ClassVar[bool] = False
    """Whether it refuses pictures without any labels."""
    collapse_advice: ClassVar[str]
    """Usual causes of a collapse under this method, and what to change."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.backbone = parts.backbone
        self.projector = parts.projector

    @abc.abstractmethod
    def forward(self, batch: Batch) -> MethodOutput:
        """The loss of a batch, without side effects but BatchNorm's running statistics."""

    def after_step(self, batch: Batch, output: MethodOutput, num_steps: int) -> None:
        """Move targets and queues, once the optimiser has made the step that ``output`` led to."""


class MethodConfig(Protocol):
    """A frozen dataclass beside each method."""

    def check_batch(self, batch_size: int, world_size: int) -> None:
        """Raise ``ValueError`` when the method cannot train with this global batch and ranks."""

    def build(self, parts: Parts) -> Method:
        """The method around these parts; new modules draw from torch's global generator."""
