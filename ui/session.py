"""What the web application can do with pictures: list, browse, search, describe. No HTTP here."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.catalog import CatalogRow
from cluster.collection import Collection
from cluster.search_job import flags_of
from cluster.workspace import Workspace
from index.artifact import ArtifactError, MissingArtifactError
from index.search import Hits
from ui.config import UiConfig

__all__ = ["Hit", "SearchAnswer", "Session", "UnknownPictureError", "check_page", "shown_name"]

logger = logging.getLogger(__name__)

MAX_PAGE = 200


class UnknownPictureError(LookupError):
    """The id asked for is not in the index: the API answers 404."""

    def __init__(self, picture_id: int, name: str) -> None:
        super().__init__(
            f"picture {picture_id}: not in index {name!r}. Ids come from a search or from "
            "GET /v1/pictures; use one of those."
        )


@dataclass(frozen=True, slots=True)
class Hit:
    """One result: cosine ``score`` in [-1, 1], ``rank`` from 1."""

    rank: int
    id: int
    score: float
    name: str


@dataclass(frozen=True, slots=True)
class SearchAnswer:
    """Results, nearest first, and what to know about them.

    Args:
        index: name of the index.
        version: its version that answered.
        asked: results asked for.
        returned: results found; fewer when the corpus holds fewer.
        took_ms: time from picture to results.
        flags: ``short``, or ``changed_since_index`` when a file is not the one that was indexed.
        hits: the results.
    """

    index: str
    version: str
    asked: int
    returned: int
    took_ms: float
    flags: list[str]
    hits: list[Hit]


class Session:
    """One workspace as the web application sees it. Thread-safe; it outlives every browser tab."""

    def __init__(self, workspace: Workspace, config: UiConfig) -> None:
        self.workspace = workspace
        self.config = config
        self._open: dict[str, tuple[bytes, Collection]] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def collection(self, name: str) -> Collection:
        """The index of that name, opened once and again when a newer version is published.

        Raises:
            MissingArtifactError: there is no such index.
            CorruptArtifactError: a file of it is damaged.
        """
        folder = self.workspace.folder("indexes", name)
        if not folder.exists("CURRENT"):
            known = ", ".join(self._published()) or "none"
            raise MissingArtifactError(
                f"index {name!r}: not in this workspace. Existing: {known}. Choose one of them, or "
                "make it: lookalike index --corpus CORPUS --encoder ENCODER"
            )
        current = folder.read_bytes("CURRENT")
        with self._lock:
            opening = self._locks.setdefault(name, threading.Lock())
        # Opening reads all of an index to verify it, so one lock a name: the others answer on.
        with opening:
            known_version, collection = self._open.get(name, (None, None))
            if collection is None or known_version != current:
                collection = Collection.open(self.workspace, name)
                self._open[name] = (current, collection)
            return collection

    def _published(self) -> list[str]:
        """Names of the indexes that can be opened, the newest first."""
        dated = []
        for name in self.workspace.names("indexes"):
            folder = self.workspace.folder("indexes", name)
            info = folder.fs.get_file_info(f"{folder.path}/CURRENT")
            if info.is_file:
                dated.append((-(info.mtime_ns or 0), name))
        return [name for _, name in sorted(dated)]

    def indexes(self) -> list[dict[str, Any]]:
        """What is known about each index; one that cannot be opened is left out with a warning."""
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
                }
            )
        return found

    def default_index(self) -> str | None:
        """The index to open first: the configured one, else the newest."""
        published = self._published()
        if self.config.index in published:
            return self.config.index
        return published[0] if published else None

    def search_picture(self, name: str, data: bytes, k: int) -> SearchAnswer:
        """Search with an uploaded picture file.

        Raises:
            PictureError: the bytes are no picture that can be decoded.
            ValueError: ``k`` is out of range.
        """
        self._check_k(k)
        collection = self.collection(name)
        started = time.perf_counter()
        return self._answer(collection, collection.search_picture(data, k), k, started)

    def search_id(self, name: str, picture_id: int, k: int) -> SearchAnswer:
        """Search with a picture of the corpus; itself is left out.

        Raises:
            UnknownPictureError: the picture is not in the index.
            ValueError: ``k`` is out of range.
        """
        self._check_k(k)
        collection = self.collection(name)
        started = time.perf_counter()
        try:
            hits = collection.search_ids([picture_id], k)
        except KeyError as error:
            raise UnknownPictureError(picture_id, name) from error
        return self._answer(collection, hits, k, started)

    def _check_k(self, k: int) -> None:
        if not 1 <= k <= self.config.max_k:
            raise ValueError(
                f"k={k}: a search returns 1 to {self.config.max_k} pictures. Ask for a number "
                "in that range."
            )

    def _answer(self, collection: Collection, hits: Hits, k: int, started: float) -> SearchAnswer:
        ids, scores = hits.ids[0], hits.scores[0]
        found = ids >= 0
        took_ms = 1000 * (time.perf_counter() - started)
        rows = collection.catalog.rows(ids[found])
        results = [
            Hit(rank, row.id, round(float(score), 6), shown_name(row))
            for rank, (row, score) in enumerate(zip(rows, scores[found], strict=True), start=1)
        ]
        return SearchAnswer(
            index=collection.name,
            version=collection.version,
            asked=k,
            returned=len(results),
            took_ms=round(took_ms, 3),
            flags=flags_of(hits, rows),
            hits=results,
        )

    def browse(self, name: str, count: int, seed: int) -> list[dict[str, Any]]:
        """A random handful of pictures to start from; the same for the same seed."""
        collection = self.collection(name)
        ids = collection.ids()
        size = min(check_page(count), len(ids))
        chosen = np.random.default_rng(seed).choice(ids, size=size, replace=False)
        return [{"id": row.id, "name": shown_name(row)} for row in collection.catalog.rows(chosen)]

    def thumbnail(self, name: str, picture_id: int) -> bytes:
        """The encoded thumbnail of a picture; `UnknownPictureError` when there is none."""
        try:
            data = self.collection(name).thumbnail(picture_id)
        except KeyError as error:
            raise UnknownPictureError(picture_id, name) from error
        if data is None:
            raise UnknownPictureError(picture_id, name)
        return data

    def thumbs_version(self, name: str) -> str:
        """What thumbnail addresses carry, so that they may be cached for ever."""
        return self.collection(name).corpus_uid

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
