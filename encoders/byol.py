"""BYOL: an online network predicts what a slowly following target makes of the other view.

Source: Grill et al. 2020, "Bootstrap Your Own Latent", section 3.1 and algorithm 1; Caron et al.
2021 (DINO), eq. 3, for local views. Deviations: the target starts as a copy of the online network
(the authors' code draws it anew), and its running statistics follow by moving average as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from encoders.heads import PredictorConfig, build_predictor
from encoders.losses import byol_loss, unit_rows
from encoders.method import Batch, Method, MethodOutput, Parts
from encoders.momentum import MomentumConfig, follow, make_target

__all__ = ["BYOL", "BYOLConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BYOLConfig:
    """BYOL: predict the target network's view; no negatives."""

    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    """The MLP without which BYOL collapses."""
    momentum: MomentumConfig = field(default_factory=lambda: MomentumConfig(start=0.99))
    """How the target follows; a cosine to 1 over the run as published."""

    def check_batch(self, batch_size: int, world_size: int) -> None:
        """Any batch will do."""

    def build(self, parts: Parts) -> BYOL:
        """The method around these parts."""
        return BYOL(self, parts)


class BYOL(Method):
    """Symmetric loss; each view passes the networks on its own, as in the authors' code.

    Local views pass the online network alone, all in one batch.
    """

    guess_loss = 4.0  # each direction's is 2 - 2 cos
    collapse_advice = (
        "Usual causes with BYOL are a learning rate that is too high, a target that follows too "
        "fast, or weight decay that is too strong. "
        "Divide optim.lr by 3, or raise method.momentum.start towards 0.996."
    )

    def __init__(self, config: BYOLConfig, parts: Parts) -> None:
        super().__init__(parts)
        self.predictor = build_predictor(config.predictor, parts.embedding_dim)
        self.target_backbone = make_target(parts.backbone)
        self.target_projector = make_target(parts.projector)
        self._momentum = config.momentum

    def encode(self, batch: Batch) -> tuple[Tensor, ...]:
        """Projections of both views, their predictions, then those of the local views."""
        (a_ND,), (b_ND,) = self.project(batch.view_a), self.project(batch.view_b)
        predictions = (self.predictor(a_ND), self.predictor(b_ND))
        if not batch.local_views:
            return (a_ND, b_ND, *predictions)
        local = self.predictor(torch.cat(self.project(*batch.local_views)))
        return (a_ND, b_ND, *predictions, *local.chunk(len(batch.local_views)))

    def encode_targets(self, batch: Batch) -> tuple[Tensor, ...]:
        """The target network's projections of the second views, then of the first."""
        return self._target(batch.view_b), self._target(batch.view_a)

    @torch.no_grad()
    def _target(self, view: Tensor) -> Tensor:
        targets_ND: Tensor = self.target_projector(self.target_backbone(view))
        return targets_ND

    def compare(
        self,
        online: Sequence[Tensor],
        targets: Sequence[Tensor],
        batch: Batch,  # noqa: ARG002
    ) -> MethodOutput:
        """Sum of both directions of the prediction loss.

        With L local views, each predicted against both targets, the mean over all 2 + 2L
        predictions counts twice, as the mean over the two does without.
        """
        a_ND, b_ND, predicted_a, predicted_b, *local = online
        target_of_a, target_of_b = targets
        loss = byol_loss(predicted_a, target_of_a) + byol_loss(predicted_b, target_of_b)
        for predicted in local:
            loss = loss + byol_loss(predicted, target_of_a) + byol_loss(predicted, target_of_b)
        return MethodOutput(
            loss=loss / (1 + len(local)),
            embeddings_a=unit_rows(a_ND.detach()),
            embeddings_b=unit_rows(b_ND.detach()),
        )

    def after_step(self, batch: Batch, output: MethodOutput, num_steps: int) -> None:  # noqa: ARG002
        """Let the target follow."""
        momentum = self._momentum.at(batch.step, num_steps)
        follow(self.target_backbone, self.backbone, momentum)
        follow(self.target_projector, self.projector, momentum)
