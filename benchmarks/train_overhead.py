"""What Ray Train costs: the same steps through ``pretrain`` and in one plain process.

The road through Ray Train also writes metrics and checkpoints, as every run does. Both have the
same cores; they take turns, and what counts is the ratio within a round.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks import measuring
from benchmarks.simclr_end_to_end import SEED, TIMEOUT_S, lay_out

ROADS = {"Ray Train": "ray", "plain process": "plain"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--pictures", type=int, default=12_800)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--warmup", type=int, default=100, help="steps that do not count")
    asked = parser.parse_args()
    hardware = measuring.machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lay_out(folder, asked.pictures)
        shared = ["--workspace", str(folder / "workspace"), "--epochs", str(asked.epochs)]
        shared += ["--batch", str(asked.batch), "--warmup", str(asked.warmup), "--seed", str(SEED)]
        program = [measuring.OWN_PYTHON, "-m", "benchmarks.product_steps"]
        commands = {name: [*program, road, *shared] for name, road in ROADS.items()}
        runs = measuring.programs(commands, TIMEOUT_S)
        rounds = measuring.in_turn(runs, asked.rounds)
    settings = {**vars(asked), "seed": SEED}
    measuring.save("train_overhead", {"settings": settings, "rounds": rounds}, hardware)


if __name__ == "__main__":
    main()
