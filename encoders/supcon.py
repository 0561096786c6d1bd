"""SupCon: all views of one class agree, against those of the other classes.

Source: Khosla et al. 2020, "Supervised Contrastive Learning", eq. 2 (the L_out form). Deviations:
pictures without a label take no part in the loss; local views are further anchors with all global
views of their class as positives, and never candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from encoders.losses import check_temperature, sup_con, unit_rows
from encoders.method import Batch, Method, MethodOutput, Parts

__all__ = ["SupCon", "SupConConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SupConConfig:
    """SupCon: contrast classes, for corpora whose pictures carry labels."""

    temperature: float = 0.2
    """Cosines are divided by it: small values weigh the nearest negatives most."""

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    def check_batch(self, batch_size: int, world_size: int) -> None:
        """Any batch will do."""

    def build(self, parts: Parts) -> SupCon:
        """The method around these parts."""
        return SupCon(self, parts)


class SupCon(Method):
    """Both views pass the network in one batch, local views in another, as in SimCLR."""

    needs_labels = True
    collapse_advice = (
        "Usual causes with SupCon are a learning rate that is too high, or labels that are nearly "
        "all of one class. Divide optim.lr by 3, or look at the labels of the corpus."
    )

    def __init__(self, config: SupConConfig, parts: Parts) -> None:
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
        """L_out over the labelled views of the global batch."""
        assert batch.labels is not None
        a_ND, b_ND, *local = online
        return MethodOutput(
            loss=sup_con(a_ND, b_ND, batch.labels, local, temperature=self._temperature),
            embeddings_a=unit_rows(a_ND.detach()),
            embeddings_b=unit_rows(b_ND.detach()),
        )
