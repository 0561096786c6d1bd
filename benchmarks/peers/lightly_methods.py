"""SimCLR, MoCo and BYOL out of lightly's building blocks, as its examples put them together.

Source: examples/pytorch of lightly 1.6 (networks, losses, the order of a step) and its CIFAR-10
benchmark (momentum SGD with a cosine). Heads are as wide as those of the project's small recipes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead, MoCoProjectionHead
from lightly.models.modules.heads import ProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import (
    BYOLTransform,
    BYOLView1Transform,
    BYOLView2Transform,
    MoCoV2Transform,
    SimCLRTransform,
)
from lightly.utils.scheduler import cosine_schedule
from narrow_resnet import HIDDEN_DIM, OUTPUT_DIM, backbone
from torch import Tensor, nn

__all__ = ["METHODS", "Settings", "transform_of"]

PREDICTOR_DIM = 512
QUEUE = 4096
MOCO_MOMENTUM = 0.99


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Of a method; SimCLR and MoCo have no use for the momentum, nor BYOL for the temperature."""

    widths: Sequence[int]
    temperature: float
    momentum: float


class SimCLR(nn.Module):
    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.backbone = backbone(settings.widths)
        self.head = ProjectionHead(
            [
                (settings.widths[-1], HIDDEN_DIM, nn.BatchNorm1d(HIDDEN_DIM), nn.ReLU()),
                (HIDDEN_DIM, OUTPUT_DIM, None, None),
            ]
        )
        self.criterion = NTXentLoss(temperature=settings.temperature)

    def loss(self, views: list[Tensor], step: int, num_steps: int) -> Tensor:  # noqa: ARG002
        z0, z1 = (self.head(self.backbone(view)) for view in views)
        return self.criterion(z0, z1)


class MoCo(nn.Module):
    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.backbone = backbone(settings.widths)
        self.head = MoCoProjectionHead(settings.widths[-1], HIDDEN_DIM, OUTPUT_DIM)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.head_momentum = copy.deepcopy(self.head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.head_momentum)
        self.criterion = NTXentLoss(
            temperature=settings.temperature, memory_bank_size=(QUEUE, OUTPUT_DIM)
        )

    def loss(self, views: list[Tensor], step: int, num_steps: int) -> Tensor:  # noqa: ARG002
        update_momentum(self.backbone, self.backbone_momentum, m=MOCO_MOMENTUM)
        update_momentum(self.head, self.head_momentum, m=MOCO_MOMENTUM)
        query = self.head(self.backbone(views[0]))
        key = self.head_momentum(self.backbone_momentum(views[1])).detach()
        return self.criterion(query, key)


class BYOL(nn.Module):
    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.backbone = backbone(settings.widths)
        self.head = BYOLProjectionHead(settings.widths[-1], HIDDEN_DIM, OUTPUT_DIM)
        self.prediction = BYOLPredictionHead(OUTPUT_DIM, PREDICTOR_DIM, OUTPUT_DIM)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.head_momentum = copy.deepcopy(self.head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.head_momentum)
        self.criterion = NegativeCosineSimilarity()
        self.momentum = settings.momentum

    def loss(self, views: list[Tensor], step: int, num_steps: int) -> Tensor:
        momentum = cosine_schedule(step, num_steps, self.momentum, 1)
        update_momentum(self.backbone, self.backbone_momentum, m=momentum)
        update_momentum(self.head, self.head_momentum, m=momentum)
        p0, p1 = (self.prediction(self.head(self.backbone(view))) for view in views)
        z0, z1 = (self.head_momentum(self.backbone_momentum(view)).detach() for view in views)
        return 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))


METHODS: dict[str, type[nn.Module]] = {"simclr": SimCLR, "moco": MoCo, "byol": BYOL}


def transform_of(method: str, size: int, gray: tuple[float, float] | None) -> Any:
    """The method's transform for small pictures.

    Args:
        method: a key of `METHODS`.
        size: edge in pixels.
        gray: of gray pictures the least share of the area that a crop keeps, and the strength of
            brightness and contrast; what only changes colour is left out then.
    """
    if gray is None:
        return SimCLRTransform(input_size=size, cj_strength=0.5, gaussian_blur=0.0)
    min_scale, strength = gray
    shared: dict[str, Any] = {
        "input_size": size,
        "cj_bright": strength,
        "cj_contrast": strength,
        "cj_sat": 0.0,
        "cj_hue": 0.0,
        "min_scale": min_scale,
        "random_gray_scale": 0.0,
        "gaussian_blur": 0.0,
    }
    if method == "byol":
        return BYOLTransform(
            BYOLView1Transform(**shared), BYOLView2Transform(**shared, solarization_prob=0.2)
        )
    return (MoCoV2Transform if method == "moco" else SimCLRTransform)(**shared)
