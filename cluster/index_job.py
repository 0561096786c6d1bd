"""index: make an embedding set searchable, at a recall that is measured.

1. Open the embedding set of corpus and encoder. 2. Let `index.build` choose, train, fill and tune
an index. 3. It publishes a new version beside the old and moves ``CURRENT``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from cluster.context import Context
from cluster.workspace import check_name
from index.build import build_index
from index.choose import IndexConfig
from index.embeddings import EmbeddingStore

__all__ = ["IndexJobConfig", "index_embeddings"]


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
    build: Annotated[IndexConfig, tyro.conf.arg(name="")] = field(default_factory=IndexConfig)
    """Which index, and how it is tuned."""

    def __post_init__(self) -> None:
        """Check the names."""
        check_name(self.embeddings_name, what="embedding set")
        check_name(self.index_name, what="index")

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
    """
    workspace = context.workspace
    make = f"lookalike embed --corpus {config.corpus} --encoder {config.encoder}"
    source = workspace.require(
        "embeddings", config.embeddings_name, door="embeddings.json", make=make
    )
    folder = workspace.folder("indexes", config.index_name)
    door = build_index(EmbeddingStore.open(source), folder, config.build)
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
        "path": str(folder),
    }
