"""Trains with the project for so many steps, or measures how fast it does; prints one line.

A program that `accuracy_equal_time` starts, the counterpart of ``peers/lightly_train.py``: one
process without Ray, all pictures in memory, the ``-small`` recipe of the method. It differs from
the recipe in what the task states: pictures of 32 px, the views of gray pictures, batch, length.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from encoders.augment import AugmentConfig
from encoders.byol import BYOLConfig
from encoders.encoder import Encoder
from encoders.health import CollapseError
from encoders.momentum import MomentumConfig
from encoders.preprocess import PreprocessConfig
from encoders.pretrain_config import PretrainConfig
from encoders.recipes import byol_small, moco_small, simclr_small, supcon_small
from encoders.training import Pretraining

__all__ = ["METHODS", "configuration", "lengths"]

METHODS = {
    "simclr": simclr_small,
    "moco": moco_small,
    "byol": byol_small,
    "supcon": supcon_small,
}
UNTRAINED = "random-init"
SIZE = 32
MANY_STEPS = 10**6


def lengths(steps: int, num_pictures: int, batch: int) -> tuple[int, int]:
    """Epochs, and pictures of one, that make about so many steps and never more.

    A run has whole epochs. The last pictures are left out where that lets it make all its steps.

    >>> lengths(700, 60_000, 128)
    (2, 44800)
    """
    epochs = math.ceil(steps / (num_pictures // batch))
    return epochs, max(1, steps // epochs) * batch


def configuration(asked: argparse.Namespace, epochs: int) -> PretrainConfig:
    """The method's small recipe for this task."""
    config = METHODS[asked.method]()
    scale, strength = asked.gray
    # Gray pictures: saturation, hue and dropping the colour would change nothing.
    view = AugmentConfig(
        crop_scale=(scale, 1.0),
        brightness=strength,
        contrast=strength,
        saturation=0.0,
        hue=0.0,
        gray_probability=0.0,
    )
    if isinstance(config.method, BYOLConfig):
        method: Any = replace(config.method, momentum=MomentumConfig(start=asked.momentum))
    else:
        method = replace(config.method, temperature=asked.temperature)
    return replace(
        config,
        method=method,
        preprocess=PreprocessConfig(size=SIZE),
        backbone=replace(config.backbone, stem="stride2", widths=tuple(asked.widths)),
        view_a=view,
        view_b=replace(view, solarise_probability=0.2) if asked.method == "byol" else view,
        optim=replace(config.optim, lr=asked.lr),
        batch_size=asked.batch,
        epochs=epochs,
        seed=asked.seed,
    )


class Run:
    """A training over pictures in memory."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.pixels: NDArray[np.uint8] = np.load(asked.pixels)[: asked.pictures]
        self.labels: NDArray[np.int64] | None = None
        if asked.method == "supcon":
            self.labels = np.load(asked.labels)[: asked.pictures]
        epochs, num_pictures = lengths(asked.steps, len(self.pixels), asked.batch)
        self.training = Pretraining(configuration(asked, epochs), num_pictures=num_pictures)

    def train_step(self) -> None:
        rows = self.training.next_rows()
        labels = None if self.labels is None else self.labels[rows]
        self.training.train_step(self.pixels[rows], rows, labels)


def measure(run: Run, warmup: int, seconds: float) -> dict[str, float]:
    """Speed in steady state."""
    for _ in range(warmup):
        run.train_step()
    steps, started_s = 0, time.perf_counter()
    while not steps or time.perf_counter() - started_s < seconds:
        run.train_step()
        steps += 1
    rate = steps / (time.perf_counter() - started_s)
    return {"images_per_s": rate * run.training.config.batch_size, "steps_per_s": rate}


def train(run: Run) -> dict[str, Any]:
    """Train to the end of the schedule, or until the doctor stops it."""
    stopped, started_s = None, time.perf_counter()
    try:
        while run.training.step_index < run.training.num_steps:
            run.train_step()
    except CollapseError as error:
        stopped = str(error)
    return {
        "steps": run.training.step_index,
        "seconds": time.perf_counter() - started_s,
        "stopped": stopped,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=[*METHODS, UNTRAINED], required=True)
    parser.add_argument("--pixels", required=True, help="a .npy file, uint8 [N, S, S, 3]")
    parser.add_argument("--labels", help="a .npy file, int64 [N], for SupCon")
    parser.add_argument("--widths", type=int, nargs="+", required=True, help="of the network")
    parser.add_argument("--gray", type=float, nargs=2, metavar=("SCALE", "STRENGTH"), required=True)
    parser.add_argument("--pictures", type=int, help="train on the first so many alone")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--temperature", type=float, default=0.2)
    parser.add_argument("--momentum", type=float, default=0.97)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--warmup", type=int, default=20, help="steps before the clock starts")
    parser.add_argument("--steps", type=int, default=MANY_STEPS, help="train about so many")
    parser.add_argument("--measure-s", type=float, help="or measure the speed for so long")
    parser.add_argument("--embed", nargs=2, action="append", metavar=("PIXELS", "VECTORS"))
    return parser.parse_args()


def main() -> None:
    asked = parse()
    torch.set_num_threads(asked.threads)
    figures: dict[str, Any] = {}
    if asked.method == UNTRAINED:
        config = configuration(argparse.Namespace(**{**vars(asked), "method": "simclr"}), epochs=1)
        encoder = Encoder.initialise(config.encoder, asked.seed)
    else:
        run = Run(asked)
        figures = measure(run, asked.warmup, asked.measure_s) if asked.measure_s else train(run)
        encoder = run.training.encoder()
    for source, target in asked.embed or []:
        np.save(target, encoder.embed(np.load(source)))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
