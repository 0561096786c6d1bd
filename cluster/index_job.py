"""index: make an embedding set searchable, at a recall that is measured.

1. Open the embedding set of corpus and encoder. 2. Let `index.build` train, fill and measure those
indexes that suit its size, and keep the best; parts may be filled by Ray's tasks. 3. It publishes
a new version beside the old and moves ``CURRENT``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from cluster.context import Context
from cluster.part_tasks import part_filler
from cluster.workspace import check_name
from index.artifact import CorruptArtifactError, Folder, MissingArtifactError
from index.build import PAGE, build_index
from index.choose import IndexConfig
from index.embeddings import EmbeddingStore
from index.search import require_same_encoder
from index.versions import open_current

__all__ = ["IndexJobConfig", "index_embeddings"]

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
    """Build a version of the index, or find the one that these embeddings have already.

    Raises:
        MissingArtifactError: there is no such embedding set.
        CorruptArtifactError: one of its files is damaged.
        ValueError: the set is of another corpus or encoder; the index's name is in use for another.
        EncoderMismatchError: the queries are of another encoder or layer.
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
    door = build_index(store, folder, config.build, queries=queries, fill=part_filler(context))
    return {
        "index": config.index_name,
        "version": door["version"],
        "reused": door["reused"],
        "rows": door["rows"],
        "dim": door["dim"],
        "recipe": door["recipe"],
        "parameters": door["parameters"],
        "recall": door["recall"],
        "latency_ms": door["latency_ms"],
        "bytes_per_vector": door["bytes_per_vector"],
        "service_bytes_per_vector": door["service_bytes_per_vector"],
        "candidates": door["candidates"],
        "left_out": door["left_out"],
        "card": f"{folder}/{door['version']}/{PAGE}",
        "path": str(folder),
    }


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
    try:
        _, door = open_current(folder, verify="sizes")
    except (MissingArtifactError, CorruptArtifactError) as error:
        logger.info("no index in service yet: %s", error)
        return
    was = door["parents"]
    other = [what for part, what in LINEAGE.items() if was[part] != parents[part]]
    if other:
        raise ValueError(
            f"index {config.index_name!r}: is that of embedding set {was['embeddings']!r}, corpus "
            f"{was['corpus']!r} and encoder {was['encoder']!r}. Embedding set "
            f"{parents['embeddings']!r} is of another {' and '.join(other)}, and would change what "
            f"the name means to those who use it. Choose another --name, or delete {folder}."
        )
