"""Relations between pictures, carried on when an index changes: neighbours, near-duplicates, a map.

What `lookalike graph` made is of one version. After a change, the version that took over gets its
own from that of the version before, as long as that is a matter of what changed. It answers
meanwhile. Where it is not carried on, the report says so, and `lookalike graph` makes it.
"""

from __future__ import annotations

import logging

from cluster.collection import Collection
from cluster.context import Context
from index.artifact import open_door
from index.beside import hold
from index.carry import UNREADABLE, Earlier, carry_graph, carry_map, find_earlier, other_graphs
from index.duplicates import DUPLICATES, DuplicateConfig, build_duplicates
from index.graph import GraphConfig, NeighbourGraph
from index.projection import MAP, MapConfig, build_map
from index.update import Updated

__all__ = ["follow_relations"]

logger = logging.getLogger(__name__)


def follow_relations(context: Context, index: str, done: Updated) -> str | None:
    """Carry on what `lookalike graph` made of the version before.

    Args:
        context: where.
        index: its name.
        done: the change.

    Returns:
        In a sentence's part what was done; None if there was nothing to carry on.
    """
    if done.action == "reused":
        return None
    folder = context.workspace.folder("indexes", index)
    if not other_graphs(folder, done.version):
        return None
    again = f"not carried on; make them: lookalike graph --index {index}"
    if done.door["config"].get("memory"):
        return f"{again} (memory is limited)"
    try:
        collection = Collection.open(context.workspace, index)
        with hold(collection.searcher):
            return _followed(context, collection, again)
    except UNREADABLE as error:
        # The version is in service already: a full disk, damage, or another who is at it undoes
        # nothing.
        return f"{again} ({error})"


def _followed(context: Context, collection: Collection, again: str) -> str:
    searcher = collection.searcher
    earlier = find_earlier(searcher)
    if earlier is None:
        return f"{again} (too much changed)"
    config = GraphConfig(**earlier.graph.door["config"])
    with context.progress("neighbours carried on", len(searcher), "pictures") as line:
        carry_graph(searcher, config, earlier, line.advance)
    try:
        _follow_the_rest(collection, earlier)
    except UNREADABLE as error:
        logger.warning("near-duplicates or map were not carried on: %s", error)
        return f"neighbours from {earlier.searcher.version}, the rest {again}"
    return f"carried on from {earlier.searcher.version}, {earlier.num_searched:,} pictures searched"


def _follow_the_rest(collection: Collection, earlier: Earlier) -> None:
    """Near-duplicates and map, as far as the version before has them.

    Near-duplicates follow from the graph in one pass; so does a map by PCA from the vectors. A map
    by UMAP takes minutes to make, and keeps its places.

    Raises:
        ArtifactError: those of the version before, or the embedding set, are damaged or gone.
        OSError: there is no room.
        ValueError: another process makes them.
    """
    searcher, before = collection.searcher, earlier.searcher.folder
    graph = NeighbourGraph.open(searcher, verify="sizes")
    if before.exists(f"{DUPLICATES}/{DUPLICATES}.json"):
        config = DuplicateConfig(**open_door(before / DUPLICATES, DUPLICATES)["config"])
        build_duplicates(searcher, graph, collection.embeddings.iter_content_hashes(), config)
    if before.exists(f"{MAP}/{MAP}.json"):
        laid_out = open_door(before / MAP, MAP)
        if laid_out["method"] == "pca":
            build_map(searcher, MapConfig(**{**laid_out["config"], "method": "pca"}))
        else:
            carry_map(searcher, graph, earlier)
