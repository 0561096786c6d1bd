"""The k nearest neighbours of every picture, searched once and kept beside the index version.

Near-duplicates, outliers, maps and labels that spread all need the same graph. It lies in the
folder of the version it was made from, so that both go together, and names it: another version's
graph is refused. Rows are searched and written piece by piece; a build that was killed goes on from
the pieces that are whole.

Shapes: N pictures, n of a piece, K neighbours each, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from index.artifact import Verify, digest, library_versions, publish
from index.beside import made_before, open_beside, parents_of, writing_beside
from index.folder import Folder
from index.hits import Hits
from index.measure import Proportion, exact_top_k, recall_at_k
from index.search import Searcher
from index.vectors import Floats, Ids, unit

__all__ = [
    "GRAPH",
    "GraphConfig",
    "NeighbourGraph",
    "build_graph",
    "other_pictures",
    "search_others",
]

Others = Callable[[Searcher, Ids, int], tuple[Ids, Floats]]

GRAPH = "graph"
"""Folder of the graph inside a version, and its kind."""
PIECE_ROWS = 65_536
SEARCH_ROWS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphConfig:
    """The neighbours to find of every picture."""

    k: int = 15
    """Neighbours of each picture; fewer in a corpus that has no more."""
    num_checked: int = 200
    """Pictures whose neighbours are compared with exact search, to say how many are right."""
    seed: int = 0
    """Seed of the choice of these."""

    def __post_init__(self) -> None:
        for name, value in (("k", self.k), ("num_checked", self.num_checked)):
            if value < 1:
                raise ValueError(f"graph: {name} is {value!r}, allowed is at least 1. Correct it.")


def build_graph(
    searcher: Searcher,
    config: GraphConfig,
    advance: Callable[[int], object] = lambda _: None,
    *,
    others: Others | None = None,
    carried_from: str | None = None,
) -> dict[str, Any]:
    """Find the neighbours of every picture of an index version, or find them found.

    Args:
        searcher: the version; its own tuned search finds the neighbours.
        config: how many.
        advance: told how many more pictures are done.
        others: what finds the neighbours of some pictures; None for `other_pictures`.
        carried_from: the version that it takes them from, for the door.

    Returns:
        The graph's door: ``k``, ``recall`` with its interval, ``rows``.

    Raises:
        MissingArtifactError: the version was replaced, and deleted before this began.
        ValueError: fewer than two pictures; another process is at it.

    Cost: one search a picture, and one pass for the exact answers. Memory: one piece of
    65,536 pictures, 12 K bytes each, and what the index itself takes.
    """
    if len(searcher) < 2:
        raise ValueError(
            f"index version {searcher.version}: has {len(searcher)} pictures, and neighbours need "
            "two. Index more pictures."
        )
    identity = {"index": searcher.door["door_sha256"], "config": asdict(config)}
    graph_id = digest(identity)
    task = "finding the neighbours of this index"
    with writing_beside(searcher, GRAPH, task) as folder:
        if (made := made_before(folder, GRAPH, graph_id)) is not None:
            advance(len(searcher))
            return made
        k = min(config.k, len(searcher) - 1)
        find = partial(others or other_pictures, searcher)
        parts = enumerate(np.split(searcher.ids, range(PIECE_ROWS, len(searcher), PIECE_ROWS)))
        pieces = [
            _piece(find, folder, ids, k, f"piece-{number:05d}-{graph_id[:12]}", advance)
            for number, ids in parts
        ]
        kept = {"k": k, "pieces": pieces}
        body = {
            "id": graph_id,
            "config": asdict(config),
            "parents": parents_of(searcher),
            "rows": len(searcher),
            **kept,
            "recall": asdict(_recall(searcher, NeighbourGraph(folder, kept), config)),
            "carried_from": carried_from,
            "versions": library_versions("faiss-cpu", "pyarrow", "numpy"),
        }
        door = publish(folder, GRAPH, body, pieces)
        folder.remove_others("piece-", keep=pieces)
    return door


def _piece(
    find: Callable[[Ids, int], tuple[Ids, Floats]],
    folder: Folder,
    ids: Ids,
    k: int,
    prefix: str,
    advance: Callable[[int], object],
) -> str:
    """Name of the file with the neighbours of some rows, written unless it is there and whole."""
    for name in folder.names():
        if name.startswith(prefix) and folder.sha256(name)[:12] == name[len(prefix) + 1 :][:12]:
            advance(len(ids))
            return name
    neighbours, scores = np.empty((len(ids), k), np.int64), np.empty((len(ids), k), np.float32)
    for first in range(0, len(ids), SEARCH_ROWS):
        rows = slice(first, first + SEARCH_ROWS)
        neighbours[rows], scores[rows] = find(ids[rows], k)
        advance(len(ids[rows]))
    table = pa.table(
        {
            "id": pa.array(ids),
            "neighbours": pa.FixedSizeListArray.from_arrays(pa.array(neighbours.reshape(-1)), k),
            "scores": pa.FixedSizeListArray.from_arrays(pa.array(scores.reshape(-1)), k),
        }
    )
    return folder.write_by_content(prefix + "-{sha256}.arrow", lambda path: _write(table, path))[0]


def _write(table: pa.Table, path: str) -> None:
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


def search_others(searcher: Searcher, ids_n: Ids, k: int, *, thorough: bool | None = None) -> Hits:
    """The k nearest of each picture but itself, which is dropped by id: copies are as near.

    Args:
        searcher: of the index.
        ids_n: the pictures.
        k: at least 1.
        thorough: as for `Searcher.search`.

    Raises:
        KeyError: a picture has no vector here.
        ValueError: k below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}; ask for at least 1 result")
    hits = searcher.search(searcher.vectors_of(ids_n), k + 1, thorough=thorough)
    dropped = hits.ids == ids_n[:, None]
    dropped[~dropped.any(axis=1), -1] = True
    shape = (len(ids_n), hits.ids.shape[1] - 1)
    num_others = hits.num_searched - 1
    return replace(
        hits,
        ids=hits.ids[~dropped].reshape(shape),
        scores=hits.scores[~dropped].reshape(shape),
        num_searched=num_others,
        plan=replace(hits.plan, num_selected=num_others),
    )


def other_pictures(searcher: Searcher, ids_n: Ids, k: int) -> tuple[Ids, Floats]:
    """Ids and cosines of `search_others` at the tuned effort, whose recall is measured here.

    Args:
        searcher: of the index.
        ids_n: the pictures.
        k: below the number of pictures.
    """
    hits = search_others(searcher, ids_n, k, thorough=False)
    return hits.ids, hits.scores


def _recall(searcher: Searcher, graph: NeighbourGraph, config: GraphConfig) -> Proportion:
    """How many of the neighbours that are kept are right, of some pictures."""
    rng = np.random.default_rng(config.seed)
    drawn = rng.choice(searcher.ids, min(config.num_checked, len(searcher)), replace=False)
    checked = np.sort(drawn)
    queries = unit(searcher.vectors_of(checked))
    _, truth = exact_top_k(queries, graph.k, searcher.iter_batches(4096), exclude_Q=checked)
    pieces = graph.iter_pieces()
    found = np.concatenate([scores[np.isin(ids, checked)] for ids, _, scores in pieces])
    right = recall_at_k(found, truth)
    return Proportion.wilson(float(right.sum()), len(right))


class NeighbourGraph:
    """A published graph, memory-mapped. Thread-safe.

    Attributes:
        door: its card.
        k: neighbours of each picture.
    """

    def __init__(self, folder: Folder, door: dict[str, Any]) -> None:
        self.door = door
        self.k: int = door["k"]
        self._paths: list[Path] = [folder.local_path(name) for name in door["pieces"]]

    @classmethod
    def open(cls, searcher: Searcher, *, verify: Verify = "full") -> NeighbourGraph:
        """The graph of an index version; raises the errors of `index.beside.open_beside`."""
        return cls(*open_beside(searcher, GRAPH, "lookalike graph --index NAME", verify=verify))

    def iter_pieces(self) -> Iterator[tuple[Ids, Ids, Floats]]:
        """Ids [n], rising; neighbours' ids [n, K], nearest first; their cosines [n, K]."""
        for path in self._paths:
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_file(source).read_all().combine_chunks()
            ids, neighbours, scores = (
                table[name].chunk(0) for name in ("id", "neighbours", "scores")
            )
            shape = (len(ids), self.k)
            yield (
                ids.to_numpy(),
                neighbours.flatten().to_numpy().reshape(shape),
                scores.flatten().to_numpy().reshape(shape),
            )
