"""Named recipes: whole configurations with their source, cost and expected result.

The ``-small`` ones are ours, for 2,000 to 20,000 pictures on two CPU cores. The others follow
published runs; their results are those that the source reports and were not reproduced here. `tiny`
shrinks any of them for a test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from encoders.augment import AugmentConfig
from encoders.backbone import BackboneConfig
from encoders.byol import BYOLConfig
from encoders.heads import PredictorConfig, ProjectorConfig
from encoders.health import HealthConfig
from encoders.moco import MoCoConfig
from encoders.momentum import MomentumConfig
from encoders.optim import OptimConfig
from encoders.picture import PreprocessConfig
from encoders.pretrain_config import PretrainConfig
from encoders.simclr import SimCLRConfig
from encoders.supcon import SupConConfig

__all__ = [
    "RECIPES",
    "byol_cifar10",
    "byol_small",
    "moco_cifar10",
    "moco_small",
    "simclr_cifar10",
    "simclr_imagenet100",
    "simclr_small",
    "supcon_cifar10",
    "supcon_small",
    "tiny",
]

MethodSettings = SimCLRConfig | MoCoConfig | BYOLConfig | SupConConfig

CIFAR10 = PreprocessConfig(size=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
# As torchvision builds it, which is what the published CIFAR runs started from.
RESNET18 = BackboneConfig(name="resnet18", zero_init_residual=False)


def simclr_small() -> PretrainConfig:
    """SimCLR on crops of 32 px with a narrow ResNet, for a CPU.

    Pictures are kept, and embedded, at 48 px: crops show things larger than whole pictures do, and
    the larger input evens that out (Touvron et al. 2019, "Fixing the train-test resolution
    discrepancy").

    Source: ours, tuned on OpenMoji (docs/log.md); SimCLR's loss with a mild blur and less gray, and
    one-cycle SGD instead of LARS for the short run.
    Cost: about 0.2 s a step, so 2,500 pictures take about 5 minutes on two cores.
    """
    return _small(method=SimCLRConfig(temperature=0.1))


def moco_small() -> PretrainConfig:
    """MoCo v2 on crops of 32 px with a narrow ResNet, for a CPU; its queue suits 2,000 pictures.

    Source: ours; momentum and groups are those of MoCo's CIFAR-10 demonstration. The rate is lower
    than `simclr_small`'s: a key encoder cannot follow weights that move fast.
    Cost: as `simclr_small`.
    """
    return _small(method=MoCoConfig(queue_size=2048), lr=0.03)


def byol_small() -> PretrainConfig:
    """BYOL on crops of 32 px with a narrow ResNet, for a CPU.

    Source: ours; the momentum is the one that the paper takes for its shortest runs, since a target
    that follows slower does not arrive.
    Cost: half as much again as `simclr_small`; the target network passes both views as well.
    """
    config = _small(method=BYOLConfig(momentum=MomentumConfig(start=0.97)))
    return replace(config, view_b=replace(config.view_b, solarise_probability=0.2))


def supcon_small() -> PretrainConfig:
    """SupCon on crops of 32 px with a narrow ResNet, for a CPU and a corpus with labels.

    Source: ours; `simclr_small` with the supervised loss.
    Cost: as `simclr_small`.
    """
    return _small(method=SupConConfig(temperature=0.1))


def _small(method: MethodSettings, lr: float = 0.1) -> PretrainConfig:
    view = AugmentConfig(gray_probability=0.1, blur_probability=0.3, blur_sigma=(0.1, 1.0))
    return PretrainConfig(
        epochs=75,
        method=method,
        projector=ProjectorConfig(hidden_dim=256, output_dim=128),
        preprocess=PreprocessConfig(size=48),
        view_a=view,
        view_b=view,
        optim=OptimConfig(lr=lr, schedule="one_cycle", warmup_share=0.3),
    )


def simclr_cifar10() -> PretrainConfig:
    """SimCLR on CIFAR-10 with ResNet-18, 1000 epochs.

    Source: github.com/dkobak/simclr-cifar10 (2025), mean of 3 seeds: kNN (k 10, cosine) 91.4,
    linear 91.7. 100 epochs at twice the base rate: kNN 83.2, linear 85.6.
    Cost: 11.9 s an epoch on an A100, 3.3 hours.
    Deviation: none known.
    """
    view = AugmentConfig(gray_probability=0.1)
    return PretrainConfig(
        method=SimCLRConfig(temperature=0.5),
        backbone=RESNET18,
        projector=ProjectorConfig(hidden_dim=1024, output_dim=128, batch_norm=False),
        preprocess=CIFAR10,
        view_a=view,
        view_b=view,
        optim=OptimConfig(lr=0.03, lr_scaling="linear", weight_decay=5e-4, decay_all=True),
        batch_size=512,
        epochs=1000,
    )


def moco_cifar10() -> PretrainConfig:
    """MoCo on CIFAR-10 with ResNet-18, 200 epochs.

    Source: the CIFAR-10 demonstration of github.com/facebookresearch/moco, asymmetric loss: kNN (k
    200, temperature 0.1, on the projection) 82.6; 86.3 at 400 and 88.7 at 800 epochs.
    Cost: not stated by the source; one forward pass more than half of `simclr_cifar10`.
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

    Source: the CIFAR-10 benchmark of github.com/lightly-ai/lightly: kNN (k 200, temperature 0.1)
    86.9, the best of all epochs on the test set; 91.0 with batch 512 and 800 epochs.
    Cost: not stated by the source for this method.
    Deviation: the source's loss is a quarter of ours, so its learning rate 0.06 is divided and its
    weight decay 5e-4 multiplied by 4, which makes the same steps.
    """
    first = AugmentConfig(crop_scale=(0.08, 1.0), saturation=0.2)
    return PretrainConfig(
        method=BYOLConfig(
            predictor=PredictorConfig(hidden_dim=1024),
            momentum=MomentumConfig(start=0.99, schedule="constant"),
        ),
        backbone=RESNET18,
        projector=ProjectorConfig(hidden_dim=1024, output_dim=256),
        preprocess=CIFAR10,
        view_a=first,
        view_b=replace(first, solarise_probability=0.2),
        optim=OptimConfig(lr=0.015, weight_decay=2e-3, decay_all=True),
        batch_size=128,
        epochs=200,
    )


def supcon_cifar10() -> PretrainConfig:
    """SupCon on CIFAR-10 with ResNet-18, 1000 epochs.

    Source: github.com/HobbitLong/SupContrast, which reports 96.0 (linear) for ResNet-50 and nothing
    for ResNet-18; solo-learn reports 93.8 for ResNet-18 with the L_in loss and LARS.
    Cost: about that of `simclr_cifar10`.
    Deviations: ResNet-18; the source multiplies its loss by 0.1 / 0.07, so its learning rate 0.5 is
    multiplied and its weight decay 1e-4 divided by that, which makes the same steps; the rate falls
    to 0 instead of to a thousandth.
    """
    return PretrainConfig(
        method=SupConConfig(temperature=0.1),
        backbone=RESNET18,
        projector=ProjectorConfig(hidden_dim=512, output_dim=128, batch_norm=False),
        preprocess=CIFAR10,
        optim=OptimConfig(lr=0.5 / 0.7, weight_decay=0.7e-4, decay_all=True, warmup_share=0.01),
        batch_size=1024,
        epochs=1000,
    )


def simclr_imagenet100() -> PretrainConfig:
    """SimCLR on ImageNet-100 with ResNet-18 at 224 px, 400 epochs.

    Source: github.com/vturrisi/solo-learn, which trained on 2 GPUs with 128 pictures each: 77.6
    (linear probe during training).
    Cost: not stated by the source; about a day on one A100 is a fair guess.
    Deviation: its LARS also caps the layer-wise rate at the global one, ours does not.
    """
    view = AugmentConfig.simclr(224, strength=1.0)
    return PretrainConfig(
        method=SimCLRConfig(temperature=0.2),
        backbone=RESNET18,
        projector=ProjectorConfig(hidden_dim=4096, output_dim=512, batch_norm=False),
        preprocess=PreprocessConfig(size=224),
        view_a=view,
        view_b=view,
        optim=OptimConfig(
            name="lars",
            lr=0.3,
            lr_scaling="linear",
            trust_coefficient=0.02,
            weight_decay=1e-4,
            warmup_share=0.025,
        ),
        batch_size=256,
        epochs=400,
        precision="bf16",
    )


RECIPES: Mapping[str, Callable[[], PretrainConfig]] = MappingProxyType(
    {
        "simclr-small": simclr_small,
        "moco-small": moco_small,
        "byol-small": byol_small,
        "supcon-small": supcon_small,
        "simclr-cifar10": simclr_cifar10,
        "moco-cifar10": moco_cifar10,
        "byol-cifar10": byol_cifar10,
        "supcon-cifar10": supcon_cifar10,
        "simclr-imagenet100": simclr_imagenet100,
    }
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
