"""Recipes for ImageNet, ImageNet-100 and Imagenette, as published; not reproduced here.

All share these deviations, which docs/methods.md explains: crops are cut from the picture's central
square, kept at 256 px (160 for Imagenette), and not from the whole picture; the finished encoder
sees that square, where the sources cut 224 px (128) from its centre, so that things look equally
large. Networks run in bfloat16, in the sources in float16 or float32. Pictures after the last whole
batch of an epoch are left out.
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

__all__ = [
    "byol_imagenet",
    "byol_imagenet100",
    "byol_imagenette",
    "moco_imagenet",
    "moco_imagenet100",
    "simclr_imagenet",
    "simclr_imagenet100",
    "supcon_imagenet",
    "supcon_imagenet100",
]

KEPT = PreprocessConfig(size=256)
CROP = 224
RESNET18 = BackboneConfig(name="resnet18", zero_init_residual=False)
RESNET50 = BackboneConfig(name="resnet50", zero_init_residual=False)
WEAK = replace(AugmentConfig.moco_v2(CROP), crop_scale=(0.08, 1.0))
# solo-learn's LARS, but for its norms: see `LARS`.
SOLO_LARS = OptimConfig(
    name="lars",
    lr_scaling="linear",
    trust_coefficient=0.02,
    trust_cap=True,
    warmup_share=10 / 400,
)
SOLO_SGD = OptimConfig(lr_scaling="linear", decay_all=True, warmup_share=10 / 400)


def simclr_imagenet100() -> PretrainConfig:
    """SimCLR on ImageNet-100 with ResNet-18 at 224 px, 400 epochs.

    Source: github.com/vturrisi/solo-learn, 2 GPUs with 128 pictures each.
    Cost: not stated by the source; lightly reports 20 hours for 200 epochs of the same network and
    batch on one A6000. The pictures take 25 GB.
    Result: 77.64 (linear probe during training).
    Deviations: its LARS divides by the sum of the norms of gradient and decay, ours by the norm of
    their sum; its learning rate stands outside the momentum.
    """
    view = AugmentConfig.simclr(CROP, strength=1.0)
    return _imagenet100(
        method=SimCLRConfig(temperature=0.2),
        projector=ProjectorConfig(hidden_dim=4096, output_dim=512, batch_norm=False),
        views=(view, view),
        optim=replace(SOLO_LARS, lr=0.3, weight_decay=1e-4),
    )


def moco_imagenet100() -> PretrainConfig:
    """MoCo v2 on ImageNet-100 with ResNet-18 at 224 px, 400 epochs.

    Source: MoCo v2+ of github.com/vturrisi/solo-learn, 2 GPUs with 128 pictures each.
    Cost: not stated by the source; lightly reports 22 hours for 200 epochs of the same network and
    batch on one A6000. The pictures take 25 GB.
    Result: 79.28 (linear), of a loss in both directions; ours has one, so expect less.
    Deviations: the source averages two losses, each view being query once, and keeps a queue for
    each; its keys see BatchNorm over the whole batch, ours over 8 shuffled groups; the queue starts
    empty; keys of the query's own picture are masked.
    """
    return _imagenet100(
        method=MoCoConfig(
            temperature=0.2, queue_size=65536, momentum=MomentumConfig(start=0.99, end=0.999)
        ),
        projector=ProjectorConfig(hidden_dim=2048, output_dim=256, batch_norm=False),
        views=(WEAK, WEAK),
        optim=replace(SOLO_SGD, lr=0.3, weight_decay=1e-4),
    )


def byol_imagenet100() -> PretrainConfig:
    """BYOL on ImageNet-100 with ResNet-18 at 224 px, 400 epochs.

    Source: github.com/vturrisi/solo-learn, 2 GPUs with 128 pictures each; its loss has our scale.
    Cost: not stated by the source; lightly reports 22 hours for 200 epochs of the same network and
    batch on one A6000. The pictures take 25 GB.
    Result: 80.32 (linear), 80.16 during training.
    Deviations: LARS as in `simclr_imagenet100`; the target's running statistics follow too.
    """
    return _imagenet100(
        method=BYOLConfig(
            predictor=PredictorConfig(hidden_dim=8192), momentum=MomentumConfig(start=0.99)
        ),
        projector=ProjectorConfig(hidden_dim=4096, output_dim=256),
        views=(AugmentConfig.byol(CROP, 0), AugmentConfig.byol(CROP, 1)),
        optim=replace(SOLO_LARS, lr=0.5, weight_decay=1e-6),
    )


def supcon_imagenet100() -> PretrainConfig:
    """SupCon on ImageNet-100 with ResNet-18 at 224 px, 400 epochs.

    Source: github.com/vturrisi/solo-learn, 2 GPUs with 128 pictures each.
    Cost: not stated by the source; that of `simclr_imagenet100`.
    Result: 84.40 (linear probe during training).
    Deviations: the source's loss is the L_in form, ours L_out (docs/methods.md); their scale is the
    same.
    """
    view = AugmentConfig.simclr(CROP, strength=1.0)
    return _imagenet100(
        method=SupConConfig(temperature=0.2),
        projector=ProjectorConfig(hidden_dim=2048, output_dim=512, batch_norm=False),
        views=(view, view),
        optim=replace(SOLO_SGD, lr=0.5, weight_decay=1e-5),
    )


def _imagenet100(
    method: SimCLRConfig | MoCoConfig | BYOLConfig | SupConConfig,
    projector: ProjectorConfig,
    views: tuple[AugmentConfig, AugmentConfig],
    optim: OptimConfig,
) -> PretrainConfig:
    """What solo-learn's four runs have in common."""
    return PretrainConfig(
        method=method,
        backbone=RESNET18,
        projector=projector,
        preprocess=KEPT,
        view_a=views[0],
        view_b=views[1],
        optim=optim,
        batch_size=256,
        epochs=400,
        precision="bf16",
    )


def simclr_imagenet() -> PretrainConfig:
    """SimCLR on ImageNet with ResNet-50, 100 epochs.

    Source: github.com/google-research/simclr, the README's command.
    Cost: 6 hours on 32 TPU v3. The pictures take 252 GB.
    Result: about 64.5 (linear); 69.1 in 1000 epochs.
    Deviations: the source's loss is twice ours. LARS is blind to that but for weight decay, so its
    1e-4 is halved, and for biases and norm scales, which it does not adapt and which move half as
    far here. The last BatchNorm of the head has no scale here.
    """
    view = AugmentConfig.simclr(CROP, strength=1.0)
    return PretrainConfig(
        method=SimCLRConfig(temperature=0.1),
        backbone=replace(RESNET50, zero_init_residual=True),
        projector=ProjectorConfig(
            hidden_dim=2048, output_dim=128, num_layers=3, output_batch_norm=True
        ),
        preprocess=KEPT,
        view_a=view,
        view_b=view,
        optim=OptimConfig(
            name="lars", lr=0.3, lr_scaling="linear", weight_decay=0.5e-4, warmup_share=0.1
        ),
        batch_size=4096,
        epochs=100,
        precision="bf16",
    )


def moco_imagenet() -> PretrainConfig:
    """MoCo v2 on ImageNet with ResNet-50, 200 epochs.

    Source: github.com/facebookresearch/moco, the README's settings for v2.
    Cost: 53 hours on 8 V100. The pictures take 252 GB.
    Result: 67.5 ± 0.1 (linear, 5 runs); 71.1 in 800 epochs.
    Deviations: BatchNorm of queries runs over the whole batch, not over the 32 pictures of a GPU;
    the queue starts empty; keys of the query's own picture are masked; the cosine is per step.
    """
    view = AugmentConfig.moco_v2(CROP)
    return PretrainConfig(
        method=MoCoConfig(
            temperature=0.2,
            queue_size=65536,
            momentum=MomentumConfig(start=0.999, schedule="constant"),
        ),
        backbone=RESNET50,
        projector=ProjectorConfig(hidden_dim=2048, output_dim=128, batch_norm=False),
        preprocess=KEPT,
        view_a=view,
        view_b=view,
        optim=OptimConfig(lr=0.03, lr_scaling="linear", weight_decay=1e-4, decay_all=True),
        batch_size=256,
        epochs=200,
        precision="bf16",
    )


def byol_imagenet() -> PretrainConfig:
    """BYOL on ImageNet with ResNet-50, 1000 epochs.

    Source: github.com/google-deepmind/deepmind-research (byol), its settings for 1000 epochs; its
    loss has our scale. For 300 epochs they are lr 0.3, decay 1e-6, momentum 0.99; for 100 and 40
    lr 0.45, momentum 0.99 and 0.97.
    Cost: 8 hours on 512 cores of TPU v3. The pictures take 252 GB.
    Result: 74.0 to 74.5 (linear).
    Deviations: brightness is multiplied, the source adds; the target starts as a copy of the online
    network; its running statistics follow too; LARS' learning rate stands inside the momentum.
    """
    config = _byol_of_the_authors(CROP, lr=0.2, weight_decay=1.5e-6)
    backbone = replace(RESNET50, zero_init_residual=True)
    return replace(config, backbone=backbone, preprocess=KEPT, batch_size=4096)


def byol_imagenette() -> PretrainConfig:
    """BYOL on Imagenette (160 px) with ResNet-18 on crops of 128 px, 1000 epochs.

    Source: github.com/google-deepmind/deepmind-research (byol), the README's setup for fast
    iteration.
    Cost: about 4 hours on one V100.
    Result: about 92.3 (linear probe during training).
    Deviations: as `byol_imagenet`.
    """
    config = _byol_of_the_authors(128, lr=2.0, weight_decay=1e-6)
    backbone = replace(RESNET18, zero_init_residual=True)
    preprocess = PreprocessConfig(size=160)
    return replace(config, backbone=backbone, preprocess=preprocess, batch_size=256)


def _byol_of_the_authors(crop_size: int, lr: float, weight_decay: float) -> PretrainConfig:
    """What both of the authors' runs over 1000 epochs have in common."""
    return PretrainConfig(
        method=BYOLConfig(
            predictor=PredictorConfig(hidden_dim=4096), momentum=MomentumConfig(start=0.996)
        ),
        projector=ProjectorConfig(hidden_dim=4096, output_dim=256),
        preprocess=KEPT,
        view_a=AugmentConfig.byol(crop_size, 0),
        view_b=AugmentConfig.byol(crop_size, 1),
        optim=OptimConfig(
            name="lars",
            lr=lr,
            lr_scaling="linear",
            weight_decay=weight_decay,
            warmup_share=10 / 1000,
        ),
        epochs=1000,
        precision="bf16",
    )


def supcon_imagenet() -> PretrainConfig:
    """SupCon on ImageNet with ResNet-50, 350 epochs.

    Source: github.com/google-research/google-research (supcon), the script for ResNet-50; the
    hidden layer of the head is the paper's (section 3.1), which the script leaves out.
    Cost: 128 cores of TPU v3; hours not stated. The pictures take 252 GB.
    Result: the paper reports 78.7 (linear) with AutoAugment.
    Deviations: SimCLR's augmentation instead of AutoAugment, so expect less; the source's loss is
    multiplied by the temperature, 0.1, so its weight decay 1e-3 is multiplied by 10; biases and
    norm scales, which LARS does not adapt, move 10 times as far here; the source decays and adapts
    biases too, and normalises features before the head.
    """
    view = AugmentConfig.simclr(CROP, strength=1.0)
    return PretrainConfig(
        method=SupConConfig(temperature=0.1),
        backbone=replace(RESNET50, zero_init_residual=True),
        projector=ProjectorConfig(hidden_dim=2048, output_dim=128, batch_norm=False),
        preprocess=KEPT,
        view_a=view,
        view_b=view,
        optim=OptimConfig(
            name="lars", lr=0.4, lr_scaling="linear", weight_decay=1e-2, warmup_share=12 / 350
        ),
        batch_size=6144,
        epochs=350,
        precision="bf16",
    )
