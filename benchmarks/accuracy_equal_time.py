"""Accuracy after the same time: all methods here, and lightly's SimCLR, MoCo and BYOL.

Fashion-MNIST without labels (SupCon has them all), the same narrow ResNet, the same batch, all
cores, ten minutes each, several seeds. Then a kNN-20 with all labels, and logistic regression on
1, 5 and 10 labels a class, on the test split.

``--speeds`` comes first, on a quiet machine: everyone's steps a second, in turn. From them follows
how many steps fit into a time, and only so many are made: however busy the machine is while they
are, nobody gains or loses by it. ``--sweep`` comes next: learning rate, then temperature or
momentum, the same grid for everyone, in short runs on 50,000 pictures of the train split, judged by
kNN-20 on the other 10,000. The test split has no part in it. Every run is a file below ``results``;
what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import measuring
from benchmarks.judging import LABELS_PER_CLASS, judge, knn20
from benchmarks.pictures import EDGE, fashion_mnist
from benchmarks.rounds import spread, values
from cluster.where import num_cores
from index.heads import centred

__all__ = ["CONTESTANTS", "Contestant", "run_name", "sweep_name"]

BATCH = 128
WIDTHS = (16, 32, 64)
GRAY = (0.5, 0.8)
"""Crops of half of the area and more, brightness and contrast by this much (docs/log.md)."""
SWEEP_TRAIN = 50_000
LEARNING_RATES = (0.3, 1.0, 3.0)
BEYOND = {0.3: 0.1, 3.0: 10.0}
"""One rate more where the best lies at an end."""
SECOND = {"temperature": (0.2, 0.1, 0.5), "momentum": (0.97, 0.9, 0.99)}
"""The first of each goes with all learning rates, the others with the best of them."""
LONGER = {"moco": 3.0}
"""How many times as long a method's runs of the sweep are: when MoCo's queue has just been filled,
another temperature is best than later, so that short runs chose badly (docs/log.md)."""
LOADERS = 2
"""Of lightly's loader: as many as cores; `simclr_end_to_end` compares with more."""
SPEEDS = "accuracy_speeds"
# Of one training, on however busy a machine.
TIMEOUT_S = 6 * 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Contestant:
    """A method of a library; a baseline has no library."""

    method: str
    library: str = ""

    @property
    def name(self) -> str:
        """How it is called on the command line and in files."""
        return f"{self.library}-{self.method}" if self.library else self.method

    @property
    def second(self) -> str:
        """What is swept beside the learning rate."""
        return "momentum" if self.method == "byol" else "temperature"

    def command(self, folder: Path, seed: int, threads: int) -> list[str]:
        """The program that trains it."""
        if self.library == "lightly":
            program = [measuring.peers_python(), measuring.peer_script("lightly_train")]
            program += ["--workers", str(LOADERS)]
        else:
            program = [measuring.OWN_PYTHON, "-m", "benchmarks.own_training"]
            program += ["--labels", str(folder / "labels.npy")]
        return [
            *(*program, "--method", self.method, "--pixels", str(folder / "train.npy")),
            *("--widths", *map(str, WIDTHS), "--gray", *map(str, GRAY)),
            *("--batch", str(BATCH), "--threads", str(threads), "--seed", str(seed)),
        ]


RAW, UNTRAINED = Contestant(method="raw-pixels"), Contestant(method="random-init")
CONTESTANTS = (
    RAW,
    UNTRAINED,
    *(
        Contestant(library="lookalike", method=name)
        for name in ("simclr", "moco", "byol", "supcon")
    ),
    *(Contestant(library="lightly", method=name) for name in ("simclr", "moco", "byol")),
)


def run_name(contestant: Contestant, budget_s: float, seed: int) -> str:
    """Where a run's result lies below ``results``."""
    return f"accuracy_{budget_s:g}s/{contestant.name}-seed{seed}"


def sweep_name(contestant: Contestant) -> str:
    """Where its sweep lies."""
    return f"accuracy_sweep/{contestant.name}"


def options_of(settings: dict[str, float]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def trained(
    command: list[str], folder: Path, settings: dict[str, float], steps: int
) -> tuple[dict[str, Any], list[NDArray[np.float32]]]:
    """Train it so many steps; what it did, and vectors of both splits."""
    targets = [folder / f"{split}-vectors.npy" for split in ("train", "test")]
    embedding = []
    for split, target in zip(("train", "test"), targets, strict=True):
        embedding += ["--embed", str(folder / f"{split}.npy"), str(target)]
    figures = measuring.child(
        [*command, *options_of(settings), "--steps", str(steps), *embedding], TIMEOUT_S
    )
    return figures, [np.load(target) for target in targets]


def measure_speeds(asked: argparse.Namespace, folder: Path) -> None:
    """Everyone's steps a second, in turn."""
    if (measuring.RESULTS / f"{SPEEDS}.json").is_file():
        return  # What was trained already was trained by these.
    hardware = measuring.machine()
    commands = {
        who.name: [*who.command(folder, 0, num_cores()), "--measure-s", str(asked.speed_s)]
        for who in CONTESTANTS
        if who.library
    }
    rounds = measuring.in_turn(measuring.programs(commands, TIMEOUT_S), asked.rounds)
    settings = {"batch": BATCH, "speed_s": asked.speed_s}
    measuring.save(SPEEDS, {"settings": settings, "rounds": rounds}, hardware)


def steps_in(contestant: Contestant, seconds: float) -> int:
    """How many steps it makes in so long, at the median speed of its rounds; 0 for a baseline."""
    if not contestant.library:
        return 0
    path = measuring.RESULTS / f"{SPEEDS}.json"
    if not path.is_file():
        raise SystemExit(
            f"error: {path} is missing, from which it follows how many steps fit into a time. Run "
            "python -m benchmarks.accuracy_equal_time --speeds on a quiet machine first."
        )
    rounds = json.loads(path.read_text(encoding="utf-8"))["rounds"]
    speed = spread(values(rounds, contestant.name, "steps_per_s")).median
    return max(1, int(speed * seconds))


def raw_vectors(folder: Path) -> list[NDArray[np.float32]]:
    """Unit vectors of the gray pixels themselves, less the mean picture, which serves kNN best."""
    flat = [
        np.load(folder / f"{split}.npy")[..., 0].reshape(-1, EDGE * EDGE).astype(np.float32)
        for split in ("train", "test")
    ]
    return [centred(rows, flat[0].mean(axis=0)) for rows in flat]


def run(contestant: Contestant, asked: argparse.Namespace, folder: Path, seed: int) -> None:
    """One training and what it is worth, kept in its file."""
    hardware = measuring.machine()
    settings = {} if contestant in (RAW, UNTRAINED) else best_settings(contestant)
    figures: dict[str, Any] = {}
    if contestant == RAW:
        vectors = raw_vectors(folder)
    else:
        steps = steps_in(contestant, asked.budget_s)
        command = contestant.command(folder, seed, asked.threads)
        figures, vectors = trained(command, folder, settings, steps)
    labels = [np.load(folder / name) for name in ("labels.npy", "test-labels.npy")]
    found = judge(vectors[0], labels[0], vectors[1], labels[1])
    body = {
        "contestant": contestant.name,
        "seed": seed,
        "budget_s": asked.budget_s,
        "batch": BATCH,
        "settings": settings,
        "run": figures,
        **found,
    }
    measuring.save(run_name(contestant, asked.budget_s, seed), body, hardware)
    few = ", ".join(f"{np.mean(found[f'labels_{n}']):.3f}" for n in LABELS_PER_CLASS)
    print(f"{contestant.name}, seed {seed}: kNN-20 {found['knn20']:.3f}, few labels {few}")


def best_settings(contestant: Contestant) -> dict[str, float]:
    path = measuring.RESULTS / f"{sweep_name(contestant)}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "best" not in kept:
        raise SystemExit(
            f"error: {contestant.name} has no whole sweep in {path.parent}, from which its "
            "settings are taken. Run python -m benchmarks.accuracy_equal_time --sweep first."
        )
    best: dict[str, float] = kept["best"]
    return best


def sweep(contestant: Contestant, asked: argparse.Namespace, folder: Path) -> None:
    """Find its settings on the train split alone; every trial is kept as it ends."""
    hardware = measuring.machine()
    labels = np.load(folder / "labels.npy")
    bank, queries = slice(None, SWEEP_TRAIN), slice(SWEEP_TRAIN, None)
    budget_s = asked.sweep_budget_s * LONGER.get(contestant.method, 1)
    steps = steps_in(contestant, budget_s)
    command = [*contestant.command(folder, 0, asked.threads), "--pictures", str(SWEEP_TRAIN)]
    how = {"budget_s": budget_s, "seed": 0, "train": SWEEP_TRAIN, "batch": BATCH}
    trials = _kept_trials(contestant, how)

    def attempt(settings: dict[str, float]) -> None:
        if any(trial["settings"] == settings for trial in trials):
            return
        figures, (vectors, _) = trained(command, folder, settings, steps)
        knn = knn20(vectors[bank], labels[bank], vectors[queries], labels[queries])
        trials.append({"settings": settings, "knn20": knn, "run": figures})
        measuring.save(sweep_name(contestant), {"settings": how, "trials": trials}, hardware)
        print(f"{contestant.name} {settings}: kNN-20 {knn:.3f}", flush=True)

    def best_rate() -> float:
        firsts = [trial for trial in trials if trial["settings"][contestant.second] == first]
        return _best(firsts)["lr"]

    before = len(trials)
    first, *others = SECOND[contestant.second]
    for lr in LEARNING_RATES:
        attempt({"lr": lr, contestant.second: first})
    if (end := best_rate()) in BEYOND:
        attempt({"lr": BEYOND[end], contestant.second: first})
    for value in others:
        attempt({"lr": best_rate(), contestant.second: value})
    if len(trials) > before:  # only a whole sweep has a best
        body = {"settings": how, "trials": trials, "best": _best(trials)}
        measuring.save(sweep_name(contestant), body, hardware)


def _kept_trials(contestant: Contestant, how: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of an earlier sweep that was made in this way."""
    path = measuring.RESULTS / f"{sweep_name(contestant)}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return list(kept["trials"]) if kept.get("settings") == how else []


def _best(trials: Sequence[dict[str, Any]]) -> dict[str, float]:
    best: dict[str, float] = max(trials, key=lambda trial: trial["knn20"])["settings"]
    return best


def lay_out(folder: Path) -> None:
    """Pixels and labels of both splits as arrays that every process reads."""
    for split, name in (("train", "labels"), ("test", "test-labels")):
        pixels, labels = fashion_mnist("train" if split == "train" else "test")
        np.save(folder / f"{split}.npy", pixels)
        np.save(folder / f"{name}.npy", labels)


def missing(asked: argparse.Namespace) -> Iterator[tuple[Contestant, int]]:
    """What there is no file of: seed by seed, so that a part of the time tells something."""
    for seed in [0] if asked.sweep else asked.seeds:
        for contestant in CONTESTANTS:
            if asked.only and contestant.name not in asked.only:
                continue
            if contestant == RAW and seed != asked.seeds[0]:
                continue
            if asked.sweep and not contestant.library:
                continue
            path = measuring.RESULTS / f"{run_name(contestant, asked.budget_s, seed)}.json"
            if asked.sweep or not path.is_file():  # a sweep knows itself what it lacks
                yield contestant, seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget-s", type=float, default=600.0, help="of one training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    names = [contestant.name for contestant in CONTESTANTS]
    parser.add_argument("--only", nargs="+", choices=names, help="these alone")
    parser.add_argument("--speeds", action="store_true", help="measure everyone's speed, and end")
    parser.add_argument("--speed-s", type=float, default=15.0, help="for so long a round")
    parser.add_argument("--rounds", type=int, default=3, help="of measuring speeds")
    parser.add_argument("--sweep", action="store_true", help="find everyone's settings, and end")
    parser.add_argument("--sweep-budget-s", type=float, default=60.0, help="of one of its runs")
    parser.add_argument(
        "--threads",
        type=int,
        default=num_cores(),
        help="of one training; with fewer, two may run at once, and none makes more steps for it",
    )
    asked = parser.parse_args()
    work = [] if asked.speeds else list(missing(asked))
    todo = ", ".join(f"{who.name} seed {seed}" for who, seed in work) or "nothing"
    print(f"to do: {'speeds' if asked.speeds else todo}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if work or asked.speeds:
            lay_out(folder)
        if asked.speeds:
            measure_speeds(asked, folder)
        for contestant, seed in work:
            if asked.sweep:
                sweep(contestant, asked, folder)
            else:
                run(contestant, asked, folder, seed)


if __name__ == "__main__":
    main()
