"""scan: list the pictures of a source into a corpus.

1. Recognise what lies there: picture files, a list of them, Parquet files, tars, a Hugging Face
dataset. 2. List it, and compare with the corpus as it was: a sound picture that is unchanged is not
opened again. 3. Read the header of the others. 4. Publish what changed as further catalog parts.

A picture that vanished and comes back unchanged gets its id back, and so its labels.

Memory: does not hold the rows; see `cluster.known_pictures`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro
from pyarrow import fs as pafs

from cluster.catalog import CATALOG_SCHEMA, bad_pictures, column_types
from cluster.catalog_writer import CatalogWriter, open_for_scan
from cluster.columns import TYPES, parse_columns
from cluster.comparison import Comparison
from cluster.context import Context
from cluster.file_source import FolderSource, ListSource
from cluster.file_walk import PICTURE_SUFFIXES
from cluster.picture_uri import Place, place_of, require_no_keys
from cluster.sources import ALLOWED, TITLES, Listed, Request, Source, SourceKind, recognise
from cluster.table_source import HuggingFaceSource, ParquetSource
from cluster.tar_source import TarSource
from cluster.workspace import check_name
from encoders.picture import MAX_PIXELS
from index.folder import Folder
from index.lock import sole_writer
from index.uri import asking, real_path, shown_uri

__all__ = ["ScanConfig", "scan"]

logger = logging.getLogger(__name__)

BATCH_FILES = 1024
BATCH_BYTES = 64 << 20
SHOWN = 10
NAMING_FILES = ("parquet", "huggingface")
"""Kinds of containers whose rows may name files beside them."""
SOURCES: dict[SourceKind, Callable[[Request], Source]] = {
    "folder": FolderSource,
    "list": ListSource,
    "parquet": ParquetSource,
    "tar": TarSource,
    "huggingface": HuggingFaceSource,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanConfig:
    """List the pictures of a source into a corpus; run again to pick up what changed."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Path or URI (s3://, gs://) of a folder of pictures, Parquet files or tars, of a Hugging Face
    dataset on disk, or of one such file or a list of files (.txt, .csv)."""
    corpus: str
    """Name of the corpus to make or bring up to date."""
    source_kind: SourceKind | None = None
    """What the source is; recognised, and said aloud, unless given."""
    labels: str = "none"
    """Where labels come from: none, folder (the one a picture lies in), or a column's name."""
    columns: str | None = None
    """Metadata to carry along, such as a,b:float,name=c: with a type, or under another name.
    Those that the corpus has unless given; none if empty."""
    picture_column: str | None = None
    """Column of the pictures or their paths; recognised unless given."""
    max_megapixels: float = 100.0
    """Pictures of this many pixels and more are listed as too_large and left out; at most 100."""
    allow_vanished: bool = False
    """Go on although more than half of the pictures are gone; a disk may just be away."""

    def __post_init__(self) -> None:
        """Check the names; the source is checked when it is read."""
        check_name(self.corpus, what="corpus")
        if not self.source:
            raise ValueError(f"SOURCE is empty. {ALLOWED} The folder that you are in is a dot.")
        parse_columns(self.columns or "", CATALOG_SCHEMA.names)
        if not 0 < self.max_megapixels <= MAX_PIXELS / 1e6:
            raise ValueError(
                f"max_megapixels {self.max_megapixels}: above 0 and at most {MAX_PIXELS / 1e6:g}, "
                "beyond which decoding takes too much memory. Scale larger pictures down."
            )


def scan(config: ScanConfig, context: Context) -> dict[str, Any]:
    """Bring the corpus up to date with its source.

    Returns:
        Counts by status, and of what is new, changed, returned and vanished since the last scan;
        the first bad pictures, and the folders and containers that could not be read.

    Raises:
        FileNotFoundError: the source is not there.
        StoreError: the source is in an object store that cannot be reached.
        ValueError: the corpus belongs to another source; no picture is there; more than half of
            the pictures vanished; another scan into this corpus is under way.
    """
    place = _place(config.source)
    shown = shown_uri(config.source)
    with asking(shown):
        kind, why = _kind(config, place)
    folder = context.workspace.folder("corpora", config.corpus)
    with sole_writer(folder, "scanning into this corpus"):
        previous = open_for_scan(folder)
        with asking(shown):
            source = SOURCES[kind](_request(config, place, previous))
        settings = _settings(config, place, kind, source, previous)
        _require_same_source(previous, settings, folder)
        writer = CatalogWriter(folder, config.corpus, settings, previous)
        context.say(f"Source: {why}")
        # A killed scan may have found a container other than the door states it, and it is now.
        trusted = {} if writer.goes_on else _trusted(previous, settings)
        comparison = Comparison(writer, config.max_megapixels * 1e6, trusted)
        try:
            _compare(comparison, source, shown, context)
            if not writer.next_id:
                raise ValueError(_no_pictures(place, kind, source.skipped))
            comparison.retire_vanished(
                tuple(start for path in source.skipped for start in _below(place, path)),
                keep_files=bool(source.skipped) and kind in NAMING_FILES,
                allow_most=config.allow_vanished,
                name=place.path,
            )
        finally:
            comparison.close()
        door = writer.publish(comparison.containers)
    return {
        "corpus": config.corpus,
        "corpus_id": door["id"],
        "folder": settings["folder"],
        "source_kind": kind,
        "pictures": door["rows"],
        "since_last_scan": comparison.tally,
        "num_listed_twice": comparison.num_twice,
        "bad_pictures": bad_pictures(folder, door, SHOWN),
        "num_skipped_folders": len(source.skipped),
        "skipped_folders": list(source.skipped)[:SHOWN],
        "path": str(folder),
    }


def _place(text: str) -> Place:
    if "://" in text:
        return place_of(require_no_keys(text))
    return place_of(real_path(text))


def _kind(config: ScanConfig, place: Place) -> tuple[SourceKind, str]:
    """The source's kind, and why."""
    if config.source_kind is None:
        return recognise(place)
    if place.fs.get_file_info(place.path).type == pafs.FileType.NotFound:
        raise FileNotFoundError(f"{place.path}: not there. {ALLOWED}")
    return config.source_kind, f"{place.path}: {TITLES[config.source_kind]}, as you say"


def _request(config: ScanConfig, place: Place, previous: Mapping[str, Any] | None) -> Request:
    """What to ask of the source; a column that the corpus ever had keeps its type."""
    known = column_types(previous) if previous else {}
    columns = tuple(
        column._replace(type=column.type or TYPES.get(known.get(column.name, "")))
        for column in parse_columns(_columns(config, previous), CATALOG_SCHEMA.names)
    )
    return Request(place, config.labels, columns, config.picture_column)


def _columns(config: ScanConfig, previous: Mapping[str, Any] | None) -> str:
    """The columns that are asked for; unless any setting says, those that the corpus has."""
    if config.columns is not None or previous is None:
        return config.columns or ""
    return str(previous["config"].get("columns", ""))


def _settings(
    config: ScanConfig,
    place: Place,
    kind: SourceKind,
    source: Source,
    previous: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What the door states, in values of JSON."""
    columns = _columns(config, previous)
    settings = {**asdict(config), "source_kind": kind, "columns": columns}
    del settings["allow_vanished"], settings["source"]
    name_of = {kind: name for name, kind in TYPES.items()}
    metadata = {field.name: name_of[field.type] for field in source.fields}
    return {"folder": place.picture_uri(place.path), **settings, "metadata": metadata}


def _require_same_source(
    previous: Mapping[str, Any] | None, settings: dict[str, Any], folder: Folder
) -> None:
    if previous is None:
        return
    # Corpora from before there were other kinds do not name theirs.
    before = {"source_kind": "folder", **previous["config"]}
    for field in ("folder", "source_kind", "labels"):
        was, now = before[field], settings[field]
        if was != now:
            raise ValueError(
                f"{folder}: this corpus was made with {field} {was!r}, not {now!r}. "
                f"Scan with {field} {was!r} again, or choose another corpus name."
            )
    known = column_types(previous)
    for name, kind in settings["metadata"].items():
        was = known.get(name, kind)
        if was != kind:
            raise ValueError(
                f"{folder}: in this corpus column {name!r} is of type {was}, not {kind}. Give the "
                f"new one another name: {name}_{kind}={name}:{kind}"
            )


def _trusted(
    previous: Mapping[str, Any] | None, settings: dict[str, Any]
) -> Mapping[str, list[int | None]]:
    """The containers that need not be read again while they are as they were."""
    if previous is None or previous["config"] != settings:
        return {}
    return dict(previous.get("containers", {}))


def _compare(comparison: Comparison, source: Source, shown: str, context: Context) -> None:
    """List the source; write a row for whatever is not as the corpus knows it."""
    with context.progress("scan", total=None, unit="pictures") as line:
        for batch in _batches(_asked(source.listed(comparison), shown)):
            comparison.take(batch)
            line.advance(len(batch))


def _asked(listed: Iterator[Listed], shown: str) -> Iterator[Listed]:
    """The same, and an object store's error says that it is the source's."""
    with asking(shown):
        yield from listed


def _batches(listed: Iterator[Listed]) -> Iterator[list[Listed]]:
    batch: list[Listed] = []
    num_bytes = 0
    for item in listed:
        batch.append(item)
        num_bytes += len(item.data or b"")
        if len(batch) >= BATCH_FILES or num_bytes >= BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


def _below(place: Place, path: str) -> tuple[str, ...]:
    """How the URIs begin of pictures that lie in a folder or container."""
    uri = place.uri(path).partition("?")[0]
    plain = (f"{path}/",) if place.is_local else (f"{uri}?",)
    return (*plain, f"{uri}/", f"{uri}#")


def _no_pictures(place: Place, kind: SourceKind, skipped: Mapping[str, str]) -> str:
    if skipped:
        path, reason = next(iter(skipped.items()))
        return (
            f"{place.path}: no picture in here can be read. {len(skipped):,} files or folders "
            f"cannot, such as {path} ({reason}). Repair them, and scan again."
        )
    if kind != "folder":
        looked_for = f"{TITLES[kind]}; --source-kind says otherwise"
    else:
        suffixes = ", ".join(sorted(PICTURE_SUFFIXES))
        looked_for = f"files ending in {suffixes}, sub-folders included"
    return f"{place.path}: no pictures in here. Looked for {looked_for}."
