"""SimCLR, MoCo and BYOL out of lightly's building blocks, as its examples put them together.

Source: examples/pytorch of lightly 1.6 (networks, losses, the order of a step) and its CIFAR-10
benchmark (momentum SGD with a cosine). Heads are as wide as those of the project's small recipes.
"""

from __future__ import annotations

import copy
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
from narrow_resnet import FEATURE_DIM, HIDDEN_DIM, OUTPUT_DIM, backbone
from torch import Tensor, nn

__all__ = ["METHODS", "transform_of"]

PREDICTOR_DIM = 512
QUEUE = 4096
MOCO_MOMENTUM = 0.99


class SimCLR(nn.Module):
    def __init__(self, temperature: float, momentum: float) -> None:  # noqa: ARG002
        super().__init__()
        self.backbone = backbone()
        self.head = ProjectionHead(
            [
                (FEATURE_DIM, HIDDEN_DIM, nn.BatchNorm1d(HIDDEN_DIM), nn.ReLU()),
                (HIDDEN_DIM, OUTPUT_DIM, None, None),
            ]
        )
        self.criterion = NTXentLoss(temperature=temperature)

    def loss(self, views: list[Tensor], step: int, num_steps: int) -> Tensor:  # noqa: ARG002
        z0, z1 = (self.head(self.backbone(view)) for view in views)
        return self.criterion(z0, z1)


class MoCo(nn.Module):
    def __init__(self, temperature: float, momentum: float) -> None:  # noqa: ARG002
        super().__init__()
        self.backbone = backbone()
        self.head = MoCoProjectionHead(FEATURE_DIM, HIDDEN_DIM, OUTPUT_DIM)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.head_momentum = copy.deepcopy(self.head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.head_momentum)
        self.criterion = NTXentLoss(temperature=temperature, memory_bank_size=(QUEUE, OUTPUT_DIM))

    def loss(self, views: list[Tensor], step: int, num_steps: int) -> Tensor:  # noqa: ARG002
        update_momentum(self.backbone, self.backbone_momentum, m=MOCO_MOMENTUM)
        update_momentum(self.head, self.head_momentum, m=MOCO_MOMENTUM)
        query = self.head(self.backbone(views[0]))
        key = self.head_momentum(self.backbone_momentum(views[1])).detach()
        return self.criterion(query, key)


class BYOL(nn.Module):
    def __init__(self, temperature: float, momentum: float) -> None:  # noqa: ARG002
        super().__init__()
        self.backbone = backbone()
        self.head = BYOLProjectionHead(FEATURE_DIM, HIDDEN_DIM, OUTPUT_DIM)
        self.prediction = BYOLPredictionHead(OUTPUT_DIM, PREDICTOR_DIM, OUTPUT_DIM)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.head_momentum = copy.deepcopy(self.head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.head_momentum)
        self.criterion = NegativeCosineSimilarity()
        self.momentum = momentum

    def loss(self, views: list[Tensor], step: int, num_steps: int) -> Tensor:
        momentum = cosine_schedule(step, num_steps, self.momentum, 1)
        update_momentum(self.backbone, self.backbone_momentum, m=momentum)
        update_momentum(self.head, self.head_momentum, m=momentum)
        p0, p1 = (self.prediction(self.head(self.backbone(view))) for view in views)
        z0, z1 = (self.head_momentum(self.backbone_momentum(view)).detach() for view in views)
        return 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))


METHODS: dict[str, type[nn.Module]] = {"simclr": SimCLR, "moco": MoCo, "byol": BYOL}


def transform_of(method: str, size: int, *, gray: bool) -> Any:
    """The method's transform for small pictures; on gray ones without what only changes colour."""
    if not gray:
        return SimCLRTransform(input_size=size, cj_strength=0.5, gaussian_blur=0.0)
    shared: dict[str, Any] = {
        "input_size": size,
        "cj_bright": 0.4,
        "cj_contrast": 0.4,
        "cj_sat": 0.0,
        "cj_hue": 0.0,
        "min_scale": 0.2,
        "random_gray_scale": 0.0,
        "gaussian_blur": 0.0,
    }
    if method == "byol":
        return BYOLTransform(
            BYOLView1Transform(**shared), BYOLView2Transform(**shared, solarization_prob=0.2)
        )
    return (MoCoV2Transform if method == "moco" else SimCLRTransform)(**shared)
