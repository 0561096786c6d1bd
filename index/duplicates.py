"""Groups of near-duplicates over a whole corpus: copies of a file, and pictures as good as equal.

Two pictures belong together when their files are the same to the byte, when one is among the k
nearest of the other with a cosine of at least the threshold, or through others that they belong
with. A group in which all k neighbours of a picture reach the threshold may go on beyond them: from
each such group the nearest picture outside is searched and joined, until none is near enough.

A chain of small steps may join pictures that are less alike than the threshold.

Shapes: N pictures of the index, n of a batch, K neighbours each.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.artifact import Verify, digest, library_versions, publish
from index.beside import open_beside, writing_beside
from index.beyond import joined_beyond, merged
from index.graph import NeighbourGraph
from index.id_file import NO_IDS
from index.search import Searcher
from index.vectors import ALIKE, Ids, locate, rising

__all__ = ["DUPLICATES", "DuplicateConfig", "DuplicateGroups", "build_duplicates"]

DUPLICATES = "duplicates"
"""Folder of the groups inside an index version, and their kind."""

Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class DuplicateConfig:
    """Which pictures count as near-duplicates."""

    threshold: float = 0.97
    """Lowest cosine of two near-duplicates; what is right depends on the encoder."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(
                f"duplicates: threshold is {self.threshold}, allowed is above 0 and up to 1. Try "
                "0.97, and look at the groups."
            )


class DuplicateGroups:
    """Which pictures are near-duplicates of each other. Thread-safe.

    Attributes:
        id: checksum of the door: other groups, or another threshold, have another.
        threshold: lowest cosine of two that were joined.
        ids: pictures that have a near-duplicate, int64, rising.
        groups: the group of each: the lowest id in it.
    """

    def __init__(self, identity: str, threshold: float, ids: Ids, groups: Ids) -> None:
        self.id = identity
        self.threshold = threshold
        self.ids = ids
        self.groups = groups

    @classmethod
    def open(cls, searcher: Searcher, *, verify: Verify = "full") -> DuplicateGroups:
        """The groups of an index version; raises the errors of `index.beside.open_beside`."""
        folder, door = open_beside(
            searcher, DUPLICATES, "lookalike graph --index NAME", verify=verify
        )
        (name,) = door["files"]
        with pa.memory_map(str(folder.local_path(name))) as source:
            table = pa.ipc.open_file(source).read_all()
        columns = (table[name].to_numpy() for name in ("id", "group"))
        return cls(door["door_sha256"], door["config"]["threshold"], *columns)

    def group_of(self, ids: Ids) -> Ids:
        """The group of each picture; one without near-duplicates is its own. Of any shape."""
        places = np.searchsorted(self.ids, ids)
        places = np.minimum(places, max(len(self.ids) - 1, 0))
        if not len(self.ids):
            return ids
        return np.where(self.ids[places] == ids, self.groups[places], ids)

    def copies_of(self, ids: Ids) -> Ids:
        """All other pictures in the groups of some, in any order."""
        names, starts, members = self._by_group
        places, found = locate(names, rising(self.group_of(ids).ravel()))
        groups = [members[starts[place] : starts[place + 1]] for place in places[found]]
        some = np.concatenate([NO_IDS, *groups])
        return some[~np.isin(some, ids)]

    def sizes_of(self, ids: Ids) -> Ids:
        """How many pictures the group of each has, itself included."""
        names, starts, _ = self._by_group
        places, found = locate(names, self.group_of(ids))
        sizes = np.ones(len(ids), np.int64)
        sizes[found] = np.diff(starts)[places[found]]
        return sizes

    def members(self, picture_id: int) -> Ids:
        """All pictures of its group, itself included, rising."""
        one = np.array([picture_id], np.int64)
        return rising(one, self.copies_of(one))

    def sizes(self) -> dict[int, int]:
        """Number of pictures by group, the largest first."""
        names, starts, _ = self._by_group
        counts = np.diff(starts)
        order = np.argsort(-counts, kind="stable")
        return {int(names[place]): int(counts[place]) for place in order}

    @cached_property
    def _by_group(self) -> tuple[Ids, Ids, Ids]:
        """The groups, rising; where each begins, and the last one ends, in all their members."""
        order = np.argsort(self.groups, kind="stable")
        names, starts = np.unique(self.groups[order], return_index=True)
        return names, np.append(starts, len(order)), self.ids[order]


def build_duplicates(
    searcher: Searcher,
    graph: NeighbourGraph,
    content_hashes: Iterable[tuple[Ids, NDArray[np.uint8]]],
    config: DuplicateConfig,
) -> dict[str, Any]:
    """Find all groups and publish them beside the index version.

    Args:
        searcher: the index version.
        graph: its neighbour graph.
        content_hashes: ids [n] and sha256 of the files, uint8 [n, 32]; pictures that are not in the
            index are left out.
        config: the threshold.

    Returns:
        The door: ``num_groups``, ``num_pictures`` in them, ``num_copies`` of files that are there
        before, ``largest`` group, ``searches`` beyond the graph, of which a pass over all is one.

    Memory: some 50 bytes a picture. Cost: a pass over the graph, and searches for groups beyond K.
    """
    task = "finding the near-duplicates of this index"
    with writing_beside(searcher, DUPLICATES, task) as folder:
        rows, num_copies = _copies(searcher, content_hashes)
        threshold = min(config.threshold, ALIKE)
        labels, full = _joined_by_graph(searcher, graph, rows, threshold)
        labels, searches = joined_beyond(searcher, labels, full, threshold)
        _, first, counts = np.unique(labels, return_index=True, return_counts=True)
        sizes = counts[labels]
        grouped = np.flatnonzero(sizes > 1)
        table = pa.table(
            {"id": searcher.ids[grouped], "group": searcher.ids[first[labels[grouped]]]}
        )
        name, record = folder.write_by_content(
            "groups-{sha256}.arrow", lambda path: _write(table, path)
        )
        body = {
            "id": digest({"graph": graph.door["id"], "groups": record["sha256"]}),
            "config": asdict(config),
            "parents": graph.door["parents"],
            "graph_id": graph.door["id"],
            "rows": len(grouped),
            "num_groups": int((counts > 1).sum()),
            "num_pictures": len(grouped),
            "num_copies": num_copies,
            "largest": int(counts.max(initial=0)),
            "searches": searches,
            "versions": library_versions("pyarrow", "numpy"),
        }
        door = publish(folder, DUPLICATES, body, {name: record})
        folder.remove_others("groups-", keep=[name])
    return door


def _write(table: pa.Table, path: str) -> None:
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


def _copies(
    searcher: Searcher, content_hashes: Iterable[tuple[Ids, NDArray[np.uint8]]]
) -> tuple[tuple[Rows, Rows], int]:
    """Pairs of rows of the same content, and how many rows repeat an earlier one's."""
    rows, keys = [np.empty(0, np.int64)], [np.empty((0, 2), np.uint64)]
    for ids, hashes in content_hashes:
        known = searcher.select(ids)
        here = np.isin(ids, known.ids)
        rows.append(known.rows.astype(np.int64))
        # Half of a sha256 tells as many files apart as anybody has.
        keys.append(np.ascontiguousarray(hashes[here, :16]).view(np.uint64))
    row, key = np.concatenate(rows), np.concatenate(keys)
    order = np.lexsort((row, key[:, 1], key[:, 0]))
    row, key = row[order], key[order]
    same = (key[1:] == key[:-1]).all(axis=1)
    return (row[:-1][same], row[1:][same]), int(same.sum())


def _joined_by_graph(
    searcher: Searcher, graph: NeighbourGraph, copies: tuple[Rows, Rows], threshold: float
) -> tuple[Rows, NDArray[np.bool_]]:
    """Labels [N] after all joins that the graph knows of; rows whose K neighbours all reach it."""
    labels = merged(np.arange(len(searcher)), *copies)
    full = np.zeros(len(searcher), bool)
    for ids, neighbours, scores in graph.iter_pieces():
        rows = np.searchsorted(searcher.ids, ids)
        near = scores >= threshold
        full[rows] = near.all(axis=1)
        left = np.repeat(rows, near.sum(axis=1))
        labels = merged(labels, left, np.searchsorted(searcher.ids, neighbours[near]))
    return labels, full
