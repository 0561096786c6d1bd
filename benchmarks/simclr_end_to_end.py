"""SimCLR in pictures a second: Ray Train here, lightly with its loader, and a bare loop.

The same narrow ResNet with as many parameters, the same batch of the same Fashion-MNIST pictures,
SimCLR's views for 32 px, all cores. In turn, in steady state, for several rounds. The bare loop
trains on resident random numbers and augments nothing: what the network alone allows. It runs once
as anybody starts it, and once with the memory settings that Ray Train's workers get here.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import measuring
from benchmarks.pictures import fashion_mnist, write_png
from cluster.kept_memory import kept_memory
from cluster.where import num_cores

SEED = 0
TIMEOUT_S = 1800.0
LOADER_WORKERS = 8
"""Of the loader in lightly's examples, whatever the machine has; as many as cores are tried too."""


def commands_of(asked: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """What is run for each contestant."""
    cores = num_cores()
    shared = ["--batch", str(asked.batch), "--warmup", str(asked.warmup), "--seed", str(SEED)]
    pinned = [*shared, "--threads", str(cores), "--measure-s", str(asked.seconds)]
    own = [measuring.OWN_PYTHON, "-m", "benchmarks.product_steps", "ray"]
    own += ["--workspace", str(folder / "workspace"), "--epochs", str(asked.epochs), *shared]
    lightly = [measuring.peers_python(), measuring.peer_script("lightly_train")]
    lightly += ["--pixels", str(folder / "pixels.npy"), *pinned, "--workers"]
    bare = [measuring.OWN_PYTHON, measuring.peer_script("bare_loop"), *pinned]
    return {
        "lookalike": own,
        f"lightly, {cores} loaders": [*lightly, str(cores)],
        f"lightly, {LOADER_WORKERS} loaders": [*lightly, str(LOADER_WORKERS)],
        "bare loop": bare,
        "bare loop, memory kept": ["env", *map("=".join, kept_memory().items()), *bare],
    }


def lay_out(folder: Path, num_pictures: int) -> None:
    """The pictures as files with a pixel cache, and as one array."""
    pixels = fashion_mnist("train")[0][:num_pictures]
    np.save(folder / "pixels.npy", pixels)
    write_png(pixels, folder / "pictures")
    command = [measuring.OWN_PYTHON, "-m", "benchmarks.product_steps", "prepare"]
    command += ["--workspace", str(folder / "workspace"), "--folder", str(folder / "pictures")]
    measuring.child(command, TIMEOUT_S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=25.0, help="of a peer's measurement")
    parser.add_argument("--epochs", type=int, default=4, help="of the project's")
    parser.add_argument("--pictures", type=int, default=12_800)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--warmup", type=int, default=60, help="steps that do not count")
    asked = parser.parse_args()
    measuring.peers_python()
    hardware = measuring.machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lay_out(folder, asked.pictures)
        runs = measuring.programs(commands_of(asked, folder), TIMEOUT_S)
        rounds = measuring.in_turn(runs, asked.rounds)
    parameters = {measured["parameters"] for one in rounds for measured in one.values()}
    if len(parameters) > 1:
        raise SystemExit(f"error: networks of {sorted(parameters)} parameters; they must be equal.")
    settings = {**vars(asked), "seed": SEED, "parameters": parameters.pop()}
    measuring.save("simclr_end_to_end", {"settings": settings, "rounds": rounds}, hardware)


if __name__ == "__main__":
    main()
