"""SimCLR: two views of a picture agree, against all other views of the global batch.

Source: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations",
algorithm 1. Deviation: the loss is the mean over the 2N views (the authors' code adds two means).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from encoders.collective import world_size
from encoders.losses import check_temperature, nt_xent, unit_rows
from encoders.method import Batch, Method, MethodOutput, Parts

__all__ = ["SimCLR", "SimCLRConfig", "embed_views"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SimCLRConfig:
    """SimCLR: contrast the two views of a picture with all others in the batch."""

    temperature: float = 0.2
    """Cosines are divided by it: small values weigh the nearest negatives most."""

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    def check_batch(self, batch_size: int, world_size: int) -> None:
        """Any batch of two pictures or more has negatives."""

    def build(self, parts: Parts) -> SimCLR:
        """The method around these parts."""
        return SimCLR(self, parts)


class SimCLR(Method):
    """Both views pass the network in one batch: BatchNorm sees 2N rows, as the authors' does."""

    collapse_advice = (
        "Usual causes with SimCLR are a learning rate that is too high, a temperature far from 0.1 "
        "to 0.5, or augmentation so weak that there is nothing to learn. "
        "Divide optim.lr by 3 first, or raise optim.warmup_share."
    )

    def __init__(self, config: SimCLRConfig, parts: Parts) -> None:
        super().__init__(parts)
        self._temperature = config.temperature

    def forward(self, batch: Batch) -> MethodOutput:
        """NT-Xent over the views of the global batch."""
        a_ND, b_ND = embed_views(self, batch)
        return MethodOutput(
            loss=nt_xent(a_ND, b_ND, batch.ids, temperature=self._temperature),
            embeddings_a=unit_rows(a_ND.detach()),
            embeddings_b=unit_rows(b_ND.detach()),
            num_candidates=2 * len(batch.ids) * world_size() - 1,
        )


def embed_views(method: Method, batch: Batch) -> tuple[Tensor, Tensor]:
    """Projections of both views, from one pass of the network over 2N rows."""
    both = method.projector(method.backbone(torch.cat([batch.view_a, batch.view_b])))
    a_ND, b_ND = both.chunk(2)
    return a_ND, b_ND
