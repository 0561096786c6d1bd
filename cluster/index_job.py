"""index: make an embedding set searchable, at a recall that is measured.

1. Open the embedding set of corpus and encoder. 2. Let `index.update` see how the version in
service differs: a few pictures that came, went or changed become a version that shares its files.
Else `index.build` trains, fills and measures those indexes that suit the size, and keeps the best;
parts may be filled by Ray's tasks. 3. The new version lies beside the old; once it answers its own
queries, ``CURRENT`` moves.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from cluster.catalog import gone_ids
from cluster.changes import report_of
from cluster.context import Context
from cluster.part_tasks import part_filler
from cluster.relations import follow_relations
from cluster.workspace import Workspace, check_name
from index.artifact import MissingArtifactError, open_door
from index.choose import IndexConfig
from index.embeddings import EmbeddingStore
from index.folder import Folder
from index.id_file import NO_IDS
from index.same_encoder import require_same_encoder
from index.update import Instructions, update_index
from index.vectors import Ids
from index.versions import CURRENT, last_known

__all__ = ["IndexJobConfig", "gone_pictures", "index_embeddings"]

logger = logging.getLogger(__name__)

LINEAGE = {"corpus_uid": "corpus", "encoder": "encoder", "embeddings": "name"}
"""What all versions of an index have in common, and how it is called."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexJobConfig:
    """Make an embedding set searchable at a stated recall."""

    corpus: str
    """Name of the corpus."""
    encoder: str
    """Name of the encoder."""
    embeddings: str | None = None
    """Embedding set to index; CORPUS-ENCODER unless given."""
    name: str | None = None
    """Name of the index; that of the embedding set unless given."""
    queries: str | None = None
    """Embedding set of pictures such as will be asked, to measure recall on; held-out pictures of
    the corpus itself unless given."""
    rebuild: bool = False
    """Build anew, even where a few changes would do; the old version answers meanwhile."""
    new_encoder: bool = False
    """Let the index go over to another encoder or embedding set than it was made with."""
    build: Annotated[IndexConfig, tyro.conf.arg(name="")] = field(default_factory=IndexConfig)
    """Which index, and how it is tuned."""

    def __post_init__(self) -> None:
        """Check the names."""
        check_name(self.corpus, what="corpus")
        check_name(self.encoder, what="encoder")
        check_name(self.embeddings_name, what="embedding set")
        check_name(self.index_name, what="index")
        if self.queries is not None:
            check_name(self.queries, what="embedding set")

    @property
    def embeddings_name(self) -> str:
        """Name of the embedding set."""
        return self.embeddings or f"{self.corpus}-{self.encoder}"

    @property
    def index_name(self) -> str:
        """Name of the index."""
        return self.name or self.embeddings_name


def index_embeddings(config: IndexJobConfig, context: Context) -> dict[str, Any]:
    """Have the index hold what the embedding set does, by the least that it takes.

    Pictures that are gone by the newest scan are left out, embedded or not.

    Raises:
        MissingArtifactError: there is no such embedding set.
        CorruptArtifactError: one of its files is damaged.
        ValueError: the set is of another corpus or encoder; the index's name is in use for another.
        EncoderMismatchError: the queries are of another encoder or layer; the encoder in the
            workspace is not the one that the set was embedded with.
    """
    workspace = context.workspace
    make = f"lookalike embed --corpus {config.corpus} --encoder {config.encoder}"
    source = workspace.require(
        "embeddings", config.embeddings_name, door="embeddings.json", make=make
    )
    folder = workspace.folder("indexes", config.index_name)
    store = EmbeddingStore.open(source)
    _require_asked_for(config, store, make)
    _require_same_lineage(config, folder, store.parents)
    queries = None if config.queries is None else _queries(config, context, store)
    _require_encoder(workspace, store, make)
    done = update_index(
        store,
        folder,
        config.build,
        queries=queries,
        fill=part_filler(context),
        told=Instructions(
            gone=gone_pictures(workspace, store.parents),
            rebuild=config.rebuild,
            say=context.say,
        ),
    )
    door = done.door
    return {
        **report_of(
            done, config.index_name, folder, follow_relations(context, config.index_name, done)
        ),
        "reused": done.action == "reused",
        "dim": door["dim"],
        "recipe": door["recipe"],
        "parameters": door["parameters"],
        "latency_ms": door["latency_ms"],
        "bytes_per_vector": door["bytes_per_vector"],
        "service_bytes_per_vector": door["service_bytes_per_vector"],
        "candidates": door["candidates"],
        "left_out": door["left_out"],
    }


def gone_pictures(workspace: Workspace, parents: Mapping[str, str]) -> Ids:
    """Ids of pictures whose file is gone by the newest scan of the corpus, if it is still there.

    Args:
        workspace: where the corpus lies.
        parents: of the embedding set.
    """
    folder = workspace.folder("corpora", parents["corpus"])
    try:
        door = open_door(folder, "corpus")
    except MissingArtifactError:
        return NO_IDS
    return gone_ids(folder, door) if door["uid"] == parents["corpus_uid"] else NO_IDS


def _require_encoder(workspace: Workspace, store: EmbeddingStore, make: str) -> None:
    """An index is not put in service whose queries the workspace's encoder could not make.

    Raises:
        EncoderMismatchError: the encoder of that name is another by now.
    """
    name = store.parents["encoder"]
    try:
        encoder_id = workspace.encoder_id(name)
    except MissingArtifactError as error:
        logger.info("pictures cannot be searched with: %s", error)
        return
    require_same_encoder(
        f"embedding set {store.parents['embeddings']}",
        (store.encoder_id, store.layer),
        (encoder_id, store.layer),
        f"Encoder {name!r} was trained anew since; embed again first: {make}",
    )


def _queries(config: IndexJobConfig, context: Context, store: EmbeddingStore) -> EmbeddingStore:
    """The set to draw queries from, which has to be of the same encoder and layer."""
    name = str(config.queries)
    source = context.workspace.require(
        "embeddings", name, door="embeddings.json", make="lookalike embed --name " + name
    )
    queries = EmbeddingStore.open(source)
    require_same_encoder(
        f"embedding set {store.parents['embeddings']}",
        (store.encoder_id, store.layer),
        (queries.encoder_id, queries.layer),
        f"Embed the pictures of {name!r} with the encoder {config.encoder!r}, or leave --queries "
        "out.",
    )
    return queries


def _require_asked_for(config: IndexJobConfig, store: EmbeddingStore, make: str) -> None:
    """The embedding set has to be of the corpus and encoder that were named."""
    of = (store.parents["corpus"], store.parents["encoder"])
    if of != (config.corpus, config.encoder):
        raise ValueError(
            f"embedding set {config.embeddings_name!r}: is of corpus {of[0]!r} and encoder "
            f"{of[1]!r}, not of {config.corpus!r} and {config.encoder!r}. Name those, or make the "
            f"set of these: {make} --name OTHER"
        )


def _require_same_lineage(
    config: IndexJobConfig, folder: Folder, parents: Mapping[str, str]
) -> None:
    """An index of this name may only be a version of the same: newer pictures, newer training."""
    known = last_known(folder) if folder.exists(CURRENT) else None
    if known is None or known[1] is None:
        logger.info("%s: no index in service yet, or its door is damaged", folder)
        return
    was = known[1]["parents"]
    fixed = {"corpus_uid": "corpus"} if config.new_encoder else LINEAGE
    other = [what for part, what in fixed.items() if was[part] != parents[part]]
    if other:
        raise ValueError(
            f"index {config.index_name!r}: is that of embedding set {was['embeddings']!r}, corpus "
            f"{was['corpus']!r} and encoder {was['encoder']!r}. Embedding set "
            f"{parents['embeddings']!r} is of another {' and '.join(other)}, and would change what "
            f"the name means to those who use it. Choose another --name; or, if it is the same "
            "corpus and the index is to go over to it, give --new-encoder."
        )
