"""scan: list a folder's pictures into a corpus.

1. Walk the folder, following links but no loop. 2. Compare with the corpus as it was: what is
unchanged is not opened again. 3. Read the header of what is new. 4. Publish one more catalog part.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from cluster.catalog import Catalog, CatalogRow, CatalogWriter
from cluster.context import Context
from cluster.workspace import check_name
from encoders.picture import MAX_PIXELS, PictureError, probe
from index.artifact import Folder

__all__ = ["PICTURE_SUFFIXES", "ScanConfig", "scan"]

PICTURE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".gif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".avif",
        ".heic",
        ".heif",
        ".ppm",
        ".pgm",
        ".pnm",
        ".jp2",
        ".ico",
    ]
)
NUM_THREADS = 8
BATCH_FILES = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanConfig:
    """List the pictures of a folder into a corpus; run again to pick up what changed."""

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder with pictures; sub-folders are included."""
    corpus: str
    """Name of the corpus to make or bring up to date."""
    labels: Literal["none", "folder"] = "none"
    """Where labels come from: none, or the name of the sub-folder that a picture lies in."""
    max_megapixels: float = 100.0
    """Pictures of this many pixels and more are listed as too_large and left out; at most 100."""

    def __post_init__(self) -> None:
        """Check the names; the folder is checked when it is read."""
        check_name(self.corpus, what="corpus")
        if not 0 < self.max_megapixels <= MAX_PIXELS / 1e6:
            raise ValueError(
                f"max_megapixels {self.max_megapixels}: above 0 and at most {MAX_PIXELS / 1e6:g}, "
                "beyond which decoding takes too much memory. Scale larger pictures down."
            )


def scan(config: ScanConfig, context: Context) -> dict[str, Any]:
    """Bring the corpus up to date with the folder.

    Returns:
        Counts by status, and of what is new, changed and vanished since the last scan.

    Raises:
        FileNotFoundError: the folder is not there.
        ValueError: the corpus belongs to another folder, or no picture is in the folder.
    """
    source = Path(config.folder).expanduser().resolve()
    if not source.is_dir():
        raise FileNotFoundError(
            f"{config.folder}: not a folder. Give the folder that holds the pictures."
        )
    folder = context.workspace.folder("corpora", config.corpus)
    previous = Catalog.open(folder) if folder.exists("corpus.json") else None
    settings = {**asdict(config), "folder": str(source)}
    _require_same_source(previous, settings, folder)
    known = {row.uri: row for row in previous.by_uri()} if previous else {}
    writer = CatalogWriter(folder, config.corpus, previous)
    tally = {"new": 0, "changed": 0, "unchanged": 0, "vanished": 0}
    with context.progress("scan", total=None, unit="files") as line:
        for found in _probed(_changed_files(source, known, tally), config):
            writer.add({**found, "label": _label(found["uri"], source, config)})
            line.advance(1)
    for row in known.values():
        was_replaced = Path(row.uri).exists()
        writer.retire(row, "replaced" if was_replaced else "vanished")
        tally["vanished"] += not was_replaced
    if previous is None and not writer.num_changes:
        raise ValueError(
            f"{source}: no pictures in here. Looked for files ending in "
            f"{', '.join(sorted(PICTURE_SUFFIXES))}, sub-folders included."
        )
    if writer.num_changes:
        writer.publish(settings, uid=previous.uid if previous else uuid.uuid4().hex)
    door = Catalog.open(folder).door
    return {
        "corpus": config.corpus,
        "corpus_id": door["id"],
        "folder": str(source),
        "pictures": door["rows"],
        "since_last_scan": tally,
        "path": str(folder),
    }


def _require_same_source(
    previous: Catalog | None, settings: dict[str, Any], folder: Folder
) -> None:
    if previous is None:
        return
    for field in ("folder", "labels"):
        was, now = previous.door["config"][field], settings[field]
        if was != now:
            raise ValueError(
                f"{folder}: this corpus was made with {field} {was!r}, not {now!r}. "
                f"Scan with {field} {was!r} again, or choose another corpus name."
            )


def _walk(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Picture files below a folder in a stable order; each real folder is entered once."""
    entered: set[tuple[int, int]] = set()
    pending = [folder]
    while pending:
        current = pending.pop()
        identity = current.stat()
        if (identity.st_dev, identity.st_ino) in entered:
            continue
        entered.add((identity.st_dev, identity.st_ino))
        with os.scandir(current) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        below = [Path(entry.path) for entry in ordered if entry.is_dir() and entry.name[0] != "."]
        pending.extend(reversed(below))
        for entry in ordered:
            suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - a name, not a path
            if suffix in PICTURE_SUFFIXES and entry.name[0] != "." and not entry.is_dir():
                yield entry


class _File(NamedTuple):
    path: str
    uri: str
    bytes: int | None
    mtime_ns: int | None


def _changed_files(
    source: Path, known: dict[str, CatalogRow], tally: dict[str, int]
) -> Iterator[_File]:
    """Files that are new or changed; unchanged ones leave ``known``."""
    for entry in _walk(source):
        # A name that is not UTF-8 is kept in a printable form; such a file is reported, not read.
        uri = os.fsencode(entry.path).decode("utf-8", "backslashreplace")
        file = _File(entry.path, uri, None, None)
        with contextlib.suppress(OSError):  # a dangling link: the catalog will say unreadable
            found = entry.stat()
            file = file._replace(bytes=found.st_size, mtime_ns=found.st_mtime_ns)
        row = known.get(uri)
        if row is not None and (row.bytes, row.mtime_ns) == (file.bytes, file.mtime_ns):
            tally["unchanged"] += 1
            del known[uri]
            continue
        tally["new" if row is None else "changed"] += 1
        yield file


def _probed(files: Iterator[_File], config: ScanConfig) -> Iterator[dict[str, Any]]:
    """Catalog rows of the files, their headers read by a few threads, order kept."""
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        while batch := list(islice(files, BATCH_FILES)):
            yield from pool.map(lambda file: _row(file, config), batch)


def _row(file: _File, config: ScanConfig) -> dict[str, Any]:
    row = {"uri": file.uri, "bytes": file.bytes, "mtime_ns": file.mtime_ns, "status": "ok"}
    try:
        if os.fsencode(file.path) != file.uri.encode():
            raise PictureError("unreadable", "The file name is not valid UTF-8. Rename the file.")
        with Path(file.path).open("rb") as opened:
            picture_format, width, height = probe(opened)
    except PictureError as error:
        return {**row, "status": error.status, "error": str(error)}
    except OSError as error:
        return {**row, "status": "unreadable", "error": str(error)}
    row |= {"format": picture_format, "width": width, "height": height}
    if width * height >= config.max_megapixels * 1e6:
        row |= {"status": "too_large", "error": f"{width} x {height} pixels"}
    return row


def _label(uri: str, source: Path, config: ScanConfig) -> str | None:
    folder = Path(uri).parent
    return folder.name if config.labels == "folder" and folder != source else None
