"""A version in two layers, searched as one: its base, and the delta of what came since.

Each layer ranks by exact cosines of its own stored vectors, so that the best of both answers are
the best of all. The delta is compared in full, whatever effort the base takes.

Shapes: Q queries, D embedding, K results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from index.artifact import Folder
from index.id_file import NO_IDS, read_ids
from index.live import LiveVectors
from index.part import Part, ShelvedPart
from index.planner import Plan, Planner
from index.rank import Ranker
from index.selection import Selection
from index.vectors import VECTORS, Floats, Ids, StoredVectors, VectorFile

__all__ = ["LayeredPlanner", "LayeredRanker", "Opened", "best_of", "open_layers", "open_ranker"]

ALL_OF_IT = 1
"""Lists of the delta, which has one."""


def best_of(found: Sequence[tuple[Ids, Floats]], k: int) -> tuple[Ids, Floats]:
    """The k best of some answers to the same queries, best first, equal scores by id."""
    ids = np.concatenate([ids for ids, _ in found], axis=1)
    scores = np.concatenate([scores for _, scores in found], axis=1)
    order = np.lexsort((ids, -scores), axis=-1)[:, :k]
    return np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)


@dataclass(frozen=True, slots=True)
class LayeredRanker:
    """Ranks over both layers; see `Ranker`.

    Args:
        base: of what is alive of the base.
        delta: of the delta.
        vectors: of both.
    """

    base: Ranker
    delta: Ranker
    vectors: StoredVectors

    @property
    def nlist(self) -> int:
        """The effort in the base that is exact search."""
        return self.base.nlist

    @property
    def lossy(self) -> bool:
        """Whether the base's codes only propose."""
        return self.base.lossy

    def num_available(self, exclude: Ids | None) -> int:
        """Rows that may be results when ``exclude``, without repetition, may not."""
        return self.base.num_available(exclude) + self.delta.num_available(exclude)

    def top(
        self, queries_QD: Floats, k: int, *, nprobe: int, exclude: Ids | None = None
    ) -> tuple[Ids, Floats]:
        """The k nearest rows of every query; see `Ranker.top`."""
        found = [
            self.base.top(queries_QD, k, nprobe=nprobe, exclude=exclude),
            self.delta.top(queries_QD, k, nprobe=ALL_OF_IT, exclude=exclude),
        ]
        return best_of(found, k)


class LayeredPlanner:
    """Searches within selections over both layers; see `Planner`. Thread-safe."""

    def __init__(self, ranker: LayeredRanker, base: Planner, delta: Planner) -> None:
        self._ranker = ranker
        self._base = base
        self._delta = delta
        self._divided: WeakKeyDictionary[Selection, tuple[Selection, Selection]] = (
            WeakKeyDictionary()
        )

    def top(
        self, queries_QD: Floats, k: int, selection: Selection, exclude: Ids, *, exact: bool = False
    ) -> tuple[Ids, Floats, Plan]:
        """The k nearest of the selected pictures; see `Planner.top`.

        The plan is the base's, with the delta counted in.
        """
        in_base, in_delta = self._divide(selection)
        base_ids, base_scores, plan = self._base.top(queries_QD, k, in_base, exclude, exact=exact)
        delta_ids, delta_scores, other = self._delta.top(
            queries_QD, k, in_delta, exclude, exact=exact
        )
        ids, scores = best_of([(base_ids, base_scores), (delta_ids, delta_scores)], k)
        compared = (
            None
            if plan.num_compared is None or other.num_compared is None
            else plan.num_compared + other.num_compared
        )
        both = replace(
            plan,
            is_exact=plan.is_exact and other.is_exact,
            num_selected=plan.num_selected + other.num_selected,
            num_compared=compared,
        )
        return ids, scores, both

    def _divide(self, selection: Selection) -> tuple[Selection, Selection]:
        """The selected pictures of the base and of the delta; divided once a selection."""
        divided = self._divided.get(selection)
        if divided is None:
            divided = (
                Selection.of_ids(self._ranker.base.vectors.ids, selection.ids),
                Selection.of_ids(self._ranker.delta.vectors.ids, selection.ids),
            )
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
    file, dead_ids, added = _open_vectors(folder, door, mapped=True)
    base: StoredVectors = LiveVectors(file, dead_ids) if len(dead_ids) else file
    parts = [Part.open(folder.local_path(part["file"]), dead_ids) for part in door["parts"]]
    ranker = Ranker(parts, base, refine=_refine(door))
    planner = Planner(ranker, parts, door["parameters"]["nprobe"])
    if added is None:
        return Opened(base, ranker, planner)
    flat = [Part.open(folder.local_path(door["delta"]["part"]))]
    beside = Ranker(flat, added)
    both = LayeredRanker(ranker, beside, LiveVectors(file, dead_ids, added))
    planners = LayeredPlanner(both, planner, Planner(beside, flat, ALL_OF_IT))
    return Opened(both.vectors, both, planners)


def open_ranker(
    folder: Folder, door: Mapping[str, Any], *, sparing: bool
) -> Ranker | LayeredRanker:
    """What builds and changes search a version with.

    Args:
        folder: the version's folder.
        door: its door, or a body to be.
        sparing: keep one part in memory at a time, and read vectors from the file: pages of a map
            count as this process's memory.
    """
    if not sparing:
        return open_layers(folder, door).ranker
    file, dead_ids, added = _open_vectors(folder, door, mapped=False)
    base: StoredVectors = LiveVectors(file, dead_ids) if len(dead_ids) else file
    parts = [ShelvedPart(folder.local_path(part["file"]), dead_ids) for part in door["parts"]]
    ranker = Ranker(parts, base, refine=_refine(door))
    if added is None:
        return ranker
    beside = Ranker([ShelvedPart(folder.local_path(door["delta"]["part"]))], added)
    return LayeredRanker(ranker, beside, LiveVectors(file, dead_ids, added))


def _open_vectors(
    folder: Folder, door: Mapping[str, Any], *, mapped: bool
) -> tuple[VectorFile, Ids, VectorFile | None]:
    """Stored vectors of the base, ids that are dead in it, stored vectors of the delta."""
    file = VectorFile(folder.local_path(VECTORS), mapped=mapped)
    dead, delta = door.get("dead"), door.get("delta")
    dead_ids = read_ids(folder.local_path(dead["file"])) if dead else NO_IDS
    added = VectorFile(folder.local_path(delta["file"]), mapped=mapped) if delta else None
    return file, dead_ids, added


def _refine(door: Mapping[str, Any]) -> int:
    # Versions written before there were short codes name no such number.
    return int(door["parameters"].get("refine", 1))
