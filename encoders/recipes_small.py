"""Recipes for 2,000 to 20,000 pictures on two CPU cores. They are ours (docs/log.md)."""

from __future__ import annotations

from dataclasses import replace

from encoders.augment import AugmentConfig
from encoders.byol import BYOLConfig
from encoders.heads import ProjectorConfig
from encoders.moco import MoCoConfig
from encoders.momentum import MomentumConfig
from encoders.optim import OptimConfig
from encoders.preprocess import PreprocessConfig
from encoders.pretrain_config import PretrainConfig
from encoders.simclr import SimCLRConfig
from encoders.supcon import SupConConfig

__all__ = ["byol_small", "moco_small", "simclr_small", "supcon_finetune_small", "supcon_small"]


def simclr_small() -> PretrainConfig:
    """SimCLR on crops of 32 px with a narrow ResNet, for a CPU.

    Pictures are kept, and embedded, at 48 px: crops show things larger than whole pictures do, and
    the larger input evens that out (Touvron et al. 2019, "Fixing the train-test resolution
    discrepancy").

    Source: ours, tuned on OpenMoji (docs/log.md); SimCLR's loss with a mild blur and less gray, and
    one-cycle SGD instead of LARS for the short run.
    Cost: about 0.2 s a step, so 2,500 pictures take about 5 minutes on two cores.
    Result: on OpenMoji recall@1 of find-the-original 57 % from the backbone and 71 % from the
    projector, kNN-5 67 %, n = 1 (README).
    """
    return _small(method=SimCLRConfig(temperature=0.1))


def moco_small() -> PretrainConfig:
    """MoCo v2 on crops of 32 px with a narrow ResNet, for a CPU; its queue suits 2,000 pictures.

    Source: ours; momentum and groups are those of MoCo's CIFAR-10 demonstration. The rate is lower
    than `simclr_small`'s: a key encoder cannot follow weights that move fast.
    Cost: as `simclr_small`.
    Result: with rates and views for Fashion-MNIST, kNN-20 86.3 % after ten minutes on two CPU
    cores, n = 3, where raw pixels have 85.9 (docs/benchmarks.md, accuracy in equal time).
    """
    return _small(method=MoCoConfig(queue_size=2048), lr=0.03)


def byol_small() -> PretrainConfig:
    """BYOL on crops of 32 px with a narrow ResNet, for a CPU.

    Source: ours; the momentum is the one that the authors take for their shortest runs, since a
    target that follows slower does not arrive.
    Cost: half as much again as `simclr_small`; the target network passes both views as well.
    Result: with rates and views for Fashion-MNIST, kNN-20 86.6 % after ten minutes on two CPU
    cores, n = 3, where raw pixels have 85.9 (docs/benchmarks.md, accuracy in equal time).
    """
    config = _small(method=BYOLConfig(momentum=MomentumConfig(start=0.97)))
    return replace(config, view_b=replace(config.view_b, solarise_probability=0.2))


def supcon_small() -> PretrainConfig:
    """SupCon on crops of 32 px with a narrow ResNet, for a CPU and a corpus with labels.

    Source: ours; `simclr_small` with the supervised loss.
    Cost: as `simclr_small`.
    Result: with rates and views for Fashion-MNIST, kNN-20 91.0 % after ten minutes on two CPU
    cores, n = 3, where raw pixels have 85.9 (docs/benchmarks.md, accuracy in equal time).
    """
    return _small(method=SupConConfig(temperature=0.1))


def supcon_finetune_small() -> PretrainConfig:
    """SupCon from a few labels on an encoder that is trained already, for a CPU: ``--start``.

    Learns from the labelled pictures alone, in small batches. Below some 20 labels a class it knows
    them by heart and what else the encoder knew is lost: train on without labels then.

    Source: ours; `supcon_small` with a quarter of its batch and half of its epochs.
    Cost: that of 40 passes over the labelled pictures.
    Result: on scikit-learn's digits with 20 labels a class kNN-5 from 79.5 to 94.1 % (10 further
    epochs of SimCLR over all pictures: 89.6), with 50 from 84 to 98, with 5 from 63.8 to 60.9:
    means of 2 or 3 seeds (docs/log.md).
    """
    config = _small(method=SupConConfig(temperature=0.1))
    return replace(config, epochs=40, batch_size=32)


def _small(
    method: SimCLRConfig | MoCoConfig | BYOLConfig | SupConConfig, lr: float = 0.1
) -> PretrainConfig:
    view = AugmentConfig(gray_probability=0.1, blur_probability=0.3, blur_sigma=(0.1, 1.0))
    return PretrainConfig(
        epochs=75,
        method=method,
        projector=ProjectorConfig(hidden_dim=256, output_dim=128),
        preprocess=PreprocessConfig(size=48, decode_edge=0),
        view_a=view,
        view_b=view,
        optim=OptimConfig(lr=lr, schedule="one_cycle", warmup_share=0.3),
    )
