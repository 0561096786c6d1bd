"""search: the pictures most like some, from the command line."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from cluster.catalog import CatalogRow
from cluster.collection import Collection, Found
from cluster.context import Context
from cluster.query import Example, SearchOptions, SearchQuery
from cluster.workspace import check_name
from encoders.picture import Box, PictureError, probe
from index.hits import Hits
from index.uri import local_path

__all__ = ["CHANGED", "SearchConfig", "flags_of", "guarantee_of", "search"]

CHANGED = "changed_since_index"
"""Flag of an answer that shows a picture whose file is not, by the last scan, the one indexed."""

WEIGHTED = re.compile(r"(?P<what>.+):(?P<weight>\d+(\.\d+)?)")


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig(SearchOptions):
    """Find the pictures most like one, or like some and unlike others."""

    query: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE")] = None
    """Picture file to search with, or the id of a picture in the index; --like and --unlike do
    without one."""
    index: str
    """Name of the index."""
    like: tuple[str, ...] = ()
    """Further examples: ids in the index or picture files; with :2 behind one, it counts twice."""
    unlike: tuple[str, ...] = ()
    """The same for what results should not be like."""
    crop: Box | None = None
    """Left, top, right and bottom in pixels: the part of the file PICTURE to search with."""

    def __post_init__(self) -> None:
        """Check the index name; `Searcher` checks k, and `SearchQuery` the rest."""
        check_name(self.index, what="index")
        if self.crop is not None and self.query is None:
            raise ValueError(
                f"crop {self.crop}: without a PICTURE there is nothing to crop. Name the file."
            )


def search(config: SearchConfig, context: Context) -> dict[str, Any]:
    """Search the index with picture files and pictures of the corpus.

    Returns:
        ``hits``: rank, id, cosine score, file and status of each, and ``copies`` where
        near-duplicates were collapsed; ``flags`` say when an answer is short, limited, or shows
        pictures that changed since the index was built; ``guarantee`` says what may be missing.

    Raises:
        FileNotFoundError: an example is not there.
        PictureError: it is no picture.
        EncoderMismatchError: the encoder changed since the index was built.
        ValueError: the query cannot be answered; see `Collection.find`.
    """
    query = _query_of(config)
    collection = Collection.open(context.workspace, config.index)
    _ = collection.encoder  # loaded before the clock starts: that is not searching
    if config.where is not None:
        _ = collection.catalog
    started_s = time.monotonic()
    try:
        found = collection.find(query)
    except KeyError as error:
        raise ValueError(
            f"{error.args[0]}. Ids are those that a search shows; use one of them."
        ) from error
    took_ms = (time.monotonic() - started_s) * 1e3
    rows = collection.catalog.rows(found.hits.ids[0])
    return {
        "index": config.index,
        "version": collection.version,
        "query": config.query,
        "took_ms": round(took_ms, 1),
        "flags": flags_of(found.hits, rows),
        "guarantee": guarantee_of(collection, found),
        "searched": found.hits.num_searched,
        "reaching": found.num_reaching,
        "hits": _results(found, rows),
    }


def _query_of(config: SearchConfig) -> SearchQuery:
    like = [_example(text, "like") for text in config.like]
    if config.query is not None:
        like.insert(0, _first(config.query, config.crop))
    return SearchQuery(
        like=tuple(like),
        unlike=tuple(_example(text, "unlike") for text in config.unlike),
        **config.options(),
    )


def _first(text: str, crop: Box | None) -> Example:
    """A file, or an id if there is no such file."""
    if local_path(text).is_file() or not _is_id(text):
        return Example(picture=_read(text), box=crop)
    if crop is not None:
        raise ValueError(
            f"crop {crop}: {text} is the id of a picture in the index, and only a file can be "
            "cropped. Name its file, or leave --crop out."
        )
    return Example(id=int(text))


def _example(text: str, option: str) -> Example:
    """An id or a file, and its weight behind a colon; a file may have a colon in its name."""
    weight = 1.0
    if not local_path(text).is_file() and (match := WEIGHTED.fullmatch(text)):
        text, weight = match["what"], float(match["weight"])
    if _is_id(text):
        return Example(id=int(text), weight=weight)
    return Example(picture=_read(text, option), weight=weight)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _read(name: str, option: str | None = None) -> bytes:
    path = local_path(name)
    where = "" if option is None else f"--{option} "
    if not path.is_file():
        raise FileNotFoundError(
            f"{where}{name}: no such file. Give an id or a picture file to search with."
        )
    data = path.read_bytes()
    try:
        probe(data)
    except PictureError as error:
        raise PictureError(error.status, f"{where}{name}: {error}") from error
    return data


def _results(found: Found, rows: Sequence[CatalogRow]) -> list[dict[str, Any]]:
    results = [
        {
            "rank": rank,
            "id": row.id,
            "score": round(float(score), 4),
            "file": row.uri,
            "status": row.status,
        }
        for rank, (row, score) in enumerate(zip(rows, found.hits.scores[0], strict=True), start=1)
    ]
    return [
        result | ({"copies": found.copies[place]} if found.copies else {})
        for place, result in enumerate(results)
    ]


def flags_of(hits: Hits, rows: Sequence[CatalogRow]) -> list[str]:
    """What to know about an answer: the search's own flags, and `CHANGED` by the catalog's rows."""
    changed = {CHANGED} if any(row.status != "ok" for row in rows) else set()
    return sorted(hits.flags | changed)


def guarantee_of(collection: Collection, found: Found) -> str:
    """In a sentence, whether a picture may be missing from an answer."""
    plan = found.hits.plan
    if plan.is_exact:
        return f"exact: all {plan.num_selected:,} pictures that may be results were compared"
    if plan.way == "tuned":
        return str(collection.searcher.door["recall"]["text"])
    return (
        f"of {plan.num_selected:,} pictures that may be results, {plan.num_compared:,.0f} were "
        "compared, until more brought nothing new; --exact compares all"
    )
