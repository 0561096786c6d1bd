"""An index together with all that a person needs to use it: encoder, thumbnails, catalog.

The one way from a picture to its neighbours, for the command line and the web application alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import pyarrow as pa

from cluster.catalog import Catalog, CatalogRow, open_corpus
from cluster.kept_selections import KeptSelections
from cluster.query import Example, SearchQuery
from cluster.workspace import Workspace
from encoders.encoder import Encoder, Layer, embed_picture
from index.artifact import ArtifactError, CorruptArtifactError, MissingArtifactError, read_door
from index.duplicates import DUPLICATES, DuplicateGroups
from index.embeddings import EmbeddingStore
from index.examples import example_queries
from index.filters import matching
from index.graph import search_others
from index.hits import Hits
from index.planner import Plan
from index.ranking import Ranking
from index.search import Searcher
from index.selection import Selection
from index.vectors import Floats, Ids

__all__ = ["Collection", "Found"]

MAX_REACHING = 100_000
"""Pictures above a lowest score that are ranked; beyond it, the answer is flagged ``limited``."""


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to a `SearchQuery`.

    Args:
        hits: one row of results.
        num_reaching: pictures that reach the lowest score, if one was given.
        copies: of each result, how many near-duplicates it stands for; empty unless collapsed.
    """

    hits: Hits
    num_reaching: int | None
    copies: list[int]


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
        self._selections = KeptSelections()

    @classmethod
    def open(cls, workspace: Workspace, name: str, *, like: Collection | None = None) -> Collection:
        """Open the current version of an index.

        Args:
            workspace: where it lies.
            name: of the index.
            like: an open version; files and encoder that are the same are not read again.

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
        if like is None:
            return cls(workspace, name, Searcher.open(folder))
        collection = cls(workspace, name, Searcher.open(folder, like=like.searcher))
        if collection.encoder_id == like.encoder_id and "encoder" in vars(like):
            # Also where another encoder has its name by now: these vectors still are of this one.
            collection.encoder = like.encoder
        return collection

    def newer_scan(self) -> str | None:
        """Identity of a scan that came since the catalog was read; None if none did.

        A catalog that was not read yet will be that of the newest scan.

        Raises:
            ArtifactError: the corpus is damaged, or not there any more.
            OSError: it cannot be read.
        """
        if "catalog" not in vars(self):
            return None
        door = read_door(self._workspace.folder("corpora", self.corpus_name), "corpus")
        return None if door["id"] == self.catalog.corpus_id else str(door["id"])

    def after_scan(self) -> Collection:
        """The same version with the newest scan's catalog; all else is open, and stays so."""
        return self._with("encoder", "embeddings", "duplicates")

    def newer_duplicates(self) -> str | None:
        """Identity of near-duplicates of this version that are not those open; None if none are.

        Raises:
            ArtifactError: they are damaged.
            OSError: they cannot be read.
        """
        try:
            door = read_door(self.searcher.folder / DUPLICATES, DUPLICATES)
        except MissingArtifactError:
            return None
        known = self.duplicates.id if "duplicates" in vars(self) else None
        return None if door["door_sha256"] == known else str(door["door_sha256"])

    def with_newer_duplicates(self) -> Collection:
        """The same version and scan with the near-duplicates found last."""
        collection = self._with("encoder", "embeddings", "catalog")
        collection._selections = self._selections
        _ = collection.duplicates
        return collection

    def _with(self, *names: str) -> Collection:
        """The same version, and of what is open of it only this."""
        collection = Collection(self._workspace, self.name, self.searcher)
        for name in names:
            if name in vars(self):
                setattr(collection, name, getattr(self, name))
        return collection

    def keep_duplicates(self) -> None:
        """Open the near-duplicates, if they were ever looked for, before the version is deleted."""
        with contextlib.suppress(ArtifactError, OSError):  # said to whoever wants them
            _ = self.duplicates

    def prepare(self) -> None:
        """Open now what is opened at its first use: catalog, encoder, thumbnails, near-duplicates.

        What a search that goes on until nothing new comes has to know of the index is found too.

        Raises:
            ArtifactError: one of them is missing, damaged, or of another corpus.
            EncoderMismatchError: the encoder was replaced.
        """
        _ = self.catalog, self.encoder, self.embeddings
        self.keep_duplicates()
        self.searcher.search(self.searcher.vectors_of(self.searcher.ids[:1]), 1, thorough=True)

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
        """The encoder that the index was made with, also if another has its name since.

        Raises:
            EncoderMismatchError: it was replaced twice, or deleted.
        """
        encoder = self._workspace.open_encoder(self.encoder_name, encoder_id=self.encoder_id)
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

    def has(self, picture_id: int) -> bool:
        """Whether the picture is in the index."""
        return len(self.searcher.select([picture_id])) == 1

    def vectors(self, ids: np.ndarray) -> np.ndarray:
        """Stored vectors of the given ids: float32 ``[N, D]``."""
        return self.searcher.vectors_of(ids)

    def search_picture(self, data: bytes, k: int) -> Hits:
        """The k pictures most like a picture file's bytes; ``PictureError`` if there is none."""
        return self.find(SearchQuery(like=(Example(picture=data),), k=k)).hits

    def search_ids(self, ids: np.ndarray | list[int], k: int) -> Hits:
        """The k others most like each indexed picture; ``KeyError`` for an id not indexed."""
        return search_others(self.searcher, np.asarray(ids, dtype=np.int64), k)

    def find(self, query: SearchQuery, *, hidden: frozenset[str] = frozenset()) -> Found:
        """Answer a query; examples that are in the index are left out of the results.

        Args:
            query: what is asked.
            hidden: columns that its filter may not use.

        Raises:
            KeyError: an example's id is not in the index.
            PictureError: an example is no picture.
            FilterError: the filter cannot be used.
            ValueError: no example, or examples that cancel each other out; k below 1.
            ArtifactError: near-duplicates are to be collapsed, and were never looked for.
        """
        queries = self._queries(query)
        within = None if query.where is None else self.select(query.where, hidden=hidden)
        groups = self.duplicates if query.collapse_duplicates else None
        any_of = len(queries) > 1
        ranking = Ranking(diversity=query.diversity, groups=groups, any_of=any_of)
        if query.min_score is None:
            hits = self.searcher.search(
                queries,
                query.k,
                exclude_ids=query.ids,
                exact=query.exact,
                within=within,
                ranking=ranking if groups or query.diversity or any_of else None,
                # The card speaks of pictures, and this is a direction between or away from some.
                thorough=True if query.unlike or len(query.like) > len(queries) else None,
            )
            num_reaching = None
        else:
            hits, num_reaching = self._reaching(queries, query, within, ranking)
        copies = [] if groups is None else groups.sizes_of(hits.ids[0]).tolist()
        return Found(hits, num_reaching, copies)

    def _queries(self, query: SearchQuery) -> Floats:
        """What is asked for as unit vectors, of which a result is like any, [Q, D]."""
        dim = self.searcher.dim
        sides = [
            np.array([self._vector(example) for example in side]).reshape(-1, dim)
            for side in (query.like, query.unlike)
        ]
        return example_queries(
            *sides,
            weights_P=[example.weight for example in query.like],
            weights_M=[example.weight for example in query.unlike],
            combine=query.combine,
        )

    def _vector(self, example: Example) -> Floats:
        if example.picture is not None:
            return embed_picture(self.encoder, example.picture, layer=self.layer, box=example.box)
        vector_D: Floats = self.searcher.vectors_of([cast("int", example.id)])[0]
        return vector_D

    def _reaching(
        self, queries: Floats, query: SearchQuery, within: Selection | None, ranking: Ranking
    ) -> tuple[Hits, int]:
        """The nearest of all that reach the lowest score, and how many do."""
        assert query.min_score is not None, "asked for only with a lowest score"
        if query.k < 1:
            raise ValueError(f"k is {query.k}; ask for at least 1 result")
        matches = self.searcher.range_search(
            queries,
            query.min_score,
            exclude_ids=query.ids,
            within=within,
            limit=MAX_REACHING,
            any_of=True,
        )
        plan = Plan("exact", True, matches.num_searched, float(matches.num_searched))

        def nearest(count: int, copies: Ids, _: int | None) -> tuple[Ids, Floats, Plan]:
            kept = np.flatnonzero(~np.isin(matches.ids, copies))[:count]
            return matches.ids[None, kept], matches.scores[None, kept], plan

        ids, scores, _ = ranking.answer(query.k, nearest, self.vectors)
        hits = Hits(ids, scores, matches.flags, matches.num_searched, plan)
        return hits, int(matches.num_matching[0])

    def select(self, where: str, *, hidden: frozenset[str] = frozenset()) -> Selection:
        """The pictures of the index for which a filter on the catalog is true.

        Columns are the catalog's, as last scanned, and ``name``, the file's name without its
        folder. A picture that was added after the index was built is not in it.

        Args:
            where: the filter; see ``index.filter_syntax``.
            hidden: columns that it may not use.

        Raises:
            FilterError: no filter, an unknown column, a value of another type.
        """
        known = self._selections.get((where, hidden))
        if known is None:
            shown = [name for name in self.catalog.named.column_names if name not in hidden]
            ids = matching(self.catalog.named.select(shown), where, ["id"])["id"].to_numpy()
            known = self.searcher.select(ids)
            self._selections.keep((where, hidden), known)
        return known

    @cached_property
    def duplicates(self) -> DuplicateGroups:
        """Near-duplicates of this version; ``MissingArtifactError`` if never looked for."""
        return DuplicateGroups.open(self.searcher)

    def to_arrow(self, hits: Hits, columns: Sequence[str] = ()) -> pa.Table:
        """Results as a table: query, rank, id, score, and columns of the catalog.

        Raises:
            KeyError: the catalog has no such column.
        """
        table = hits.to_arrow()
        rows = self.catalog.named.take(self.catalog.positions(table["id"].to_numpy()))
        for name in columns:
            table = table.append_column(name, rows[name])
        return table

    def thumbnail(self, picture_id: int) -> bytes | None:
        """Encoded thumbnail of a picture, or None if it has none."""
        try:
            return self.embeddings.thumbnail(picture_id)
        except CorruptArtifactError:
            # Embedded twice since, it lost files; in the newest set an id is the same picture.
            vars(self).pop("embeddings", None)
            return self.embeddings.thumbnail(picture_id)

    def picture(self, picture_id: int) -> CatalogRow:
        """The catalog's row of a picture; ``KeyError`` for an id that the corpus never had."""
        return self.catalog.rows([picture_id])[0]
