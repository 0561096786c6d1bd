"""Memory and time of NT-Xent forward and backward: in tiles here, and with the whole matrix.

Every measurement is a process of its own, so that the peak is its own, and computes in one thread,
which other work on the machine disturbs least. Shapes: N rows of a view, D dimensions.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import measuring
from encoders.losses import nt_xent, unit_rows

DIM, TEMPERATURE, SEED = 128, 0.2, 0
REPEATS = 3
SIZES = (256, 1024, 4096)
LARGEST = 65_536
"""Pictures whose whole matrix, 69 GB, fits in no laptop."""
TIMEOUT_S = 3600.0


def whole_nt_xent(a_ND: Tensor, b_ND: Tensor, ids_N: Tensor, *, temperature: float) -> Tensor:
    """The loss as the paper writes it, with all similarities at once."""
    rows, ids = unit_rows(torch.cat([a_ND, b_ND])), ids_N.repeat(2)
    partner = torch.arange(len(rows)).roll(len(a_ND))
    excluded = (ids[:, None] == ids).scatter(1, partner[:, None], False)
    return F.cross_entropy((rows @ rows.T / temperature).masked_fill(excluded, -math.inf), partner)


FORMS: dict[str, Callable[..., Tensor]] = {"tiles": nt_xent, "whole": whole_nt_xent}


def measure(form: str, num_pictures: int, repeats: int) -> dict[str, float]:
    """Best seconds of the repeats, and peak memory in MB above the process before its pictures."""
    torch.set_num_threads(1)

    def run(num: int) -> float:
        generator = torch.Generator().manual_seed(SEED)
        views = [torch.randn(num, DIM, generator=generator).requires_grad_() for _ in range(2)]
        started_s = time.process_time()
        loss = FORMS[form](*views, torch.arange(num), temperature=TEMPERATURE)
        loss.backward()  # type: ignore[no-untyped-call]
        return time.process_time() - started_s

    run(8)
    before_mb = measuring.peak_mb()
    taken_s = min(run(num_pictures) for _ in range(repeats))
    return {"seconds": taken_s, "peak_mb": measuring.peak_mb() - before_mb}


def in_own_process(form: str, num_pictures: int, repeats: int) -> dict[str, Any]:
    command = [measuring.OWN_PYTHON, "-m", "benchmarks.losses", "--form", form]
    command += ["--pictures", str(num_pictures), "--repeats", str(repeats)]
    return measuring.child(command, TIMEOUT_S)


def compare(num_pictures: int, rounds: int) -> list[dict[str, dict[str, Any]]]:
    """Both forms, or tiles alone where the whole matrix does not fit."""
    print(f"{num_pictures:,} pictures")
    if num_pictures == LARGEST:
        return measuring.in_turn({"tiles": lambda: in_own_process("tiles", num_pictures, 1)}, 1)
    forms = {form: lambda form=form: in_own_process(form, num_pictures, REPEATS) for form in FORMS}
    return measuring.in_turn(forms, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[*SIZES, LARGEST])
    parser.add_argument("--form", choices=sorted(FORMS), help=argparse.SUPPRESS)
    parser.add_argument("--pictures", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=REPEATS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.form:
        print(json.dumps(measure(asked.form, asked.pictures, asked.repeats)))
        return
    hardware = measuring.machine()
    cases = [{"pictures": size, "rounds": compare(size, asked.rounds)} for size in asked.sizes]
    settings = {"dim": DIM, "temperature": TEMPERATURE, "seed": SEED, "repeats": REPEATS}
    measuring.save("losses", {"settings": settings, "cases": cases}, hardware)


if __name__ == "__main__":
    main()
