"""Settings chosen from the corpus: pixels, network, batch, learning rate, epochs, queue.

The result is a plain configuration together with the reason for each choice, to be said aloud and
overridden. It starts from the recipe that was tuned or published for the nearest case. What it is
for, a CPU or a GPU, is stated by whoever asks and never found out: the same request gives the same
numbers on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from encoders.backbone import BackboneConfig, resolve_stem
from encoders.byol import BYOLConfig
from encoders.moco import MoCoConfig
from encoders.momentum import MomentumConfig
from encoders.optim import REFERENCE_BATCH
from encoders.preprocess import PreprocessConfig
from encoders.pretrain_config import PretrainConfig
from encoders.recipes import RECIPES

__all__ = ["AUTO_RECIPES", "Automatic", "Hardware", "auto_config"]

Hardware = Literal["cpu", "gpu"]

METHODS = ("simclr", "moco", "byol", "supcon")
# Name on the command line to method and hardware.
AUTO_RECIPES: Mapping[str, tuple[str, Hardware]] = MappingProxyType(
    {f"{method}-auto": (method, "cpu") for method in METHODS}
    | {f"{method}-auto-gpu": (method, "gpu") for method in METHODS}
)

# Crops up to here are small pictures, trained as CIFAR is; larger ones as ImageNet is.
SMALL_CROP = 64
LARGE_CORPUS = 100_000
MIN_BATCH = 8
# Steps of a run, and where BYOL's target starts: the authors' three values, slower in longer runs.
TARGETS = ((5_000, 0.97), (50_000, 0.99), (math.inf, 0.996))


@dataclass(frozen=True, kw_only=True, slots=True)
class Automatic:
    """A configuration, and why it is as it is."""

    config: PretrainConfig
    """What to train."""
    reasons: tuple[str, ...]
    """A sentence for each choice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Budget:
    """How much training a kind of hardware is given."""

    name: str
    crops: tuple[int, ...]
    """In pixels, the largest first; pictures below the last are enlarged."""
    kept: float
    """Kept pictures over crops, as far as the pictures are so large."""
    max_batch: int
    max_queue: int
    num_steps: int
    """For up to ``num_pictures``; the square root of the ratio more for larger corpora."""
    num_pictures: int
    epochs: tuple[int, int]
    """Never fewer, never more."""
    lr_power: float
    """The learning rate grows with this power of the batch."""


BUDGETS: Mapping[str, _Budget] = MappingProxyType(
    {
        # The steps of the run that the small recipes were tuned with.
        "cpu": _Budget(
            name="two CPU cores",
            crops=(32, 16),
            kept=48 / 32,
            max_batch=128,
            max_queue=4096,
            num_steps=1425,
            num_pictures=5_000,
            epochs=(10, 400),
            lr_power=0.5,
        ),
        # 200 epochs of CIFAR-10.
        "gpu": _Budget(
            name="one GPU",
            crops=(224, 128, 96, 64, 32),
            kept=256 / 224,
            max_batch=256,
            max_queue=65_536,
            num_steps=40_000,
            num_pictures=50_000,
            epochs=(20, 1000),
            lr_power=1.0,
        ),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Corpus:
    num_pictures: int
    edge: int
    budget: _Budget


def auto_config(method: str, num_pictures: int, edge: int, hardware: Hardware) -> Automatic:
    """Choose a configuration for a corpus.

    Args:
        method: simclr, moco, byol or supcon.
        num_pictures: that can be trained on.
        edge: median of the pictures' shorter edges in pixels.
        hardware: what it shall be affordable on: two CPU cores in minutes, or one GPU in hours.

    Raises:
        ValueError: an unknown method or hardware, or a corpus of fewer than two pictures.
    """
    if method not in METHODS or hardware not in BUDGETS:
        raise ValueError(
            f"automatic settings for {method!r} on {hardware!r}: the method must be one of "
            f"{', '.join(METHODS)}, the hardware cpu or gpu. Choose such a pair."
        )
    if num_pictures < 2 or edge < 1:
        raise ValueError(
            f"automatic settings for {num_pictures} pictures of {edge} px: there must be 2 "
            "pictures or more, of 1 px or more. Scan more pictures."
        )
    corpus = _Corpus(num_pictures=num_pictures, edge=edge, budget=BUDGETS[hardware])
    crop = next((crop for crop in corpus.budget.crops if crop <= edge), corpus.budget.crops[-1])
    base = f"{method}-{_data_like(crop, hardware)}"
    config = RECIPES[base]()
    reasons = [
        f"{num_pictures:,} pictures with a median shorter edge of {edge} px, on "
        f"{corpus.budget.name}: starting from {base}."
    ]
    config = _with_crops(config, crop, corpus)
    reasons.append(_why_crops(config, corpus))
    for choose in (_network, _batch, _epochs, _memory):
        config, reason = choose(config, corpus)
        reasons += [reason] if reason else []
    return Automatic(config=config, reasons=tuple(reasons))


def _data_like(crop: int, hardware: Hardware) -> str:
    if hardware == "cpu":
        return "small"
    return "cifar10" if crop <= SMALL_CROP else "imagenet100"


def _with_crops(config: PretrainConfig, crop: int, corpus: _Corpus) -> PretrainConfig:
    """Crops of this size, from somewhat larger pictures as far as the corpus has them."""
    size = max(crop, min(round(crop * corpus.budget.kept), corpus.edge))
    return replace(
        config,
        preprocess=PreprocessConfig(size=size, decode_edge=0),
        view_a=replace(config.view_a, crop_size=crop),
        view_b=replace(config.view_b, crop_size=crop),
    )


def _why_crops(config: PretrainConfig, corpus: _Corpus) -> str:
    crop, size = config.view_a.crop_size, config.preprocess.size
    if corpus.edge < size:
        return f"Pictures are enlarged to {size} px, the least that a network here takes."
    if crop == size:
        return f"Pictures are kept at {size} px, and crops enlarged to that."
    return (
        f"Crops of {crop} px from pictures kept at {size} px: crops show things larger than whole "
        "pictures do, which a larger whole evens out."
    )


def _network(config: PretrainConfig, corpus: _Corpus) -> tuple[PretrainConfig, str]:
    """ResNet-50 only for many large pictures; the stem by the size of the pictures."""
    if config.backbone.name == "narrow":
        why = "what two cores can train"
    elif corpus.num_pictures >= LARGE_CORPUS and config.view_a.crop_size > SMALL_CROP:
        config = replace(config, backbone=BackboneConfig(name="resnet50", zero_init_residual=False))
        why = f"pictures are large, and {LARGE_CORPUS:,} or more"
    else:
        why = f"ResNet-50 pays from {LARGE_CORPUS:,} pictures of 96 px on"
    config = replace(config, precision="fp32" if config.backbone.name == "narrow" else "bf16")
    stem = resolve_stem(config.backbone, config.preprocess.size)
    return config, (
        f"Backbone {config.backbone.name} ({why}) with the {stem} stem, "
        f"which suits {config.preprocess.size} px; {config.precision}."
    )


def _batch(config: PretrainConfig, corpus: _Corpus) -> tuple[PretrainConfig, str]:
    """At least four steps an epoch where that leaves batches of 8; the rate that goes with it."""
    budget, old = corpus.budget, config.batch_size
    batch = max(
        _power_of_two(min(budget.max_batch, corpus.num_pictures // 4)),
        _power_of_two(min(MIN_BATCH, corpus.num_pictures)),
    )
    peak = config.optim.lr * (old / REFERENCE_BATCH if config.optim.lr_scaling == "linear" else 1)
    lr = float(f"{peak * (batch / old) ** budget.lr_power:.3g}")
    method = config.method
    if isinstance(method, MoCoConfig):
        # Groups of four rows or more, so that their BatchNorm means something.
        method = replace(method, key_groups=max(1, min(8, batch // 4)))
    optim = replace(config.optim, lr=lr, lr_scaling="none")
    rule = "the square root of the batch" if budget.lr_power == 0.5 else "the batch"
    source = (
        f", as the recipe has it for {old}"
        if batch == old
        else (f": the recipe's {peak:g} for {old}, changed with {rule}")
    )
    return replace(config, method=method, batch_size=batch, optim=optim), (
        f"Batch {batch}, at most {budget.max_batch} and about a quarter of the corpus; learning "
        f"rate {lr:g}{source}."
    )


def _epochs(config: PretrainConfig, corpus: _Corpus) -> tuple[PretrainConfig, str]:
    """As many as make the budget's steps."""
    budget = corpus.budget
    per_epoch = config.order(corpus.num_pictures).steps_per_epoch
    wanted = budget.num_steps * math.sqrt(max(1, corpus.num_pictures / budget.num_pictures))
    least, most = budget.epochs
    epochs = min(max(round(wanted / per_epoch), least), most)
    optim = config.optim
    if optim.schedule == "cosine":
        optim = replace(optim, warmup_share=min(10 / epochs, 0.1))
    return replace(config, epochs=epochs, optim=optim), (
        f"{epochs} epochs of {per_epoch:,} steps, {epochs * per_epoch:,} in all: about "
        f"{wanted:,.0f} are planned for, in {least} to {most} epochs."
    )


def _memory(config: PretrainConfig, corpus: _Corpus) -> tuple[PretrainConfig, str | None]:
    """MoCo's queue by the corpus, BYOL's target by the length of the run."""
    method, num_steps = config.method, config.num_steps(corpus.num_pictures)
    if isinstance(method, MoCoConfig):
        size = _power_of_two(min(corpus.budget.max_queue, corpus.num_pictures))
        return replace(config, method=replace(method, queue_size=size)), (
            f"Queue of {size:,} keys: no more than the corpus has pictures, and at most "
            f"{corpus.budget.max_queue:,}."
        )
    if isinstance(method, BYOLConfig):
        start = next(start for limit, start in TARGETS if num_steps <= limit)
        return replace(config, method=replace(method, momentum=MomentumConfig(start=start))), (
            f"The target's momentum rises from {start} to 1: the shorter the run, the faster a "
            "target has to follow."
        )
    return config, None


def _power_of_two(limit: int) -> int:
    """The largest that is no more than the limit; 2 at least.

    >>> [_power_of_two(limit) for limit in (0, 7, 8)]
    [2, 4, 8]
    """
    return max(2, 1 << max(limit, 1).bit_length() - 1)
