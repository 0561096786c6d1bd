"""Neighbours and places of one index version carried on to another: only what changed is new.

A picture whose vector is new is searched, and so is one that lost a neighbour. All others keep
theirs, but for vectors that came and are nearer: each is compared with each of these, exactly. So a
carried graph is as right as the one before and the index's own search are, and its recall is
measured again.

Shapes: N pictures, n of a batch, A that came, K neighbours each, D embedding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from index.artifact import digest, open_door, publish
from index.beside import parents_of, writing_beside
from index.best import best_first
from index.folder import Folder
from index.graph import GRAPH, GraphConfig, NeighbourGraph, build_graph, other_pictures
from index.projection import MAP, open_map, places_table, write_places
from index.search import Searcher
from index.vectors import VECTORS, Floats, Ids, locate, unit
from index.versions import version_names

__all__ = ["UNREADABLE", "Earlier", "carry_graph", "carry_map", "find_earlier", "other_graphs"]

MOST_CAME = 1 << 14
"""Pictures that may have come: with more, comparing each with all takes as long as searching."""
MOST_CHANGED = 0.25
"""Share of pictures that may have come or gone."""
COMPARED_ROWS = 16_384
BLOCK_SCORES = 1 << 22
"""Scores of old pictures with new ones held at once."""
UNREADABLE = (ValueError, OSError, RuntimeError, pa.ArrowException)
"""What opening and reading a damaged version raises; `ArtifactError` is a ValueError."""


class Earlier:
    """Another version of an index whose graph this one can go on from.

    Attributes:
        searcher: the other version.
        graph: its graph.
        lost: ids int64, rising, that have another vector now, or none.
        came: ids int64 [A], rising, that had another vector, or none.
        num_searched: pictures whose neighbours were searched so far.
    """

    def __init__(
        self, searcher: Searcher, graph: NeighbourGraph, lost: Ids, came: Ids, came_AD: Floats
    ) -> None:
        self.searcher = searcher
        self.graph = graph
        self.lost = lost
        self.came = came
        self.num_searched = 0
        self._came_AD = came_AD
        self._pieces = list(graph.iter_pieces())
        self._ends = np.array([ids[-1] for ids, _, _ in self._pieces])

    def others(self, searcher: Searcher, ids_n: Ids, k: int) -> tuple[Ids, Floats]:
        """As `index.graph.other_pictures`: ids and cosines [n, K] of the k nearest of each.

        Args:
            searcher: the newer version.
            ids_n: pictures of it.
            k: as many as the graph before has.
        """
        neighbours, scores = np.empty((len(ids_n), k), np.int64), np.empty((len(ids_n), k), "f4")
        stays = ~_among(self.came, ids_n)
        neighbours[stays], scores[stays] = self._before(ids_n[stays])
        stays[stays] = ~_among(self.lost, neighbours[stays]).any(axis=1)
        rows = np.flatnonzero(stays)
        step = max(1, BLOCK_SCORES // max(1, len(self.came)))
        for start in range(0, len(rows), step):
            here = rows[start : start + step]
            vectors = unit(searcher.vectors_of(ids_n[here]))
            neighbours[here], scores[here] = self._nearer(vectors, neighbours[here], scores[here])
        again = np.flatnonzero(~stays)
        if len(again):
            neighbours[again], scores[again] = other_pictures(searcher, ids_n[again], k)
            self.num_searched += len(again)
        return neighbours, scores

    def _before(self, ids_n: Ids) -> tuple[Ids, Floats]:
        """What the graph before has of some pictures that it knows."""
        k = self.graph.k
        neighbours, scores = np.empty((len(ids_n), k), np.int64), np.empty((len(ids_n), k), "f4")
        numbers = np.searchsorted(self._ends, ids_n)
        for number in np.unique(numbers):
            here = numbers == number
            ids, known, known_scores = self._pieces[number]
            rows = np.searchsorted(ids, ids_n[here])
            neighbours[here], scores[here] = known[rows], known_scores[rows]
        return neighbours, scores

    def _nearer(self, vectors_nD: Floats, ids_nK: Ids, scores_nK: Floats) -> tuple[Ids, Floats]:
        """The neighbours before, and what came and is nearer."""
        if not len(self.came):
            return ids_nK, scores_nK
        k = ids_nK.shape[1]
        came_nA = np.minimum(vectors_nD @ self._came_AD.T, 1)
        rows = np.flatnonzero((came_nA >= scores_nK[:, -1:]).any(axis=1))
        if len(rows):
            count = min(k, len(self.came))
            best = np.argpartition(-came_nA[rows], count - 1, axis=1)[:, :count]
            ids = np.hstack([ids_nK[rows], self.came[best]])
            scores = np.hstack([scores_nK[rows], np.take_along_axis(came_nA[rows], best, 1)])
            ids_nK[rows], scores_nK[rows] = best_first(ids, scores, k)
        return ids_nK, scores_nK


def other_graphs(index: Folder, version: str) -> list[Folder]:
    """Folders of the other versions of an index that have a graph, the newest first."""
    others = [index / name for name in version_names(index) if name != version]
    return [one for one in reversed(others) if one.exists(f"{GRAPH}/{GRAPH}.json")]


def find_earlier(searcher: Searcher, config: GraphConfig | None = None) -> Earlier | None:
    """The newest other version with a whole graph from which this one can be carried on, if any.

    It has to be of the same encoder and layer, share most of its vectors, and have as many
    neighbours a picture as ``config`` asks for; of any number if that is None.

    Cost: one pass over the vectors of both; over those of their deltas alone if they share a base.
    """
    index = Folder(searcher.folder.fs, searcher.folder.path.rpartition("/")[0])
    for folder in other_graphs(index, searcher.version):
        name = folder.path.rpartition("/")[2]
        # Another version may be damaged, or deleted in this moment: then it is of no use here. Its
        # large files are not read before they are used, so that Arrow and FAISS may find it out.
        with contextlib.suppress(*UNREADABLE):
            other = Searcher(folder, name, open_door(folder, "index", verify="sizes"))
            graph = NeighbourGraph.open(other)
            same = (other.encoder_id, other.layer) == (searcher.encoder_id, searcher.layer)
            asked = graph.door["config"]["k"] if config is None else config.k
            if same and graph.k == min(asked, len(searcher) - 1):
                earlier = _compared(searcher, other, graph)
                if earlier is not None:
                    return earlier
    return None


def _compared(searcher: Searcher, other: Searcher, graph: NeighbourGraph) -> Earlier | None:
    """What differs; None if it is too much to carry anything on."""
    both = np.intersect1d(searcher.ids, other.ids, assume_unique=True)
    replaced, unsure = [], _maybe_replaced(searcher, other, both)
    for start in range(0, len(unsure), COMPARED_ROWS):
        ids = unsure[start : start + COMPARED_ROWS]
        differs = (searcher.vectors_of(ids) != other.vectors_of(ids)).any(axis=1)
        replaced.append(ids[differs])
    stayed = np.setdiff1d(both, np.concatenate([*replaced, both[:0]]), assume_unique=True)
    lost = np.setdiff1d(other.ids, stayed, assume_unique=True)
    came = np.setdiff1d(searcher.ids, stayed, assume_unique=True)
    if len(came) > MOST_CAME or max(len(came), len(lost)) > MOST_CHANGED * len(searcher):
        return None
    return Earlier(other, graph, lost, came, searcher.vectors_of(came))


def _maybe_replaced(searcher: Searcher, other: Searcher, both: Ids) -> Ids:
    """Those of the pictures of both whose vectors may differ: of one base, those in a delta."""
    bases = (one.door["files"][VECTORS]["sha256"] for one in (searcher, other))
    if len({*bases}) > 1:
        return both
    return np.intersect1d(both, np.union1d(searcher.delta_ids, other.delta_ids))


def carry_graph(
    searcher: Searcher,
    config: GraphConfig,
    earlier: Earlier | None,
    advance: Callable[[int], object] = lambda _: None,
) -> dict[str, Any]:
    """As `index.graph.build_graph`, going on from another version's graph if there is one.

    Returns:
        The graph's door; ``carried_from`` names the other version.

    Cost: a pass over the vectors times the number that came; a search for each picture that came or
    lost a neighbour.
    """
    if earlier is None:
        return build_graph(searcher, config, advance)
    return build_graph(
        searcher, config, advance, others=earlier.others, carried_from=earlier.searcher.version
    )


def carry_map(searcher: Searcher, graph: NeighbourGraph, earlier: Earlier) -> dict[str, Any]:
    """Lay out a version as the one before, and publish that beside it.

    Pictures keep their places. One that came lies amid its neighbours that have one: at their mean,
    weighted by cosine, as far as that is above 0; amid all pictures if none has.

    Returns:
        The map's door; ``carried`` says from where, and how many were placed anew.

    Raises:
        ArtifactError: the other version has no map, or a damaged one.
    """
    before = open_map(earlier.searcher)
    door = open_door(earlier.searcher.folder / MAP, MAP, verify="sizes")
    known_ids = before["id"].to_numpy()
    known = np.stack([before[axis].to_numpy() for axis in ("x", "y")], axis=1)
    stays = ~_among(earlier.lost, known_ids)
    known_ids, known = known_ids[stays], known[stays]
    parents = parents_of(searcher)
    carried = {"from": earlier.searcher.version, "placed": len(earlier.came)}
    with writing_beside(searcher, MAP, "laying out this index") as folder:
        name, record = folder.write_by_content(
            "places-{sha256}.arrow",
            lambda path: write_places(_placed(graph, known_ids, known), path),
        )
        body = {key: door[key] for key in ("config", "method", "versions")} | {
            "id": digest({"parents": parents, "carried": carried, "before": door["id"]}),
            "parents": parents,
            "rows": len(searcher),
            "carried": carried,
        }
        made = publish(folder, MAP, body, {name: record})
        folder.remove_others("places-", keep=[name])
    return made


def _placed(graph: NeighbourGraph, known_ids: Ids, known: Floats) -> Iterator[pa.Table]:
    """Places of all pictures of a graph, piece by piece."""
    middle = known.mean(axis=0)
    for ids, neighbours, scores in graph.iter_pieces():
        rows, is_known = locate(known_ids, ids)
        places = np.empty((len(ids), 2), np.float32)
        places[is_known] = known[rows[is_known]]
        theirs, has_place = locate(known_ids, neighbours[~is_known].reshape(-1))
        shape = neighbours[~is_known].shape
        weights = np.where(has_place.reshape(shape), np.maximum(scores[~is_known], 0), 0)
        amid = known[np.minimum(theirs, len(known) - 1)].reshape(*shape, 2)
        total = weights.sum(axis=1, keepdims=True)
        mean = (amid * weights[..., None]).sum(axis=1) / np.maximum(total, 1e-12)
        places[~is_known] = np.where(total > 0, mean, middle)
        yield places_table(ids, places)


def _among(some: Ids, ids: Ids) -> Any:
    """Which of the ids are among some rising ones, in the shape of ids."""
    return locate(some, ids.reshape(-1))[1].reshape(ids.shape)
