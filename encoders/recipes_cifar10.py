"""Recipes for CIFAR-10 with ResNet-18, as published; their results were not reproduced here.

All share these deviations, which docs/methods.md explains: rates follow the cosine per step and not
per epoch, the pictures after an epoch's last whole batch are left out, crops are resampled by one
antialiased filter and not rounded to whole pixels.
"""

from __future__ import annotations

from dataclasses import replace

from encoders.augment import AugmentConfig
from encoders.backbone import BackboneConfig
from encoders.byol import BYOLConfig
from encoders.heads import PredictorConfig, ProjectorConfig
from encoders.moco import MoCoConfig
from encoders.momentum import MomentumConfig
from encoders.optim import OptimConfig
from encoders.preprocess import PreprocessConfig
from encoders.pretrain_config import PretrainConfig
from encoders.simclr import SimCLRConfig
from encoders.supcon import SupConConfig

__all__ = ["byol_cifar10", "moco_cifar10", "simclr_cifar10", "supcon_cifar10"]

CIFAR10 = PreprocessConfig(size=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
# As torchvision builds it, which is what the published CIFAR runs started from.
RESNET18 = BackboneConfig(name="resnet18", zero_init_residual=False)


def simclr_cifar10() -> PretrainConfig:
    """SimCLR on CIFAR-10 with ResNet-18, 1000 epochs.

    Source: github.com/dkobak/simclr-cifar10 (2025).
    Cost: 11.9 s an epoch on an A100, 3.3 hours.
    Result: mean of 3 seeds, kNN (k 10, cosine) 91.4, linear 91.7. In 100 epochs at twice the rate:
    kNN 83.2, linear 85.6.
    Deviations: both views pass the network in one batch, the source's pass one after the other, so
    its BatchNorm sees one view at a time.
    """
    view = AugmentConfig(gray_probability=0.1)
    return PretrainConfig(
        method=SimCLRConfig(temperature=0.5),
        backbone=RESNET18,
        projector=ProjectorConfig(hidden_dim=1024, output_dim=128, batch_norm=False),
        # The source feeds plain [0, 1].
        preprocess=PreprocessConfig(size=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        view_a=view,
        view_b=view,
        optim=OptimConfig(lr=0.03, lr_scaling="linear", weight_decay=5e-4, decay_all=True),
        batch_size=512,
        epochs=1000,
    )


def moco_cifar10() -> PretrainConfig:
    """MoCo on CIFAR-10 with ResNet-18, 200 epochs.

    Source: the CIFAR-10 demonstration of github.com/facebookresearch/moco, asymmetric loss.
    Cost: not stated by the source; about two thirds of a `simclr_cifar10` epoch, since only one
    view is passed backwards.
    Result: kNN (k 200, temperature 0.1, on the projection) 82.6; 86.3 at 400 and 88.7 at 800
    epochs.
    Deviations: BatchNorm of queries runs over the whole batch, not over 8 parts of it; the queue
    starts empty; keys of the query's own picture are masked.
    """
    view = AugmentConfig(crop_scale=(0.08, 1.0))
    return PretrainConfig(
        method=MoCoConfig(temperature=0.1, queue_size=4096, key_groups=8),
        backbone=RESNET18,
        projector=ProjectorConfig(num_layers=1, output_dim=128),
        preprocess=CIFAR10,
        view_a=view,
        view_b=view,
        optim=OptimConfig(lr=0.06, weight_decay=5e-4, decay_all=True),
        batch_size=512,
        epochs=200,
    )


def byol_cifar10() -> PretrainConfig:
    """BYOL on CIFAR-10 with ResNet-18, 200 epochs.

    Source: the CIFAR-10 benchmark of github.com/lightly-ai/lightly.
    Cost: 122 minutes as the source reports, on a GPU that it does not name.
    Result: kNN (k 200, temperature 0.1) 86.9, the best of all epochs on the test set; 91.0 with
    batch 512 and 800 epochs.
    Deviations: the source's loss is a quarter of ours, so its learning rate 0.06 is divided and its
    weight decay 5e-4 multiplied by 4, which makes the same steps; the
    target's running statistics follow too.
    """
    first = AugmentConfig(crop_scale=(0.08, 1.0), saturation=0.2)
    return PretrainConfig(
        method=BYOLConfig(
            predictor=PredictorConfig(hidden_dim=1024),
            momentum=MomentumConfig(start=0.99, schedule="constant"),
        ),
        backbone=RESNET18,
        projector=ProjectorConfig(hidden_dim=1024, output_dim=256),
        # ImageNet's means, as the source takes them for CIFAR too.
        preprocess=PreprocessConfig(size=32),
        view_a=first,
        view_b=replace(first, solarise_probability=0.2),
        optim=OptimConfig(lr=0.015, weight_decay=2e-3, decay_all=True),
        batch_size=128,
        epochs=200,
    )


def supcon_cifar10() -> PretrainConfig:
    """SupCon on CIFAR-10 with ResNet-18, 1000 epochs.

    Source: github.com/HobbitLong/SupContrast.
    Cost: about that of `simclr_cifar10`.
    Result: the source reports 96.0 (linear) for ResNet-50 and nothing for ResNet-18; solo-learn
    reports 93.8 for ResNet-18 with SGD and the L_in loss.
    Deviations: ResNet-18, and a head as wide as its features; the source multiplies its loss by
    0.1 / 0.07, so its learning rate 0.5 is multiplied and its weight decay 1e-4 divided by that,
    which makes the same steps; warm-up starts near 0 instead of at a fiftieth of the peak.
    """
    return PretrainConfig(
        method=SupConConfig(temperature=0.1),
        backbone=RESNET18,
        projector=ProjectorConfig(hidden_dim=512, output_dim=128, batch_norm=False),
        preprocess=CIFAR10,
        optim=OptimConfig(
            lr=0.5 / 0.7,
            weight_decay=0.7e-4,
            decay_all=True,
            warmup_share=0.01,
            final_share=1e-3,
        ),
        batch_size=1024,
        epochs=1000,
    )
