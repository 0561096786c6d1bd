"""An index together with all that a person needs to use it: encoder, thumbnails, catalog.

The one way from a picture to its neighbours, for the command line and the web application alike.
"""

from __future__ import annotations

from functools import cached_property
from typing import cast

import numpy as np

from cluster.catalog import Catalog, CatalogRow, open_corpus
from cluster.workspace import Workspace
from encoders.encoder import Encoder, Layer, embed_picture
from index.artifact import ArtifactError
from index.embeddings import EmbeddingStore
from index.search import Hits, Searcher

__all__ = ["Collection"]


class Collection:
    """Everything behind one index, its identities checked against each other.

    Thread-safe: nothing in here changes after `open` but caches.
    """

    def __init__(self, workspace: Workspace, name: str, searcher: Searcher) -> None:
        self.name = name
        self.searcher = searcher
        self._workspace = workspace
        self.corpus_name = searcher.parents["corpus"]
        self.encoder_name = searcher.parents["encoder"]
        self.embeddings_name = searcher.parents["embeddings"]
        self.corpus_uid = searcher.parents["corpus_uid"]

    @classmethod
    def open(cls, workspace: Workspace, name: str) -> Collection:
        """Open the current version of an index.

        Raises:
            MissingArtifactError: there is no such index.
            CorruptArtifactError: a file is damaged.
        """
        folder = workspace.require(
            "indexes",
            name,
            door="CURRENT",
            make="lookalike index --corpus CORPUS --encoder ENCODER",
        )
        return cls(workspace, name, Searcher.open(folder))

    @cached_property
    def catalog(self) -> Catalog:
        """The corpus as it was last scanned; ``ArtifactError`` if it is another one by now."""
        catalog = open_corpus(self._workspace, self.corpus_name)
        self._require_same_corpus(catalog.uid, f"corpus {self.corpus_name!r}")
        return catalog

    def _require_same_corpus(self, uid: str, what: str) -> None:
        """Ids of another corpus would name other pictures."""
        if uid != self.corpus_uid:
            raise ArtifactError(
                f"{what} was made anew since index {self.name!r} was built, and its picture ids "
                "mean other pictures now. Embed and index it again under new names: lookalike "
                f"embed --corpus {self.corpus_name} --encoder {self.encoder_name} --name NAME, "
                f"then lookalike index --corpus {self.corpus_name} --encoder {self.encoder_name} "
                "--embeddings NAME --name NAME"
            )

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder that the index was made with; ``EncoderMismatchError`` if it was replaced."""
        encoder = self._workspace.open_encoder(self.encoder_name)
        self.searcher.require_encoder(encoder.encoder_id, self.searcher.layer)
        return encoder

    @cached_property
    def embeddings(self) -> EmbeddingStore:
        """The embedding set below the index, for its thumbnails."""
        make = f"lookalike embed --corpus {self.corpus_name} --encoder {self.encoder_name}"
        folder = self._workspace.require(
            "embeddings", self.embeddings_name, door="embeddings.json", make=make
        )
        store = EmbeddingStore.open(folder, verify="sizes")
        self._require_same_corpus(store.parents["corpus_uid"], f"the corpus of {folder}")
        return store

    @property
    def version(self) -> str:
        """The index version that this collection is pinned to."""
        return self.searcher.version

    @property
    def encoder_id(self) -> str:
        """Identity of the encoder that the vectors come from."""
        return self.searcher.encoder_id

    @property
    def layer(self) -> Layer:
        """Which of the encoder's outputs the vectors are."""
        return cast("Layer", self.searcher.layer)

    @property
    def num_pictures(self) -> int:
        """Pictures in the index."""
        return len(self.searcher)

    def ids(self) -> np.ndarray:
        """int64 ids of all indexed pictures, ascending."""
        return self.searcher.ids

    def vectors(self, ids: np.ndarray) -> np.ndarray:
        """Stored vectors of the given ids: float32 ``[N, D]``."""
        return self.searcher.vectors_of(ids)

    def search_picture(self, data: bytes, k: int) -> Hits:
        """The k pictures most like a picture file's bytes; ``PictureError`` if there is none."""
        query_D = embed_picture(self.encoder, data, layer=self.layer)
        return self.searcher.search(query_D[np.newaxis], k)

    def search_ids(self, ids: np.ndarray | list[int], k: int) -> Hits:
        """The k others most like each indexed picture; ``KeyError`` for an id not indexed."""
        wanted = np.asarray(ids, dtype=np.int64)
        return self.searcher.search(self.vectors(wanted), k, exclude_ids=wanted)

    def thumbnail(self, picture_id: int) -> bytes | None:
        """Encoded thumbnail of a picture, or None if it has none."""
        return self.embeddings.thumbnail(picture_id)

    def picture(self, picture_id: int) -> CatalogRow:
        """The catalog's row of a picture; ``KeyError`` for an id that the corpus never had."""
        return self.catalog.rows([picture_id])[0]
