"""The page's section on accuracy in equal time, from one file a training.

Differences are taken seed by seed; their interval is the t interval over seeds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import measured_on, not_measured, number, table
from index.trials import Difference, Trials

__all__ = ["accuracy_section", "compared", "verdict"]

FIGURES = {
    "knn20": "kNN-20",
    "labels_1": "1 label a class",
    "labels_5": "5 labels",
    "labels_10": "10 labels",
}
RAW = "raw-pixels"
Runs = dict[str, list[dict[str, Any]]]


def accuracy_section(results: Path) -> list[str]:
    """Tables of the longest budget that there are results of."""
    folders = sorted(results.glob("accuracy_*s"), key=_budget)
    if not folders:
        return [not_measured("make bench-accuracy")]
    runs = _read(folders[-1])
    rows = [
        [name, *(_cell(found, key) for key in FIGURES), _pictures(found)]
        for name, found in runs.items()
    ]
    first = next(iter(runs.values()))[0]
    lines = [
        f"As many steps as take {_budget(folders[-1]):g} s on all cores, at the speeds that "
        f"everyone had in turn on a quiet machine; batch {first['batch']}, the same "
        "narrow ResNet of widths 16, 32 and 64 with a stride-2 stem, Fashion-MNIST at 32 px; "
        "measured on the test split, in %. Few labels: the mean over 10 draws, the same for "
        "everyone. ± is the standard deviation over seeds. Recipes: lookalike's `-small` ones; "
        "lightly's examples with momentum SGD and a cosine. Learning rate and temperature (BYOL: "
        "momentum) of each come from the same sweep on the train split, in runs of 60 s, of MoCo "
        "of 180 s (docs/log.md). Crops (of half of the area and more), flips, brightness and "
        "contrast (by up to 0.8) are equal, chosen in short runs of lookalike's SimCLR on the "
        "train split (docs/log.md); BYOL's second view is also solarised. SupCon learns from all "
        "60,000 labels, the others from none.\n",
        table(["", *FIGURES.values(), "pictures seen"], rows),
        "Each method against lightly's (and SupCon, which lightly lacks, against its SimCLR) and "
        "against raw pixels, in points with the 95 % interval over seeds; goal: level or above.\n",
        table(["", "against", *FIGURES.values()], _comparisons(runs)),
    ]
    settings = [
        [name, ", ".join(f"{key} {value:g}" for key, value in found[0]["settings"].items())]
        for name, found in runs.items()
        if found[0]["settings"]
    ]
    return [*lines, table(["", "found by the sweep"], settings), measured_on(first)]


def compared(
    ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], key: str
) -> Difference:
    """How far above the other, over the seeds that both have; one run counts for every seed."""
    others = {run["seed"]: _figure(run, key) for run in theirs}
    if len(others) == 1:
        (alone,) = others.values()
        others = {run["seed"]: alone for run in ours}
    pairs = [(_figure(run, key), others[run["seed"]]) for run in ours if run["seed"] in others]
    if not pairs:
        return Difference(value=float("nan"), low=float("nan"), high=float("nan"), n=0)
    columns = (np.array(column, np.float64) for column in zip(*pairs, strict=True))
    own, other = (Trials(scores=column, unit="draws") for column in columns)
    return own.minus(other)


def verdict(found: Difference) -> str:
    """The difference in points, and whether the goal is missed.

    >>> verdict(Difference(value=0.02, low=0.01, high=0.03, n=3))
    '+2.0 (+1.0 to +3.0)'
    >>> verdict(Difference(value=-0.02, low=-0.03, high=-0.01, n=3))
    '-2.0 (-3.0 to -1.0) **missed**'
    >>> verdict(Difference(value=-0.02, low=-0.05, high=0.01, n=3))
    '-2.0 (-5.0 to +1.0) not told apart'
    """
    if not found.n:
        return "no common seed"
    if found.n == 1:
        return f"{100 * found.value:+.1f} (n = 1)" + (" **missed**" if found.value < 0 else "")
    low, high = (f"{100 * end:+.1f}" for end in (found.low, found.high))
    end = " **missed**" if found.high < 0 else " not told apart" if found.value < 0 else ""
    return f"{100 * found.value:+.1f} ({low} to {high}){end}"


def _comparisons(runs: Runs) -> list[list[str]]:
    rows = []
    for name, found in runs.items():
        library, _, method = name.partition("-")
        if library != "lookalike":
            continue
        rival = f"lightly-{'simclr' if method == 'supcon' else method}"
        for other in (rival, RAW):
            if other in runs:
                differences = (compared(found, runs[other], key) for key in FIGURES)
                rows.append([name, other, *map(verdict, differences)])
    return rows


def _budget(folder: Path) -> float:
    return float(folder.name.removeprefix("accuracy_").removesuffix("s"))


def _read(folder: Path) -> Runs:
    """All runs by contestant, baselines first, then ours, then the others'."""
    runs: Runs = {}
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        runs.setdefault(found["contestant"], []).append(found)
    rank = {"raw": 0, "random": 1, "lookalike": 2, "lightly": 3}
    return {name: runs[name] for name in sorted(runs, key=lambda n: (rank[n.partition("-")[0]], n))}


def _figure(run: dict[str, Any], key: str) -> float:
    return float(np.mean(run[key]))


def _cell(found: Sequence[dict[str, Any]], key: str) -> str:
    reached = 100 * np.array([_figure(run, key) for run in found])
    if len(reached) == 1:
        return f"{reached[0]:.1f}"
    return f"{reached.mean():.1f} ±{reached.std(ddof=1):.1f}"


def _pictures(found: Sequence[dict[str, Any]]) -> str:
    seen = [run["run"]["steps"] * run["batch"] for run in found if "steps" in run["run"]]
    return number(float(np.mean(seen))) + f" (n = {len(found)})" if seen else f"(n = {len(found)})"
