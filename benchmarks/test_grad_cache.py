"""Memory and time of a training step by the number of chunks it encodes its batch in.

``make bench`` prints both. Every measurement is a process of its own, so that the peak is its own,
and computes in one thread, of which the CPU time counts: what else runs disturbs it least.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from encoders.recipes import RECIPES
from encoders.training import Pretraining

BATCH, SIZE, SEED = 1024, 32, 0
CHUNKS = (1, 2, 4, 8, 16)
PROCESSES, STEPS = 2, 2
CHECKOUT = Path(__file__).parent.parent


def peak_mb() -> float:
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


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
    before_mb, seconds = peak_mb(), []
    for _ in range(STEPS):
        rows = training.next_rows()
        started_s = time.process_time()
        training.train_step(pixels[rows], rows)
        seconds.append(time.process_time() - started_s)
    return {"seconds": min(seconds), "peak_mb": peak_mb() - before_mb}


def in_own_process(recipe: str, num_chunks: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.test_grad_cache", recipe, str(num_chunks)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


@pytest.mark.bench
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("recipe", ["simclr-small", "byol-small"])
def test_memory_falls_with_the_number_of_chunks(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # In turn, so that what else the machine does meets all.
    rounds = [[in_own_process(recipe, chunks) for chunks in CHUNKS] for _ in range(PROCESSES)]
    figures = {
        chunks: {name: min(found[name] for found in column) for name in column[0]}
        for chunks, column in zip(CHUNKS, zip(*rounds, strict=True), strict=True)
    }
    whole = figures[1]
    with capsys.disabled():
        print(f"\n{recipe}, {BATCH:,} pictures of {SIZE} px:")
        for chunks, found in figures.items():
            print(
                f"  {chunks:2} chunks: {found['peak_mb']:6,.0f} MB "
                f"({found['peak_mb'] / whole['peak_mb']:.2f}), {found['seconds']:5.2f} s "
                f"({found['seconds'] / whole['seconds']:.2f})"
            )
    assert figures[4]["peak_mb"] < 0.5 * whole["peak_mb"]
    assert figures[4]["seconds"] < 1.6 * whole["seconds"]


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
