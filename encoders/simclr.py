"""SimCLR: two views of a picture agree, against all other views of the global batch.

Source: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations",
algorithm 1; Caron et al. 2020 (SwAV), section 3.3, for local views. Deviations: the loss is the
mean over the 2N views (the authors' code adds two means); local views are further anchors, each
with both global views of its picture as positives, and never candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from encoders.collective import world_size
from encoders.losses import check_temperature, nt_xent, unit_rows
from encoders.method import Batch, Method, MethodOutput, Parts

__all__ = ["SimCLR", "SimCLRConfig"]


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
    """Both views pass the network in one batch: BatchNorm sees 2N rows, as the authors' does.

    Local views pass it in a batch of their own.
    """

    collapse_advice = (
        "Usual causes with SimCLR are a learning rate that is too high, a temperature far from 0.1 "
        "to 0.5, or augmentation so weak that there is nothing to learn. "
        "Divide optim.lr by 3 first, or raise optim.warmup_share."
    )

    def __init__(self, config: SimCLRConfig, parts: Parts) -> None:
        super().__init__(parts)
        self._temperature = config.temperature

    def encode(self, batch: Batch) -> tuple[Tensor, ...]:
        """Projections of both views, then of the local ones."""
        views = self.project(batch.view_a, batch.view_b)
        return (*views, *self.project(*batch.local_views))

    def compare(
        self,
        online: Sequence[Tensor],
        targets: Sequence[Tensor],  # noqa: ARG002
        batch: Batch,
    ) -> MethodOutput:
        """NT-Xent over the views of the global batch."""
        a_ND, b_ND, *local = online
        return MethodOutput(
            loss=nt_xent(a_ND, b_ND, batch.ids, local, temperature=self._temperature),
            embeddings_a=unit_rows(a_ND.detach()),
            embeddings_b=unit_rows(b_ND.detach()),
            num_candidates=2 * len(batch.ids) * world_size() - 1,
        )
