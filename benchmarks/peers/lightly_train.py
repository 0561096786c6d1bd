"""Trains with lightly and its standard loader, or measures how fast it does.

Prints one JSON line; vectors of the trained network may be written beside it. Shapes: N pictures,
S edge in pixels, D features.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

import lightly
import numpy as np
import torch
from lightly_methods import METHODS, Settings, transform_of
from narrow_resnet import WIDTHS, num_parameters, pin_threads
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Pictures(Dataset):  # type: ignore[type-arg]
    """Pictures in memory, each with its views."""

    def __init__(self, pixels: np.ndarray, transform: Any) -> None:
        self.pixels, self.transform = pixels, transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, position: int) -> tuple[list[Tensor], int]:
        return self.transform(Image.fromarray(self.pixels[position])), position


class Run:
    """A method with its optimiser, its schedule and its loader."""

    def __init__(self, asked: argparse.Namespace) -> None:
        torch.manual_seed(asked.seed)
        self.num_steps, self.step = asked.steps, 0
        settings = Settings(
            widths=asked.widths, temperature=asked.temperature, momentum=asked.momentum
        )
        self.method = METHODS[asked.method](settings)
        self.optimizer = torch.optim.SGD(
            [p for p in self.method.parameters() if p.requires_grad],
            lr=asked.lr,
            momentum=0.9,
            weight_decay=asked.weight_decay,
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, asked.steps)
        pixels = np.load(asked.pixels, mmap_mode="r")[: asked.pictures]
        transform = transform_of(asked.method, pixels.shape[1], asked.gray)
        self.loader = DataLoader(
            Pictures(pixels, transform),
            batch_size=asked.batch,
            shuffle=True,
            drop_last=True,
            num_workers=asked.workers,
            persistent_workers=asked.workers > 0,
        )
        self.batches = self._endless()

    def _endless(self) -> Iterator[list[Tensor]]:
        while True:
            for views, _ in self.loader:
                yield views

    def train_step(self) -> None:
        """One batch, as in lightly's examples."""
        loss = self.method.loss(next(self.batches), self.step, self.num_steps)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        loss.item()
        self.step += 1


def measure(run: Run, warmup: int, seconds: float) -> dict[str, float]:
    """Speed in steady state."""
    for _ in range(warmup):
        run.train_step()
    first, started_s = run.step, time.perf_counter()
    while run.step == first or time.perf_counter() - started_s < seconds:
        run.train_step()
    rate = (run.step - first) / (time.perf_counter() - started_s)
    return {"images_per_s": rate * (run.loader.batch_size or 1), "steps_per_s": rate}


def train(run: Run) -> dict[str, float]:
    """Train to the end of the schedule."""
    started_s = time.perf_counter()
    while run.step < run.num_steps:
        run.train_step()
    return {"steps": run.step, "seconds": time.perf_counter() - started_s}


@torch.inference_mode()
def embed(run: Run, source: str, target: str) -> None:
    """Unit vectors float32 [N, D] of the pictures as they are."""
    net, pixels = run.method.backbone.eval(), np.load(source, mmap_mode="r")
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (MEAN, STD))
    parts = []
    for start in range(0, len(pixels), 256):
        batch = torch.from_numpy(pixels[start : start + 256].copy()).permute(0, 3, 1, 2)
        parts.append(torch.nn.functional.normalize(net((batch.float() / 255 - mean) / std)))
    np.save(target, torch.cat(parts).numpy())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", choices=sorted(METHODS), default="simclr")
    parser.add_argument("--pixels", required=True, help="a .npy file, uint8 [N, S, S, 3]")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, help="of the network")
    parser.add_argument("--pictures", type=int, help="train on the first so many alone")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True, help="of the loader")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--gray", type=float, nargs=2, metavar=("SCALE", "STRENGTH"))
    parser.add_argument("--lr", type=float, default=0.06)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--momentum", type=float, default=0.99)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--warmup", type=int, default=20, help="steps before the clock starts")
    parser.add_argument("--steps", type=int, default=10**6, help="train so many")
    parser.add_argument("--measure-s", type=float, help="or measure the speed for so long")
    parser.add_argument("--embed", nargs=2, action="append", metavar=("PIXELS", "VECTORS"))
    asked = parser.parse_args()
    pin_threads(asked.threads)
    run = Run(asked)
    figures = measure(run, asked.warmup, asked.measure_s) if asked.measure_s else train(run)
    for source, target in asked.embed or []:
        embed(run, source, target)
    trained = [part for name, part in run.method.named_children() if "momentum" not in name]
    versions = {"lightly": lightly.__version__, "torch": torch.__version__}
    print(json.dumps({**figures, "parameters": num_parameters(*trained), "versions": versions}))


if __name__ == "__main__":
    main()
