"""Memory and time of a training step by the number of chunks it encodes its batch in.

Every measurement is a process of its own, so that the peak is its own, and computes in one thread,
of which the CPU time counts: what else runs disturbs it least.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks import measuring
from encoders.recipes import RECIPES
from encoders.training import Pretraining

BATCH, SIZE, SEED = 1024, 32, 0
CHUNKS = (1, 2, 4, 8, 16)
METHODS = ("simclr-small", "byol-small")
STEPS = 2
TIMEOUT_S = 900.0


def measure(recipe: str, num_chunks: int) -> dict[str, float]:
    """CPU seconds of the better step and peak memory in MB above the process before its first."""
    torch.set_num_threads(1)
    config = RECIPES[recipe]()
    config = replace(
        config,
        preprocess=replace(config.preprocess, size=SIZE),
        batch_size=BATCH,
        batch_chunks=num_chunks,
    )
    training = Pretraining(config, BATCH)
    pixels = np.random.default_rng(SEED).integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8)
    before_mb, seconds = measuring.peak_mb(), []
    for _ in range(STEPS):
        rows = training.next_rows()
        started_s = time.process_time()
        training.train_step(pixels[rows], rows)
        seconds.append(time.process_time() - started_s)
    return {"seconds": min(seconds), "peak_mb": measuring.peak_mb() - before_mb}


def compare(recipe: str, rounds: int) -> list[dict[str, dict[str, Any]]]:
    print(recipe)
    program = [measuring.OWN_PYTHON, "-m", "benchmarks.batch_chunks", "--recipe", recipe]
    commands = {str(number): [*program, "--chunks", str(number)] for number in CHUNKS}
    runs = measuring.programs(commands, TIMEOUT_S)
    return measuring.in_turn(runs, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recipe", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--chunks", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.recipe:
        print(json.dumps(measure(asked.recipe, asked.chunks)))
        return
    hardware = measuring.machine()
    cases = [{"recipe": recipe, "rounds": compare(recipe, asked.rounds)} for recipe in METHODS]
    settings = {"batch": BATCH, "size": SIZE, "seed": SEED, "steps": STEPS}
    measuring.save("batch_chunks", {"settings": settings, "cases": cases}, hardware)


if __name__ == "__main__":
    main()
