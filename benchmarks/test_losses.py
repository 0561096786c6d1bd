"""Memory and time of NT-Xent forward and backward: in tiles here, and with the whole matrix.

``make bench`` prints both. Every measurement is a process of its own, so that the peak is its own,
and computes in one thread, which other work on the machine disturbs least.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from encoders.losses import nt_xent, unit_rows

DIM, TEMPERATURE, SEED = 128, 0.2, 0
PROCESSES, ROUNDS = 3, 3
CHECKOUT = Path(__file__).parent.parent


def dense_nt_xent(view_a: Tensor, view_b: Tensor, ids: Tensor, *, temperature: float) -> Tensor:
    rows, ids = unit_rows(torch.cat([view_a, view_b])), ids.repeat(2)
    partner = torch.arange(len(rows)).roll(len(view_a))
    excluded = (ids[:, None] == ids).scatter(1, partner[:, None], False)
    return F.cross_entropy((rows @ rows.T / temperature).masked_fill(excluded, -math.inf), partner)


FORMS = {"tiles": nt_xent, "whole": dense_nt_xent}


def peak_mb() -> float:
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure(form: str, num_pictures: int, rounds: int) -> dict[str, float]:
    """Best seconds of the rounds and peak memory in MB above the process before its pictures."""
    torch.set_num_threads(1)

    def run(num: int) -> float:
        generator = torch.Generator().manual_seed(SEED)
        views = [torch.randn(num, DIM, generator=generator).requires_grad_() for _ in range(2)]
        started_s = time.perf_counter()
        FORMS[form](*views, torch.arange(num), temperature=TEMPERATURE).backward()
        return time.perf_counter() - started_s

    run(8)
    before_mb = peak_mb()
    taken_s = min(run(num_pictures) for _ in range(rounds))
    return {"seconds": taken_s, "peak_mb": peak_mb() - before_mb}


def in_own_process(form: str, num_pictures: int, rounds: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.test_losses", form, str(num_pictures), str(rounds)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


@pytest.mark.bench
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("num_pictures", [256, 1024, 4096])
def test_tiles_against_the_whole_matrix(
    num_pictures: int, capsys: pytest.CaptureFixture[str]
) -> None:
    # In turn, so that what else the machine does meets both.
    runs = [
        [in_own_process(form, num_pictures, ROUNDS) for form in FORMS] for _ in range(PROCESSES)
    ]
    tiles, whole = (
        {"seconds": min(r["seconds"] for r in column), "peak_mb": max(r["peak_mb"] for r in column)}
        for column in zip(*runs, strict=True)
    )
    with capsys.disabled():
        print(
            f"\n{num_pictures:,} pictures x 2 views x {DIM}: "
            f"{tiles['seconds']:.3f} s and {tiles['peak_mb']:,.0f} MB in tiles, "
            f"{whole['seconds']:.3f} s and {whole['peak_mb']:,.0f} MB whole"
        )
    assert tiles["seconds"] < 1.5 * whole["seconds"]


@pytest.mark.bench
@pytest.mark.timeout(3600)
def test_a_batch_of_65536_pictures_fits_in_a_laptop(capsys: pytest.CaptureFixture[str]) -> None:
    tiles = in_own_process("tiles", 65_536, 1)
    with capsys.disabled():
        print(
            f"\n65,536 pictures x 2 views x {DIM}: {tiles['seconds']:.0f} s and "
            f"{tiles['peak_mb']:,.0f} MB in tiles; the whole matrix alone has 68,719 MB"
        )
    assert tiles["peak_mb"] < 1500


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
