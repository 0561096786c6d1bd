"""Named recipes: whole configurations with their source, cost and expected result.

The ``-small`` ones are ours, for a CPU. The others follow published runs; their results are those
that the source reports and were not reproduced here. docs/methods.md compares them. `tiny` shrinks
any of them for a test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from encoders.backbone import BackboneConfig
from encoders.byol import BYOLConfig
from encoders.health import HealthConfig
from encoders.moco import MoCoConfig
from encoders.pretrain_config import PretrainConfig
from encoders.recipes_cifar10 import byol_cifar10, moco_cifar10, simclr_cifar10, supcon_cifar10
from encoders.recipes_imagenet import (
    byol_imagenet,
    byol_imagenet100,
    byol_imagenette,
    moco_imagenet,
    moco_imagenet100,
    simclr_imagenet,
    simclr_imagenet100,
    supcon_imagenet,
    supcon_imagenet100,
)
from encoders.recipes_small import (
    byol_small,
    moco_small,
    simclr_small,
    supcon_finetune_small,
    supcon_small,
)

__all__ = [
    "RECIPES",
    "byol_cifar10",
    "byol_imagenet",
    "byol_imagenet100",
    "byol_imagenette",
    "byol_small",
    "moco_cifar10",
    "moco_imagenet",
    "moco_imagenet100",
    "moco_small",
    "simclr_cifar10",
    "simclr_imagenet",
    "simclr_imagenet100",
    "simclr_small",
    "supcon_cifar10",
    "supcon_finetune_small",
    "supcon_imagenet",
    "supcon_imagenet100",
    "supcon_small",
    "tiny",
]

_FUNCTIONS: tuple[Callable[[], PretrainConfig], ...] = (
    simclr_small,
    moco_small,
    byol_small,
    supcon_small,
    supcon_finetune_small,
    simclr_cifar10,
    moco_cifar10,
    byol_cifar10,
    supcon_cifar10,
    byol_imagenette,
    simclr_imagenet100,
    moco_imagenet100,
    byol_imagenet100,
    supcon_imagenet100,
    simclr_imagenet,
    moco_imagenet,
    byol_imagenet,
    supcon_imagenet,
)
RECIPES: Mapping[str, Callable[[], PretrainConfig]] = MappingProxyType(
    {function.__name__.replace("_", "-"): function for function in _FUNCTIONS}
)


def tiny(config: PretrainConfig) -> PretrainConfig:
    """The same recipe with network, pictures and batch so small that it trains in a second."""
    method = config.method
    if isinstance(method, MoCoConfig):
        method = replace(method, queue_size=32, key_groups=2)
    if isinstance(method, BYOLConfig):
        method = replace(method, predictor=replace(method.predictor, hidden_dim=16))
    return replace(
        config,
        method=method,
        backbone=BackboneConfig(widths=(8, 16)),
        projector=replace(config.projector, hidden_dim=16, output_dim=8),
        preprocess=replace(config.preprocess, size=16),
        view_a=replace(config.view_a, crop_size=16),
        view_b=replace(config.view_b, crop_size=16),
        view_local=(
            replace(config.view_local, crop_size=8) if config.local_views else config.view_local
        ),
        health=HealthConfig(every=2),
        batch_size=8,
        epochs=2,
    )
