"""All that decides what a training run computes, checked before anything starts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from encoders.augment import AugmentConfig
from encoders.backbone import BackboneConfig, check_crop
from encoders.byol import BYOLConfig
from encoders.encoder import EncoderConfig
from encoders.heads import ProjectorConfig
from encoders.health import HealthConfig
from encoders.losses import NO_LABEL
from encoders.moco import MoCoConfig
from encoders.optim import OptimConfig
from encoders.preprocess import DECODE_EDGE, PreprocessConfig
from encoders.sampler import GlobalOrder
from encoders.simclr import SimCLRConfig
from encoders.split import Split, split_rows
from encoders.supcon import SupConConfig

__all__ = ["PretrainConfig"]

# Half the edge and the area that global views never go below (Caron et al. 2020, SwAV, table 5).
LOCAL_VIEW = AugmentConfig(crop_size=16, crop_scale=(0.05, 0.2))


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    """What to train, on what views, and how long. Nothing here depends on the machine."""

    epochs: int = 40
    """Passes over the corpus: the dial that matters first."""
    method: SimCLRConfig | MoCoConfig | BYOLConfig | SupConConfig = field(
        default_factory=SimCLRConfig
    )
    """The learning task and its settings."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The network that is kept."""
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    """The head on which the loss works."""
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    """How pictures are stored for training and shown to the finished encoder."""
    view_a: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation of the first view."""
    view_b: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation of the second view."""
    local_views: int = 0
    """Further views of each picture, small crops that are asked for both views (multi-crop)."""
    view_local: AugmentConfig = LOCAL_VIEW
    """Augmentation of the local views; their crop may be smaller."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(schedule="one_cycle", warmup_share=0.3)
    )
    """How weights are updated."""
    health: HealthConfig = field(default_factory=HealthConfig)
    """When to look for collapse."""
    batch_size: int = 128
    """Pictures of one step over all workers together."""
    batch_chunks: int = 1
    """Encode the batch in so many pieces: memory falls, time rises by a third at most, and
    BatchNorm sees one piece at a time."""
    seed: int = 0
    """Of weights, order and augmentation."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 and fp16 run the network in 16 bits where that is safe; losses and weights stay float32.
    fp16, for GPUs older than bf16, scales the loss and skips a step that overflows."""
    compile: bool = False
    """Let torch.compile fuse the networks: the first step takes a minute, the others less. On a CPU
    it needs a C++ compiler. Rounding differs a little."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2:
            raise ValueError(
                f"epochs is {self.epochs}, batch_size {self.batch_size}; at least 1 epoch and 2 "
                "pictures a batch are needed. 40 and 128 are defaults."
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more and below 2^32. Use 0.")
        if self.precision not in ("fp32", "bf16", "fp16"):
            raise ValueError(
                f"precision is {self.precision!r}; it must be fp32, bf16 or fp16. Use fp32 on a "
                "CPU, bf16 on a GPU."
            )
        crops = (self.view_a.crop_size, self.view_b.crop_size)
        if crops[0] != crops[1] or crops[0] > self.preprocess.size:
            raise ValueError(
                f"crops of {crops[0]} and {crops[1]} px, pictures of {self.preprocess.size} px; "
                "both crops must have the same size, no larger than the pictures. "
                "Set view_a.crop_size, view_b.crop_size and preprocess.size together."
            )
        self._check_local_views()
        self._check_chunks()

    def _check_local_views(self) -> None:
        local, crop = self.view_local.crop_size, self.view_a.crop_size
        if self.local_views < 0:
            raise ValueError(
                f"local_views is {self.local_views}; it must be 0 (none) or more. 6 is usual."
            )
        if self.local_views == 0:
            if self.view_local != LOCAL_VIEW:
                raise ValueError(
                    "view_local is set and local_views is 0, so nothing would come of it. "
                    "Set local_views to 1 or more (6 is usual), or leave view_local out."
                )
            return
        if local > crop:
            raise ValueError(
                f"local views have crops of {local} px, the others of {crop} px; a local view "
                "is the smaller one, or as large. Lower view_local.crop_size."
            )
        check_crop(self.backbone, built_for=self.preprocess.size, crop_size=local)

    def _check_chunks(self) -> None:
        chunks = self.batch_chunks
        if chunks < 1 or self.batch_size % chunks or self.batch_size < 2 * chunks:
            raise ValueError(
                f"batch_chunks is {chunks} and batch_size {self.batch_size}; each chunk must have "
                "the same number of pictures, at least 2. Use a divisor of batch_size, or 1."
            )
        self.method.check_batch(self.batch_size // chunks, 1)

    @property
    def encoder(self) -> EncoderConfig:
        """The encoder that comes out."""
        return EncoderConfig(
            backbone=self.backbone, projector=self.projector, preprocess=self.preprocess
        )

    @property
    def learns_labels(self) -> bool:
        """Whether the method learns from labels."""
        return isinstance(self.method, SupConConfig)

    @property
    def learns_labelled_alone(self) -> bool:
        """Whether pictures without a label are left out, since the loss would ignore them."""
        return isinstance(self.method, SupConConfig) and self.method.unlabelled == "ignore"

    def settings(self) -> dict[str, Any]:
        """Every field by name, the method's own name among its fields: what identifies a run."""
        name = type(self.method).__name__.removesuffix("Config").lower()
        method = {"name": name, **asdict(self.method)}
        return {**asdict(self), "method": method, "preprocess": self.preprocess.facts()}

    def split(self, num_pictures: int) -> Split:
        """Which rows of a corpus to train on, and which to look at for the run's health."""
        return split_rows(
            num_pictures,
            most=self.health.held_out,
            share=self.health.held_out_share,
            batch_size=self.batch_size,
            seed=self.seed,
        )

    def num_trained(self, num_pictures: int) -> int:
        """How many pictures of a corpus are trained on, if all of them have a label."""
        return len(self.split(num_pictures).trained)

    def trained_rows(
        self, num_pictures: int, labels_N: NDArray[np.int64] | None
    ) -> NDArray[np.int64]:
        """Which rows of a corpus are trained on, by the labels that may be learnt, -1 for none."""
        rows = self.split(num_pictures).trained
        if labels_N is None or not self.learns_labelled_alone:
            return rows
        labelled: NDArray[np.int64] = rows[labels_N[rows] != NO_LABEL]
        return labelled

    def order(self, num_pictures: int) -> GlobalOrder:
        """Which pictures make up each step; a corpus smaller than a batch is refused."""
        return GlobalOrder(
            num_pictures=num_pictures,
            batch_size=self.batch_size,
            seed=self.seed,
            num_chunks=self.batch_chunks,
        )

    def num_steps(self, num_pictures: int) -> int:
        """Optimiser steps of a whole run over a corpus."""
        return self.epochs * self.order(num_pictures).steps_per_epoch

    def check_share(self, num_pictures: int, world_size: int) -> None:
        """Raise ``ValueError`` when so many ranks cannot train on so many pictures."""
        self.method.check_batch(self.batch_size // self.batch_chunks, world_size)
        self.order(num_pictures).share(world_size)

    def most_ranks(self, num_pictures: int, world_size: int) -> int:
        """The most ranks, of ``world_size``, that can share a batch evenly.

        Raises:
            ValueError: not even one can train on so many pictures.
        """
        for num_ranks in range(world_size, 1, -1):
            with contextlib.suppress(ValueError):
                self.check_share(num_pictures, num_ranks)
                return num_ranks
        self.check_share(num_pictures, 1)
        return 1

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Dotted names of the settings that ``other``, what `settings` gave, has otherwise."""
        was, now = (json.loads(json.dumps(values)) for values in (other, self.settings()))
        for values in (was, now):
            values.get("preprocess", {}).setdefault("decode_edge", DECODE_EDGE)
        return sorted(_differences(was, now))

    def check_labels(self, labels: NDArray[np.int64] | None) -> None:
        """Raise ``ValueError`` when the method learns from labels and the corpus has none.

        Args:
            labels: int64 classes of the whole corpus, -1 for none; None when it knows no labels.
        """
        if self.learns_labels and (labels is None or not (labels >= 0).any()):
            raise ValueError(
                "supcon learns from labels, and no picture of this corpus has one. "
                "Scan a corpus with labels, or train with simclr, moco or byol, which need none."
            )


def _differences(was: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the entries that differ, with both values."""
    found = []
    for name in was.keys() | now.keys():
        a, b = was.get(name), now.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += _differences(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(f"{prefix}{name} was {a!r}, is {b!r}")
    return found
