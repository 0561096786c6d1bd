"""Views a second and core: here against lightly, torchvision v2 and kornia.

Each contestant makes two views of every picture with the same settings, in one thread of a process
of its own, as often as a few seconds of CPU time allow; in turn with the others, for several
rounds. CPU time counts, so that what else runs disturbs it least.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import measuring
from benchmarks.pictures import photographs
from encoders.augment import AugmentConfig, augment_views
from encoders.preprocess import PreprocessConfig

SIZES = (32, 96, 224)
BATCH = 128
SEED = 0
PEERS = ("lightly", "torchvision", "kornia")
TIMEOUT_S = 600.0


def strength_of(size: int) -> float:
    """Of the colour jitter: SimCLR's for CIFAR and for ImageNet."""
    return 0.5 if size <= 64 else 1.0


def own_views(pixels: np.ndarray, seconds: float) -> dict[str, Any]:
    """Views a second of CPU time of what a training step does with a batch."""
    torch.set_num_threads(1)
    size = pixels.shape[1]
    config = AugmentConfig.simclr(size, strength_of(size))
    preprocess = PreprocessConfig(size=size)
    starts = range(0, len(pixels), BATCH)

    def views(epoch: int) -> None:
        for start in starts:
            batch = torch.tensor(pixels[start : start + BATCH]).permute(0, 3, 1, 2)
            augment_views(
                batch,
                torch.arange(start, start + len(batch)),
                views=(config, config),
                seed=SEED,
                epoch=epoch,
                preprocess=preprocess,
            )

    views(0)
    passes, started_s = 0, time.process_time()
    while time.process_time() - started_s < seconds:
        passes += 1
        views(passes)
    rate = 2 * len(pixels) * passes / (time.process_time() - started_s)
    return {"views_per_s": rate}


def measure(size: int, asked: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """All rounds of one size."""
    path = folder / f"{size}.npy"
    np.save(path, photographs(asked.pictures, size, SEED))
    blur = AugmentConfig.simclr(size).blur_probability
    shared = ["--pixels", str(path), "--seconds", str(asked.seconds)]
    commands = {
        "lookalike": [measuring.OWN_PYTHON, "-m", "benchmarks.augmentation", "--own", *shared]
    }
    shared += ["--strength", str(strength_of(size)), "--blur", str(blur), "--seed", str(SEED)]
    for library in PEERS:
        program = [measuring.peers_python(), measuring.peer_script("views"), "--library", library]
        commands[library] = [*program, *shared]
    print(f"{size} px")
    return measuring.in_turn(measuring.programs(commands, TIMEOUT_S), asked.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="CPU time of a measurement")
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--own", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--pixels", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.own:
        print(json.dumps(own_views(np.load(asked.pixels), asked.seconds)))
        return
    measuring.peers_python()
    hardware = measuring.machine()
    with tempfile.TemporaryDirectory() as folder:
        cases = [{"size": size, "rounds": measure(size, asked, Path(folder))} for size in SIZES]
    settings = {
        "pictures": asked.pictures,
        "batch": BATCH,
        "seed": SEED,
        "seconds": asked.seconds,
    }
    measuring.save("augmentation", {"settings": settings, "cases": cases}, hardware)


if __name__ == "__main__":
    main()
