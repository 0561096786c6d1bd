"""A version in layers, searched as one: its base, and the delta of what came since.

Each layer ranks by exact cosines of its own stored vectors, so that the best of their answers are
the best of all. What is dead in the base is no result there (`Ranker.live`); a picture that was
replaced is dead in the base and alive in the delta, under one id. The delta is compared in full,
whatever effort the base takes.

Shapes: Q queries, D embedding, K results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from index.best import best_first
from index.folder import Folder
from index.id_file import NO_IDS, read_ids
from index.live import LiveVectors
from index.planner import Plan, Planner
from index.rank import Ranker
from index.selection import Living, Selection
from index.shelf import AnyPart, open_parts, shelve_parts
from index.vector_sets import StoredVectors
from index.vectors import VECTORS, Floats, Ids, VectorFile

__all__ = [
    "LayeredPlanner",
    "LayeredRanker",
    "Opened",
    "best_of",
    "open_layers",
    "open_ranker",
    "refine_of",
]


def best_of(found: Sequence[tuple[Ids, Floats]], k: int) -> tuple[Ids, Floats]:
    """The k best of some answers to the same queries, best first, equal scores by id."""
    if len(found) == 1:
        return found[0]
    ids, scores = (np.concatenate(columns, axis=1) for columns in zip(*found, strict=True))
    return best_first(ids, scores, k)


@dataclass(frozen=True, slots=True)
class LayeredRanker:
    """Ranks over all layers; see `Ranker`.

    Args:
        layers: the base, then the delta if there is one.
        vectors: what is alive in any.
    """

    layers: Sequence[Ranker]
    vectors: StoredVectors

    @property
    def nlist(self) -> int:
        """The effort in the base that is exact search; the delta has one list."""
        return self.layers[0].nlist

    @property
    def lossy(self) -> bool:
        """Whether the base's codes only propose."""
        return self.layers[0].lossy

    @property
    def by_vectors(self) -> bool:
        """Whether scores are products with the stored vectors, in every layer."""
        return self.layers[0].by_vectors

    def num_available(self, exclude: Ids | None) -> int:
        """Rows that may be results when ``exclude``, without repetition, may not."""
        return sum(layer.num_available(exclude) for layer in self.layers)

    def top(
        self, queries_QD: Floats, k: int, *, nprobe: int, exclude: Ids | None = None
    ) -> tuple[Ids, Floats]:
        """The k nearest rows of every query; see `Ranker.top`."""
        found = [
            layer.top(queries_QD, k, nprobe=min(nprobe, layer.nlist), exclude=exclude)
            for layer in self.layers
        ]
        return best_of(found, k)


class LayeredPlanner:
    """Searches within selections over all layers; see `Planner`. Thread-safe.

    Args:
        ranker: of the layers.
        planners: one for each layer.
    """

    def __init__(self, ranker: LayeredRanker, planners: Sequence[Planner]) -> None:
        self._ranker = ranker
        self._planners = planners
        self._divided: WeakKeyDictionary[Selection, list[Selection]] = WeakKeyDictionary()

    def top(
        self, queries_QD: Floats, k: int, selection: Selection, exclude: Ids, *, exact: bool = False
    ) -> tuple[Ids, Floats, Plan]:
        """The k nearest of the selected pictures; see `Planner.top`.

        The plan is the base's, with the delta counted in.
        """
        found = [
            planner.top(queries_QD, k, part, exclude, exact=exact)
            for planner, part in zip(self._planners, self._divide(selection), strict=True)
        ]
        ids, scores = best_of([(ids, scores) for ids, scores, _ in found], k)
        plans = [plan for _, _, plan in found]
        compared = [plan.num_compared for plan in plans if plan.num_compared is not None]
        plan = replace(
            plans[0],
            is_exact=all(plan.is_exact for plan in plans),
            num_selected=sum(plan.num_selected for plan in plans),
            num_compared=sum(compared) if len(compared) == len(plans) else None,
        )
        return ids, scores, plan

    def _divide(self, selection: Selection) -> list[Selection]:
        """The selected pictures by layer; divided once a selection."""
        divided = self._divided.get(selection)
        if divided is None:
            divided = [
                Selection.of_ids(layer.vectors.ids, selection.ids) for layer in self._ranker.layers
            ]
            self._divided[selection] = divided
        return divided


@dataclass(frozen=True, slots=True)
class Opened:
    """An index version's files, opened.

    Args:
        vectors: all that is alive.
        ranker: searches it.
        planner: searches within selections of it.
    """

    vectors: StoredVectors
    ranker: Ranker | LayeredRanker
    planner: Planner | LayeredPlanner


def open_layers(folder: Folder, door: Mapping[str, Any]) -> Opened:
    """Open the files that a version's door names, memory-mapped.

    Args:
        folder: the version's folder.
        door: its door, checked against the files.
    """
    parts = [open_parts(paths) for paths in _parts(folder, door)]
    vectors, rankers = _open(folder, door, parts, mapped=True)
    nprobe = door["parameters"]["nprobe"]
    planners = [
        Planner(ranker, own, min(nprobe, ranker.nlist))
        for ranker, own in zip(rankers, parts, strict=True)
    ]
    if isinstance(vectors, VectorFile):
        return Opened(vectors, rankers[0], planners[0])
    both = LayeredRanker(rankers, vectors)
    return Opened(vectors, both, LayeredPlanner(both, planners))


def open_ranker(
    folder: Folder, door: Mapping[str, Any], *, sparing: bool, base: VectorFile | None = None
) -> Ranker | LayeredRanker:
    """What builds and changes search a version with.

    Args:
        folder: the version's folder.
        door: its door, or a body to be.
        sparing: keep one part in memory at a time, and read vectors from the file: pages of a map
            count as this process's memory.
        base: the stored vectors of its base, if another version has them open.
    """
    if not sparing:
        return open_layers(folder, door).ranker
    parts = [shelve_parts(paths) for paths in _parts(folder, door)]
    vectors, rankers = _open(folder, door, parts, mapped=False, base=base)
    return rankers[0] if isinstance(vectors, VectorFile) else LayeredRanker(rankers, vectors)


def refine_of(door: Mapping[str, Any]) -> int:
    """Candidates a result that a version's parts propose together.

    Versions written before there were short codes name no such number, and in those written before
    ``together`` was said each part proposed as many.
    """
    parameters = door["parameters"]
    refine: int = parameters.get("refine", 1)
    if refine == 1 or parameters.get("together"):
        return refine
    return refine * len(door["parts"])


def _parts(folder: Folder, door: Mapping[str, Any]) -> list[list[Path]]:
    """The FAISS files of the base, and of the delta if there is one."""
    delta = door.get("delta")
    names = [[part["file"] for part in door["parts"]], *([[delta["part"]]] if delta else [])]
    return [[folder.local_path(name) for name in layer] for layer in names]


def _open(
    folder: Folder,
    door: Mapping[str, Any],
    parts: Sequence[Sequence[AnyPart]],
    *,
    mapped: bool,
    base: VectorFile | None = None,
) -> tuple[StoredVectors, list[Ranker]]:
    """What is alive, and a ranker for each layer."""
    file = VectorFile(folder.local_path(VECTORS), mapped=mapped) if base is None else base
    dead, delta = door.get("dead"), door.get("delta")
    dead_ids = read_ids(folder.local_path(dead["file"])) if dead else NO_IDS
    added = VectorFile(folder.local_path(delta["file"]), mapped=mapped) if delta else None
    live = None
    if len(dead_ids):
        live = Living(file.ids, dead_ids)
    least = door["recall"]["k"] + 1  # a query of the corpus, which is dropped, is a result too
    rankers = [Ranker(parts[0], file, refine=refine_of(door), least=least, live=live)]
    if added is not None:
        rankers.append(Ranker(parts[1], added, by_vectors=rankers[0].by_vectors))
    elif live is None:
        return file, rankers
    return LiveVectors(file, dead_ids, added), rankers
