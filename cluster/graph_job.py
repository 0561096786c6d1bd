"""graph: what all pictures of an index are to each other: neighbours, near-duplicates, a map.

1. Open the index version in service. 2. Search the neighbours of every picture. 3. Join
near-duplicates, copies of a file first. 4. Lay the corpus out in two dimensions. Each is published
beside the version, and found again by the next run.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from cluster.collection import Collection
from cluster.context import Context
from cluster.workspace import check_name
from index.beside import hold
from index.carry import carry_graph, find_earlier
from index.duplicates import DuplicateConfig, DuplicateGroups, build_duplicates
from index.graph import GRAPH, GraphConfig, NeighbourGraph
from index.outliers import outlier_table
from index.projection import MapConfig, build_map

__all__ = ["GraphJobConfig", "find_relations"]

logger = logging.getLogger(__name__)

SHOWN = 5
"""Largest groups and farthest outliers that a report shows."""
THRESHOLDS = (0.9, 0.95, 0.97, 0.99, 0.999)


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphJobConfig:
    """Find every picture's neighbours, the near-duplicates, outliers, and a map of an index."""

    index: str
    """Name of the index."""
    graph: Annotated[GraphConfig, tyro.conf.arg(name="")] = field(default_factory=GraphConfig)
    """The neighbours."""
    duplicates: Annotated[DuplicateConfig, tyro.conf.arg(name="")] = field(
        default_factory=DuplicateConfig
    )
    """The near-duplicates."""
    map: MapConfig = field(default_factory=MapConfig)
    """The two dimensions."""

    def __post_init__(self) -> None:
        """Check the name."""
        check_name(self.index, what="index")


def find_relations(config: GraphJobConfig, context: Context) -> dict[str, Any]:
    """Make the graph, the groups and the map of the version in service, as far as they lack.

    Returns:
        How many neighbours are right, groups and their sizes, the farthest outliers, the map's
        method, and how many pictures have a neighbour above each of some thresholds.

    Raises:
        ArtifactError: the index is not there or damaged, or its embeddings are gone; the version
            was replaced and deleted before this began.
        ValueError: fewer than two pictures; another process is at it.
    """
    collection = Collection.open(context.workspace, config.index)
    # Held from the first to the last, so that the graph is not deleted before the groups.
    with hold(collection.searcher):
        return _made(config, collection, context)


def _made(config: GraphJobConfig, collection: Collection, context: Context) -> dict[str, Any]:
    """Make what is missing, and report."""
    searcher = collection.searcher
    with context.progress("neighbours", len(searcher), "pictures") as line:
        # Another version's is looked through only where there is none yet.
        is_new = not searcher.folder.exists(f"{GRAPH}/{GRAPH}.json")
        earlier = find_earlier(searcher, config.graph) if is_new else None
        built = carry_graph(searcher, config.graph, earlier, line.advance)
    graph = NeighbourGraph.open(searcher, verify="sizes")
    hashes = collection.embeddings.iter_content_hashes()
    groups = build_duplicates(searcher, graph, hashes, config.duplicates)
    laid_out = build_map(searcher, config.map)
    outliers = outlier_table(graph).slice(0, SHOWN)
    return {
        "index": config.index,
        "version": collection.version,
        "pictures": len(searcher),
        "neighbours": built["k"],
        "recall": built["recall"]["value"],
        "carried_from": built.get("carried_from"),
        "near_duplicates": {
            name: groups[name] for name in ("num_groups", "num_pictures", "num_copies", "largest")
        },
        "largest_groups": _largest_groups(collection),
        "pictures_with_a_neighbour_above": _by_threshold(graph),
        "outliers": _named(collection, outliers["id"].to_numpy()),
        "map": laid_out and laid_out["method"],
        "path": str(searcher.folder),
    }


def _largest_groups(collection: Collection) -> list[dict[str, Any]]:
    sizes = DuplicateGroups.open(collection.searcher, verify="sizes").sizes()
    largest = list(sizes.items())[:SHOWN]
    named = _named(collection, [group for group, _ in largest])
    return [{**name, "pictures": size} for name, (_, size) in zip(named, largest, strict=True)]


def _named(collection: Collection, ids: Any) -> list[dict[str, Any]]:
    return [{"id": row.id, "file": row.uri} for row in collection.catalog.rows(ids)]


def _by_threshold(graph: NeighbourGraph) -> dict[str, int]:
    """Pictures whose nearest neighbour is at least so near: what a threshold would join."""
    counts = dict.fromkeys(THRESHOLDS, 0)
    for _, _, scores in graph.iter_pieces():
        for threshold in THRESHOLDS:
            counts[threshold] += int((scores[:, 0] >= threshold).sum())
    return {str(threshold): count for threshold, count in counts.items()}
