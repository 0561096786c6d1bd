"""SupCon: all views of one class agree, against those of the other classes.

Source: Khosla et al. 2020, "Supervised Contrastive Learning", eq. 2 (the L_out form). Deviations:
pictures without a label take no part in the loss, or are each a class of their own, as in SimCLR;
local views are further anchors with all global views of their class as positives, and never
candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from encoders.losses import NO_LABEL, check_temperature, sup_con, unit_rows
from encoders.method import Batch, Method, MethodOutput, Parts

__all__ = ["SupCon", "SupConConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SupConConfig:
    """SupCon: contrast classes, for corpora whose pictures carry labels."""

    temperature: float = 0.2
    """Cosines are divided by it: small values weigh the nearest negatives most."""
    unlabelled: Literal["ignore", "alone"] = "ignore"
    """Pictures without a label: ignore them, or let each be a class alone, when labels are few."""

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        if self.unlabelled not in ("ignore", "alone"):
            raise ValueError(
                f"supcon unlabelled is {self.unlabelled!r}; it must be ignore or alone. Use alone "
                "when most pictures have no label."
            )

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
        self._config = config

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
        """L_out over the views of the global batch that have a class."""
        assert batch.labels is not None
        a_ND, b_ND, *local = online
        labels_N = batch.labels
        if self._config.unlabelled == "alone":
            # Below every class and NO_LABEL: a picture that is drawn twice stays one class.
            labels_N = torch.where(labels_N == NO_LABEL, NO_LABEL - 1 - batch.ids, labels_N)
        return MethodOutput(
            loss=sup_con(a_ND, b_ND, labels_N, local, temperature=self._config.temperature),
            embeddings_a=unit_rows(a_ND.detach()),
            embeddings_b=unit_rows(b_ND.detach()),
        )
