"""What the web application can do with pictures: list, browse, search, describe. No HTTP here."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.catalog import CatalogRow
from cluster.collection import Collection, Found
from cluster.follower import Follower
from cluster.query import Example, SearchQuery
from cluster.search_job import flags_of, guarantee_of
from cluster.workspace import Workspace
from index.artifact import ArtifactError, MissingArtifactError
from index.versions import CURRENT
from ui.config import UiConfig

__all__ = ["Hit", "SearchAnswer", "Session", "UnknownPictureError", "check_page", "shown_name"]

logger = logging.getLogger(__name__)

MAX_PAGE = 200
HIDDEN_COLUMNS = frozenset({"uri", "error"})
"""Columns that filters may not use: they would tell, letter by letter, the server's folders."""


class UnknownPictureError(LookupError):
    """The id asked for is not in the index: the API answers 404."""

    def __init__(self, picture_id: int, name: str) -> None:
        super().__init__(
            f"picture {picture_id}: not in index {name!r}. Ids come from a search or from "
            "GET /v1/pictures; use one of those."
        )


@dataclass(frozen=True, slots=True)
class Hit:
    """One result: cosine ``score`` in [-1, 1], ``rank`` from 1.

    ``copies`` counts the near-duplicates that it stands for, itself included, where they were
    collapsed.
    """

    rank: int
    id: int
    score: float
    name: str
    copies: int = 1


@dataclass(frozen=True, slots=True)
class SearchAnswer:
    """Results, nearest first, and what to know about them.

    Args:
        index: name of the index.
        version: its version that answered.
        asked: results asked for.
        returned: results found; fewer when the corpus holds fewer.
        took_ms: time from picture to results.
        flags: ``short``; ``limited`` when too many reach the lowest score to be ranked;
            ``changed_since_index`` when a file is not the one that was indexed.
        exact: whether every picture that may be a result was compared.
        guarantee: the same in a sentence, or what is known of what may be missing.
        searched: pictures that could have been results.
        reaching: pictures that reach the lowest score, if one was asked for.
        hits: the results.
    """

    index: str
    version: str
    asked: int
    returned: int
    took_ms: float
    flags: list[str]
    exact: bool
    guarantee: str
    searched: int
    reaching: int | None
    hits: list[Hit]


class Session:
    """One workspace as the web application sees it. Thread-safe; it outlives every browser tab."""

    def __init__(self, workspace: Workspace, config: UiConfig) -> None:
        self.workspace = workspace
        self.config = config
        self._followers: dict[str, Follower] = {}

    def collection(self, name: str) -> Collection:
        """The index of that name, in the version in service; keep it for the whole of an answer.

        Another version that is put in service takes over once it can answer; see `Follower`.

        Raises:
            MissingArtifactError: there is no such index.
            CorruptArtifactError: a file of it is damaged, and no other version is open.
        """
        return self._follower(name).collection()

    def _follower(self, name: str) -> Follower:
        follower = self._followers.get(name)
        if follower is None:
            if not self.workspace.folder("indexes", name).exists(CURRENT):
                known = ", ".join(self._published()) or "none"
                raise MissingArtifactError(
                    f"index {name!r}: not in this workspace. Existing: {known}. Choose one of "
                    "them, or make it: lookalike index --corpus CORPUS --encoder ENCODER"
                )
            follower = self._followers.setdefault(name, Follower(self.workspace, name))
        return follower

    def _published(self) -> list[str]:
        """Names of the indexes that can be opened, the newest first."""
        dated = []
        for name in self.workspace.names("indexes"):
            folder = self.workspace.folder("indexes", name)
            info = folder.fs.get_file_info(f"{folder.path}/{CURRENT}")
            if info.is_file:
                dated.append((-(info.mtime_ns or 0), name))
        return [name for _, name in sorted(dated)]

    def indexes(self) -> list[dict[str, Any]]:
        """What is known about each index; one that cannot be opened is left out with a warning.

        ``problem`` says why a version that was put in service, or the newest scan, is not what
        answers; None while it is.
        """
        found = []
        for name in self._published():
            try:
                collection = self.collection(name)
            except ArtifactError as error:
                logger.warning("index %s is not offered: %s", name, error)
                continue
            found.append(
                {
                    "name": name,
                    "version": collection.version,
                    "pictures": collection.num_pictures,
                    "corpus": collection.corpus_name,
                    "encoder_id": collection.encoder_id,
                    "layer": collection.layer,
                    "thumbs_version": collection.corpus_uid,
                    "problem": self._problem(name),
                }
            )
        return found

    def _problem(self, name: str) -> str | None:
        problem = self._follower(name).problem
        return problem and problem.replace(str(self.workspace.root), "workspace")

    def default_index(self) -> str | None:
        """The index to open first: the configured one, else the newest."""
        published = self._published()
        if self.config.index in published:
            return self.config.index
        return published[0] if published else None

    def search_picture(self, name: str, data: bytes, k: int) -> SearchAnswer:
        """Search with an uploaded picture file; raises what `search` does."""
        return self.search(name, SearchQuery(like=(Example(picture=data),), k=k))

    def search_id(self, name: str, picture_id: int, k: int) -> SearchAnswer:
        """Search with a picture of the corpus, itself left out; raises what `search` does."""
        return self.search(name, SearchQuery(like=(Example(id=picture_id),), k=k))

    def search(self, name: str, query: SearchQuery) -> SearchAnswer:
        """Answer a query on an index.

        Raises:
            UnknownPictureError: an example's id is not in the index.
            PictureError: the bytes of an example are no picture that can be decoded.
            FilterError: its filter cannot be used, or tests where a file lies.
            ValueError: ``k`` is out of range, or the examples lead nowhere.
        """
        self._check_k(query.k)
        collection = self.collection(name)
        for picture_id in query.ids:
            if not collection.has(picture_id):
                raise UnknownPictureError(picture_id, name)
        started = time.perf_counter()
        found = collection.find(query, hidden=HIDDEN_COLUMNS)
        return self._answer(collection, found, query.k, started)

    def _check_k(self, k: int) -> None:
        if not 1 <= k <= self.config.max_k:
            raise ValueError(
                f"k={k}: a search returns 1 to {self.config.max_k} pictures. Ask for a number "
                "in that range."
            )

    def _answer(self, collection: Collection, found: Found, k: int, started: float) -> SearchAnswer:
        ids, scores = found.hits.ids[0], found.hits.scores[0]
        took_ms = 1000 * (time.perf_counter() - started)
        rows = collection.catalog.rows(ids)
        copies = found.copies or [1] * len(rows)
        results = [
            Hit(rank, row.id, round(float(score), 6), shown_name(row), count)
            for rank, (row, score, count) in enumerate(
                zip(rows, scores, copies, strict=True), start=1
            )
        ]
        return SearchAnswer(
            index=collection.name,
            version=collection.version,
            asked=k,
            returned=len(results),
            took_ms=round(took_ms, 3),
            flags=flags_of(found.hits, rows),
            exact=found.hits.plan.is_exact,
            guarantee=guarantee_of(collection, found),
            searched=found.hits.num_searched,
            reaching=found.num_reaching,
            hits=results,
        )

    def browse(self, name: str, count: int, seed: int) -> list[dict[str, Any]]:
        """A random handful of pictures to start from; the same for the same seed."""
        collection = self.collection(name)
        ids = collection.ids()
        size = min(check_page(count), len(ids))
        chosen = np.random.default_rng(seed).choice(ids, size=size, replace=False)
        return [{"id": row.id, "name": shown_name(row)} for row in collection.catalog.rows(chosen)]

    def thumbnail(self, name: str, picture_id: int) -> tuple[bytes, str]:
        """The encoded thumbnail of a picture, and what its address has to carry to be kept.

        The latter names the corpus, within which an id never changes its picture.

        Raises:
            UnknownPictureError: there is none.
        """
        collection = self.collection(name)
        try:
            data = collection.thumbnail(picture_id)
        except KeyError as error:
            raise UnknownPictureError(picture_id, name) from error
        if data is None:
            raise UnknownPictureError(picture_id, name)
        return data, collection.corpus_uid

    def describe(self, name: str, picture_id: int) -> dict[str, Any]:
        """What is known of one picture, its folder left out; `UnknownPictureError` without one."""
        try:
            row = self.collection(name).picture(picture_id)
        except KeyError as error:
            raise UnknownPictureError(picture_id, name) from error
        return {
            "id": row.id,
            "name": shown_name(row),
            "status": row.status,
            "label": row.label,
            "width": row.width,
            "height": row.height,
            "bytes": row.bytes,
        }


def shown_name(row: CatalogRow) -> str:
    """The file's name without its folder; what of it is no text becomes a replacement sign."""
    return row.name.encode("utf-8", "replace").decode("utf-8")


def check_page(count: int) -> int:
    """Return ``count`` if a page may be that long; ``ValueError`` otherwise."""
    if not 1 <= count <= MAX_PAGE:
        raise ValueError(f"n={count}: a page holds 1 to {MAX_PAGE} pictures. Ask for fewer.")
    return count
