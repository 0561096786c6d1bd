"""remove: have pictures be no results of an index, or take that back.

1. Find them: by id, by file, by a filter on the catalog. 2. Publish a version in which they are
dead; it is in service at once, and servers follow. They stay out of later versions. 3. With
``--restore``, the index is brought up to date with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.changes import report_of
from cluster.chosen_pictures import ChosenPictures
from cluster.context import Context
from cluster.index_job import gone_pictures
from cluster.part_tasks import part_filler
from cluster.query import check_id
from cluster.relations import follow_relations
from cluster.workspace import check_name
from index.choose import IndexConfig
from index.embeddings import EmbeddingStore
from index.removal import remove_pictures
from index.removed import removed_ids
from index.update import Instructions, Updated, update_index
from index.vectors import Ids, rising, without
from index.versions import Standing

__all__ = ["RemoveConfig", "remove"]

SHOWN = 5
"""Ids that were named in vain and that a report names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoveConfig:
    """Have pictures be no results of an index from now on; files and embeddings stay."""

    index: str
    """Name of the index."""
    ids: tuple[int, ...] = ()
    """Ids of pictures, as a search shows them."""
    files: tuple[str, ...] = ()
    """Files of pictures, as a search shows them, or their ends from a / on."""
    where: str | None = None
    """Pictures of which this holds, such as "label = 'cat'"."""
    restore: bool = False
    """Take these back into the index; alone, all that were ever removed."""

    def __post_init__(self) -> None:
        """Check the name, and that something is asked for."""
        check_name(self.index, what="index")
        if not (self.ids or self.files or self.where or self.restore):
            raise ValueError(
                "nothing to remove. Name pictures with --ids, --files or --where, or take removed "
                "ones back with --restore."
            )

        for each in self.ids:
            check_id(each)

    @property
    def names_some(self) -> bool:
        """Whether pictures are named."""
        return bool(self.ids or self.files or self.where)


def remove(config: RemoveConfig, context: Context) -> dict[str, Any]:
    """Remove pictures from an index, or restore them.

    Returns:
        What was done, how many pictures were asked for, of how many of them nothing could be done
        (``unknown``: not in the index, or not removed from it) and the first of these, and what the
        new version's card says.

    Raises:
        MissingArtifactError: there is no such index, corpus or embedding set.
        ValueError: a file is not in the catalog; no picture would be left; another process is
            building or changing the index.
        FilterError: the filter cannot be used.
    """
    folder = context.workspace.require(
        "indexes",
        config.index,
        door="CURRENT",
        make="lookalike index --corpus CORPUS --encoder ENCODER",
    )
    standing = Standing.in_service(folder)
    ids = _chosen(config, context, standing)
    if config.restore:
        # Before: where a build follows a compaction, the version of now is deleted.
        unknown = without(ids, removed_ids(standing))
        done = _restore(config, context, standing, ids)
    else:
        done = remove_pictures(folder, ids, fill=part_filler(context), say=context.say)
        unknown = done.unknown
    return {
        "asked_for": len(ids),
        "restored": config.restore,
        "unknown": len(unknown),
        "unknown_ids": unknown[:SHOWN].tolist(),
        **report_of(done, config.index, folder, follow_relations(context, config.index, done)),
    }


def _restore(config: RemoveConfig, context: Context, standing: Standing, ids: Ids) -> Updated:
    """Bring the index up to date with its embedding set, pictures that come back included."""
    folder, door = standing.index, standing.door
    store = _embeddings(context, door["parents"]["embeddings"])
    if store.encoder_id != door["parents"]["encoder_id"]:
        raise ValueError(
            f"index {config.index!r}: its embedding set {door['parents']['embeddings']!r} is of "
            "another encoder by now. Bring the index up to date first: lookalike index --corpus "
            f"{door['parents']['corpus']} --encoder {door['parents']['encoder']}"
        )
    asked = door["queries"].get("embeddings")
    return update_index(
        store,
        folder,
        IndexConfig(**door["config"]),
        queries=_embeddings(context, asked) if asked else None,
        fill=part_filler(context),
        told=Instructions(
            gone=gone_pictures(context.workspace, store.parents), restored=ids, say=context.say
        ),
    )


def _embeddings(context: Context, name: str) -> EmbeddingStore:
    make = "lookalike embed --corpus CORPUS --encoder ENCODER"
    folder = context.workspace.require("embeddings", name, door="embeddings.json", make=make)
    return EmbeddingStore.open(folder)


def _chosen(config: RemoveConfig, context: Context, standing: Standing) -> Ids:
    """Ids of the pictures that were named, rising; all that were removed, if none was."""
    if not config.names_some:
        return removed_ids(standing)
    found: list[Ids] = [np.array(config.ids, np.int64)]
    if config.files or config.where:
        corpus = standing.door["parents"]["corpus"]
        pictures = ChosenPictures.of_corpus(context.workspace, corpus)
        if config.files:
            found.append(pictures.of_files(config.files))
        if config.where:
            found.append(pictures.where(config.where))
    return rising(*found)
