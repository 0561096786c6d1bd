"""verify: does this machine or cluster train the same encoder, however the work is divided?

The same short runs, with the same seed and global batch, by several numbers of workers under Ray
Train; then by the last number once more. Weights are compared: across numbers of workers they may
differ by rounding alone, for the same number not by a bit.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from cluster.context import Context
from cluster.ray_train import check_room, run_workers, scaling, scratch
from encoders.moco import MoCoConfig
from encoders.pretrain_config import PretrainConfig
from encoders.recipes import byol_small, moco_small, simclr_small, supcon_small, tiny
from encoders.training import Pretraining

__all__ = ["VerifyConfig", "verify"]

Weights = NDArray[np.float32]

RECIPES = {
    "simclr": simclr_small,
    "moco": moco_small,
    "byol": byol_small,
    "supcon": supcon_small,
}
NUM_PICTURES = 256
NUM_CLASSES = 8
SIZE = 16
CPUS = 0.5
"""Of each worker: what counts is that they are several, not that they are fast."""
CALM = 0.1
"""Share of the recipes' learning rate: beyond it, so small a network is chaotic, and a difference
in the last bit grows a hundred thousandfold in 50 steps, whatever is done."""
TOLERANCE = 1e-4
"""Largest relative difference of weights that rounding explains, in float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyConfig:
    """Train the same encoders with several numbers of workers and compare their weights."""

    what: Annotated[Literal["exactness"], tyro.conf.Positional] = "exactness"
    """What to verify: exactness, that the number of workers does not change the weights."""
    workers: tuple[int, ...] = (1, 2, 4)
    """Numbers of workers to compare, each a divisor of the batch; the first is the yardstick."""
    steps: int = 50
    """Optimiser steps of each run."""
    batch_size: int = 32
    """Pictures in a global batch."""
    seed: int = 0
    """Seed of weights, pictures and augmentation."""

    def __post_init__(self) -> None:
        """Check that every number of workers can share the batch."""
        if len(self.workers) < 2 or min(self.workers) < 1:
            raise ValueError(
                f"workers {self.workers}: two numbers or more, each at least 1. "
                "Usual is --workers 1 2 4"
            )
        if self.steps < 1:
            raise ValueError(f"steps {self.steps}: has to be at least 1. Usual is --steps 50")
        most = max(self.workers)
        if any(most % number for number in self.workers) or self.batch_size % (4 * most):
            raise ValueError(
                f"workers {self.workers} and batch_size {self.batch_size}: each number has to "
                "divide the largest, and four times the largest the batch. "
                "Usual is --workers 1 2 4 --batch-size 32"
            )
        for training in _trainings(self).values():
            training.check_share(NUM_PICTURES, most)


def verify(config: VerifyConfig, context: Context) -> dict[str, Any]:
    """Train every method with every number of workers, and the last number twice.

    Returns:
        ``differences``: for each method and number of workers, the relative distance of the weights
        from those of the first number; ``again`` that of the repeated run from its twin, which has
        to be 0. ``ok`` says whether all are within bounds.
    """
    runs: list[dict[str, Weights]] = []
    counts = [*config.workers, config.workers[-1]]
    with (
        context.ray() as profile,
        context.progress("verify", len(counts), "runs") as line,
        scratch(context.workspace.root / f"verify-{uuid.uuid4().hex[:12]}") as attempts,
    ):
        check_room(context.where, profile, max(counts), CPUS)
        for number in counts:
            workers = scaling(profile, number, CPUS)
            runs.append(run_workers(_train_all, {"config": config}, workers, attempts))
            line.advance(1, f"{number} workers")
    yardstick, last, again = runs[0], runs[-2], runs[-1]
    differences = {
        method: {
            **{
                str(number): relative_distance(run[method], yardstick[method])
                for number, run in zip(config.workers, runs, strict=False)
            },
            "again": relative_distance(again[method], last[method]),
        }
        for method in RECIPES
    }
    is_exact = all(
        found["again"] == 0 and max(found.values()) < TOLERANCE for found in differences.values()
    )
    return {
        "ok": is_exact,
        "steps": config.steps,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "workers": list(config.workers),
        "tolerance": TOLERANCE,
        "differences": differences,
    }


def relative_distance(a: Weights, b: Weights) -> float:
    """Distance of two weight vectors over the length of the second, in float64.

    >>> relative_distance(np.array([3, 5], np.float32), np.array([3, 4], np.float32))
    0.2
    """
    wide = b.astype(np.float64)
    return float(np.linalg.norm(a - wide) / np.linalg.norm(wide))


def _trainings(config: VerifyConfig) -> dict[str, PretrainConfig]:
    """A small run of each method; its epochs are more than enough for the steps."""
    trainings = {}
    for name, recipe in RECIPES.items():
        training = tiny(recipe())
        optim = replace(training.optim, lr=training.optim.lr * CALM)
        training = replace(
            training,
            optim=optim,
            batch_size=config.batch_size,
            epochs=config.steps,
            seed=config.seed,
        )
        if isinstance(training.method, MoCoConfig):
            groups = max(config.workers) * 2
            method = replace(training.method, queue_size=2 * config.batch_size, key_groups=groups)
            training = replace(training, method=method)
        trainings[name] = training
    return trainings


def _train_all(loop_config: dict[str, Any]) -> dict[str, Weights]:
    """On each worker: every method in turn, on the same pictures; returns the weights."""
    from ray.train.torch import get_device

    config: VerifyConfig = loop_config["config"]
    torch.set_num_threads(1)
    ids = np.arange(NUM_PICTURES, dtype=np.int64)
    pixels = _pictures(config.seed)
    weights = {}
    for name, training_config in _trainings(config).items():
        training = Pretraining(training_config, num_pictures=NUM_PICTURES, device=get_device())
        for _ in range(config.steps):
            rows = training.next_rows()
            training.train_step(pixels[rows], ids[rows], ids[rows] % NUM_CLASSES)
        weights[name] = _flat(training)
    return weights


def _pictures(seed: int) -> NDArray[np.uint8]:
    """Patches of random colours, uint8 [NUM_PICTURES, SIZE, SIZE, 3]."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (NUM_PICTURES, SIZE // 4, SIZE // 4, 3), dtype=np.uint8)
    return patches.repeat(4, axis=1).repeat(4, axis=2)


def _flat(training: Pretraining) -> Weights:
    """All of a method's floating-point state in one vector: networks, targets and queue."""
    tensors = (
        tensor.detach().cpu().float().flatten()
        for tensor in training.state_dict()["method"].values()
        if torch.is_tensor(tensor) and tensor.is_floating_point()
    )
    flat: Weights = torch.cat(list(tensors)).numpy()
    return flat
