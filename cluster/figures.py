"""What `evaluate` measures of each source of vectors, and what sets the sources apart.

Every figure is a mean over trials that all sources took: queries, pictures, or draws of labels. So
differences are taken trial by trial.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.contenders import Sample
from index.accuracy import MIN_PROBE_PICTURES, few_label_accuracy, linear_probe
from index.retrieval import find_the_original, knn_accuracy, retrieve_classes
from index.trials import Trials

__all__ = ["FigureConfig", "Figures", "Labelled", "compare", "labelled_sample", "measure"]

Vectors = NDArray[np.float32]

PLACES = (1, 10)
"""How many of the nearest are looked at."""
MAX_CLASSES = 100
"""Classes that classifiers are trained on; a random choice of more bounds their time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FigureConfig:
    """What is measured of every source of vectors."""

    labels_per_class: tuple[int, ...] = (1, 5, 10, 20)
    """Numbers of labels for each class that a classifier is given, when the corpus has labels."""
    num_draws: int = 10
    """Random draws of those labels; their mean is reported, with its interval."""
    knn_k: int = 5
    """Neighbours that vote in kNN accuracy."""
    probe_pictures: int = 5_000
    """Labelled pictures of the linear probe; more are sampled, which bounds its time."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("num_draws", "knn_k", "probe_pictures"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} {getattr(self, name)}: has to be at least 1. Leave --"
                    f"{name.replace('_', '-')} out for the usual number."
                )
        if not self.labels_per_class or min(self.labels_per_class) < 1:
            raise ValueError(
                f"labels_per_class {self.labels_per_class}: numbers of at least 1. "
                "1 5 10 20 is usual: --labels-per-class 1 5 10 20"
            )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Labelled:
    """Which pictures count in which figure, the same for every source, and what was left out.

    Args:
        rows: of the sample, int64 [L]: those with a label; empty when no two classes have any.
        names: their labels.
        few: positions in ``rows`` that few labels are drawn from.
        probe: positions that the linear probe splits.
        notes: what a person has to know about this.
    """

    rows: NDArray[np.int64]
    names: list[str]
    few: NDArray[np.int64]
    probe: NDArray[np.int64]
    notes: list[str]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Figures:
    """Trials of one source by the name of the figure, under the title of its group.

    Args:
        groups: title to figure to trials.
        classes: names of the classes that the trials of ``mAP`` are coded by.
        probe_settings: of the linear probe: the ``strength`` it chose, and ``num_train``.
    """

    groups: dict[str, dict[str, Trials]]
    classes: tuple[str, ...] = ()
    probe_settings: dict[str, Any] = field(default_factory=dict)

    @property
    def trials(self) -> dict[str, Trials]:
        """All figures."""
        return {name: trials for group in self.groups.values() for name, trials in group.items()}


def labelled_sample(labels: Sequence[str | None], config: FigureConfig, seed: int) -> Labelled:
    """Sort out which of a sample's labels serve which figure.

    Args:
        labels: of the sample's pictures; None where there is none.
        config: what is to be measured.
        seed: of the samples drawn where there are too many.
    """
    rows = np.flatnonzero([label is not None for label in labels])
    names = [label for label in labels if label is not None]
    sizes = Counter(names)
    if len(sizes) < 2:
        said = f"all labels are {next(iter(sizes))!r}" if sizes else "the corpus has no labels"
        why = (
            f"{said}, so nothing is measured that needs classes. To have them, scan a folder for "
            "each class with --labels folder."
        )
        nothing = np.zeros(0, np.int64)
        return Labelled(rows=nothing, names=[], few=nothing, probe=nothing, notes=[why])
    notes = []
    if len(names) < len(labels):
        notes.append(
            f"{len(labels) - len(names):,} of {len(labels):,} pictures have no label: they are "
            "searched among for originals, and count in nothing else."
        )
    rng = np.random.default_rng(seed)
    codes = np.unique(names, return_inverse=True)[1]
    few = np.arange(len(names))
    if len(sizes) > MAX_CLASSES:
        few = np.flatnonzero(np.isin(codes, rng.permutation(len(sizes))[:MAX_CLASSES]))
        notes.append(f"Classifiers learn {MAX_CLASSES} of {len(sizes)} classes, drawn at random.")
    probe = np.sort(rng.permutation(few)[: config.probe_pictures])
    if len(probe) < len(few):
        notes.append(f"The linear probe takes {len(probe):,} of {len(few):,} labelled pictures.")
    notes += _left_out(names, few, probe, config)
    return Labelled(rows=rows, names=names, few=few, probe=probe, notes=notes)


def _left_out(
    names: list[str], few: NDArray[np.int64], probe: NDArray[np.int64], config: FigureConfig
) -> list[str]:
    """Which classes are too small for what; classes alone are in the way of others' search."""
    chosen = [names[row] for row in few]
    needs = [(f"{number} labels/class", chosen, number + 1) for number in config.labels_per_class]
    needs += [("linear probe", [names[row] for row in probe], MIN_PROBE_PICTURES)]
    notes = []
    for figure, counted, needed in [("search by class", names, 2), *needs]:
        sizes = Counter(counted)
        small = sorted(name for name, n in sizes.items() if n < needed)
        if len(sizes) - len(small) < 2:
            notes.append(f"{figure}: not measured, as it needs two classes of {needed} pictures.")
        elif small:
            shown = ", ".join(small[:3]) + (", ..." if len(small) > 3 else "")
            notes.append(
                f"{figure}: {len(small)} of {len(sizes)} classes have fewer than {needed} pictures "
                f"and are left out ({shown})."
            )
    if config.knn_k >= len(names):
        notes.append(
            f"--knn-k {config.knn_k}: there are no more than {len(names) - 1} other pictures with "
            "a label, and all of them vote."
        )
    return notes


def measure(
    vectors: Vectors,
    queries: Vectors,
    sample: Sample,
    labelled: Labelled,
    config: FigureConfig,
    seed: int,
) -> Figures:
    """All figures of one source.

    Args:
        vectors: float32 [N, D] of the sample's pictures; rows of zeros are like nothing.
        queries: float32 [Q, D] of the distorted copies.
        sample: names the pictures of both.
        labelled: from `labelled_sample`, which see for what is left out.
        config: what is to be measured.
        seed: of the split and the draws.
    """
    places = [k for k in PLACES if k < len(vectors)]
    originals = find_the_original(queries, sample.query_ids, sample.ids, vectors, places)
    groups = {"find the original": {f"recall@{k}": found for k, found in originals.items()}}
    if not len(labelled.rows):
        return Figures(groups=groups)
    own = vectors[labelled.rows]
    classes: tuple[str, ...] = ()
    if _num_large(labelled.names, 2) >= 2:
        places = [k for k in PLACES if k < len(own)]
        retrieved = retrieve_classes(own, labelled.names, places)
        classes = retrieved.classes
        hits = {f"class recall@{k}": found for k, found in retrieved.found.items()}
        groups["search by class"] = {"mAP": retrieved.precision, **hits}
    k = min(config.knn_k, len(own) - 1)
    accuracies = {f"kNN-{k}": knn_accuracy(own, labelled.names, k)}
    few, names = own[labelled.few], [labelled.names[row] for row in labelled.few]
    seeds = range(seed, seed + config.num_draws)
    for number in config.labels_per_class:
        if _num_large(names, number + 1) >= 2:
            accuracies[f"{number} labels/class"] = few_label_accuracy(few, names, number, seeds)
    names = [labelled.names[row] for row in labelled.probe]
    settings = {}
    if _num_large(names, MIN_PROBE_PICTURES) >= 2:
        probe = linear_probe(own[labelled.probe], names, seed)
        accuracies |= {"linear probe": probe.accuracy, "linear probe, balanced": probe.balanced}
        settings = {"strength": probe.strength, "num_train": probe.num_train}
    groups["classify"] = accuracies
    return Figures(groups=groups, classes=classes, probe_settings=settings)


def _num_large(names: list[str], needed: int) -> int:
    return sum(n >= needed for n in Counter(names).values())


def compare(measured: Mapping[str, Figures], rivals: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Every figure with its interval, and how far it is from the better baseline and the best.

    Args:
        measured: by source.
        rivals: the baselines of each source that is none.

    Returns:
        ``groups``: title to names of figures. ``figures``: source to figure to ``value``, ``low``,
        ``high``, ``n``, for draws also ``sd``; ``to_baseline`` and ``to_best`` hold ``against`` and
        the same of the difference. ``classes``: of each class its mean average precision by source.
    """
    first = next(iter(measured.values()))
    cells: dict[str, dict[str, Any]] = {source: {} for source in measured}
    for figure in first.trials:
        trials = {source: figures.trials[figure] for source, figures in measured.items()}
        best = max(trials, key=lambda source: trials[source].mean)
        for source, own in trials.items():
            cell: dict[str, Any] = asdict(own.share())
            if own.unit == "draws":
                cell["sd"] = own.sd
            if source in rivals:
                baseline = max(rivals[source], key=lambda name: trials[name].mean)
                cell["to_baseline"] = {"against": baseline, **_gap(own, trials[baseline])}
            if source != best:
                cell["to_best"] = {"against": best, **_gap(own, trials[best])}
            cells[source][figure] = cell
    return {
        "groups": {title: list(group) for title, group in first.groups.items()},
        "figures": cells,
        "probe_settings": {
            source: figures.probe_settings
            for source, figures in measured.items()
            if figures.probe_settings
        },
        "classes": _by_class(measured),
    }


def _gap(own: Trials, other: Trials) -> dict[str, Any]:
    return asdict(own.minus(other))


def _by_class(measured: Mapping[str, Figures]) -> dict[str, Any]:
    """Of each class that was searched for: number of queries, and mAP by source."""
    first = next(iter(measured.values()))
    precision = first.trials.get("mAP")
    if precision is None or precision.classes is None:
        return {}
    means = {source: figures.trials["mAP"].by_class() for source, figures in measured.items()}
    return {
        first.classes[code]: {
            "queries": int(n),
            "mAP": {source: float(by_class[code]) for source, by_class in means.items()},
        }
        for code, n in zip(*np.unique(precision.classes, return_counts=True), strict=True)
    }
