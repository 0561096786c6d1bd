"""search: the pictures most like one picture, from the command line."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from cluster.catalog import CatalogRow
from cluster.collection import Collection
from cluster.context import Context
from cluster.workspace import check_name
from index.search import Hits

__all__ = ["CHANGED", "SearchConfig", "flags_of", "search"]

CHANGED = "changed_since_index"
"""Flag of an answer that shows a picture whose file is not, by the last scan, the one indexed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """Find the pictures most like one picture."""

    query: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE")]
    """Picture file to search with."""
    index: str
    """Name of the index."""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    """How many pictures to return."""

    def __post_init__(self) -> None:
        """Check the index name; `Searcher` checks k."""
        check_name(self.index, what="index")


def search(config: SearchConfig, context: Context) -> dict[str, Any]:
    """Search the index with a picture file.

    Returns:
        ``hits``: rank, id, cosine score, file and status of each; ``flags`` say when an answer is
        short, or shows pictures that changed since the index was built.

    Raises:
        FileNotFoundError: the query is not there.
        PictureError: it is no picture.
        EncoderMismatchError: the encoder changed since the index was built.
    """
    path = Path(config.query).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"{config.query}: no such file. Give a picture file to search with."
        )
    collection = Collection.open(context.workspace, config.index)
    data = path.read_bytes()
    _ = collection.encoder  # loaded before the clock starts: that is not searching
    started_s = time.monotonic()
    hits = collection.search_picture(data, config.k)
    took_ms = (time.monotonic() - started_s) * 1e3
    rows = collection.catalog.rows(hits.ids[0])
    return {
        "index": config.index,
        "version": collection.version,
        "query": str(path),
        "took_ms": round(took_ms, 1),
        "flags": flags_of(hits, rows),
        "hits": [
            {
                "rank": rank,
                "id": row.id,
                "score": round(float(score), 4),
                "file": row.uri,
                "status": row.status,
            }
            for rank, (row, score) in enumerate(zip(rows, hits.scores[0], strict=True), start=1)
        ],
    }


def flags_of(hits: Hits, rows: Sequence[CatalogRow]) -> list[str]:
    """What to know about an answer: the search's own flags, and `CHANGED` by the catalog's rows."""
    changed = {CHANGED} if any(row.status != "ok" for row in rows) else set()
    return sorted(hits.flags | changed)
