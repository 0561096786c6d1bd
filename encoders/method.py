"""What a training method is: modules, a loss over the views of a batch, and an update after it.

A method encodes pictures and compares what came out; the two are apart so that a batch can be
encoded in pieces and compared as a whole.

Shapes: N pictures of this rank, S edge, D embedding.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
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
    local_views: tuple[Tensor, ...] = ()
    """float32 [N, 3, s, s] each, s <= S: further crops of each picture, row for row."""
    num_chunks: int = 1
    """Pieces in which the network sees the global batch. The rows are this rank's share of the
    first, then of the second, and so on."""
    chunk: int = 0
    """Which piece this is, once it is one."""

    def chunks(self) -> list[Batch]:
        """The pieces: views of the rows, not copies."""
        size = len(self.ids) // self.num_chunks
        spans = [slice(start, start + size) for start in range(0, len(self.ids), size)]
        return [
            replace(
                self,
                view_a=self.view_a[rows],
                view_b=self.view_b[rows],
                ids=self.ids[rows],
                labels=None if self.labels is None else self.labels[rows],
                local_views=tuple(view[rows] for view in self.local_views),
                num_chunks=1,
                chunk=number,
            )
            for number, rows in enumerate(spans)
        ]


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
    guess_loss: ClassVar[float | None] = None
    """The loss of guessing, where the loss bounds no information that would tell."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.backbone = parts.backbone
        self.projector = parts.projector

    def forward(self, batch: Batch) -> MethodOutput:
        """The loss of a batch, without side effects but BatchNorm's running statistics."""
        return self.compare(self.encode(batch), self.encode_targets(batch), batch)

    @abc.abstractmethod
    def encode(self, batch: Batch) -> tuple[Tensor, ...]:
        """What the trained networks make of a batch or a chunk: [N, D] each, with a graph.

        BatchNorm sees these rows of all ranks together. Anything random comes from torch's global
        generators, so that the same state gives the same rows again.
        """

    def encode_targets(self, batch: Batch) -> tuple[Tensor, ...]:  # noqa: ARG002
        """What the frozen networks make of them: [N, D] each; nothing unless there are any."""
        return ()

    @abc.abstractmethod
    def compare(
        self, online: Sequence[Tensor], targets: Sequence[Tensor], batch: Batch
    ) -> MethodOutput:
        """The loss of a whole batch from what `encode` and `encode_targets` gave for its rows."""

    def project(self, *views: Tensor) -> tuple[Tensor, ...]:
        """Projections [N, D] of views of one size, which pass the network in one batch."""
        if not views:
            return ()
        pictures = views[0] if len(views) == 1 else torch.cat(views)
        projections: tuple[Tensor, ...] = self.projector(self.backbone(pictures)).chunk(len(views))
        return projections

    def after_step(self, batch: Batch, output: MethodOutput, num_steps: int) -> None:
        """Move targets and queues, once the optimiser has made the step that ``output`` led to."""


class MethodConfig(Protocol):
    """A frozen dataclass beside each method."""

    def check_batch(self, batch_size: int, world_size: int) -> None:
        """Raise ``ValueError`` when the method cannot train with this global batch and ranks."""

    def build(self, parts: Parts) -> Method:
        """The method around these parts; new modules draw from torch's global generator."""
