"""scan: list a folder's pictures into a corpus.

1. Walk the folder, following links but no loop. 2. Compare with the corpus as it was: a sound
picture that is unchanged is not opened again. 3. Read the header of the others. 4. Publish what
changed as one more catalog part, or several if it is much.

A picture that vanished and comes back unchanged gets its id back, and so its labels.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from cluster.catalog import GONE, Catalog, CatalogRow, CatalogWriter
from cluster.context import Context, ProgressLine
from cluster.workspace import check_name
from encoders.picture import MAX_PIXELS, PictureError, probe
from index.artifact import Folder
from index.lock import sole_writer

__all__ = ["PICTURE_SUFFIXES", "ScanConfig", "scan"]

logger = logging.getLogger(__name__)

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
SHOWN = 10


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
    allow_vanished: bool = False
    """Go on although more than half of the pictures are gone; a disk may just be away."""

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
        Counts by status, and of what is new, changed, returned and vanished since the last scan;
        the first bad pictures, and the sub-folders that could not be read.

    Raises:
        FileNotFoundError: the folder is not there.
        ValueError: the corpus belongs to another folder; no picture is in the folder; more than
            half of the pictures vanished; another scan into this corpus is under way.

    Memory: a row for every picture that the corpus knows.
    """
    source = Path(config.folder).expanduser().resolve()
    if not source.is_dir():
        raise FileNotFoundError(
            f"{config.folder}: not a folder. Give the folder that holds the pictures."
        )
    folder = context.workspace.folder("corpora", config.corpus)
    settings = {**asdict(config), "folder": str(source)}
    del settings["allow_vanished"]
    with sole_writer(folder, "scanning into this corpus"):
        previous = Catalog.open(folder) if folder.exists("corpus.json") else None
        _require_same_source(previous, settings, folder)
        writer = CatalogWriter(folder, config.corpus, settings, previous)
        comparison = _Comparison(writer, config)
        _compare(comparison, source, context)
        if not writer.num_known:
            raise ValueError(
                f"{source}: no pictures in here. Looked for files ending in "
                f"{', '.join(sorted(PICTURE_SUFFIXES))}, sub-folders included."
            )
        comparison.retire_vanished(source)
        writer.publish()
    catalog = Catalog.open(folder)
    return {
        "corpus": config.corpus,
        "corpus_id": catalog.corpus_id,
        "folder": str(source),
        "pictures": catalog.door["rows"],
        "since_last_scan": comparison.tally,
        "bad_pictures": [
            {"file": row.uri, "status": row.status, "error": row.error}
            for row in catalog.bad(SHOWN)
        ],
        "num_skipped_folders": len(comparison.skipped),
        "skipped_folders": comparison.skipped[:SHOWN],
        "path": str(folder),
    }


def _compare(comparison: _Comparison, source: Path, context: Context) -> None:
    """Walk the folder; write a row for whatever is not as the corpus knows it."""
    with context.progress("scan", total=None, unit="files") as line:
        seen = _counted(_walk(source, comparison.skipped), line)
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            todo = comparison.to_probe(seen)
            while batch := list(islice(todo, BATCH_FILES)):
                probed = pool.map(lambda item: _row(item[0], comparison.config), batch)
                for (file, known), row in zip(batch, probed, strict=True):
                    label = _label(file.uri, source, comparison.config)
                    comparison.write({**row, "label": label}, known)


def _counted(files: Iterator[_File], line: ProgressLine) -> Iterator[_File]:
    for file in files:
        line.advance(1)
        yield file


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


class _File(NamedTuple):
    """A file of a picture's suffix; ``problem`` says why it cannot be opened."""

    path: str
    uri: str
    bytes: int | None
    mtime_ns: int | None
    problem: str | None


class _Comparison:
    """What a walk finds, against what the corpus knows.

    Args:
        writer: receives what differs.
        config: the scan's settings.
    """

    def __init__(self, writer: CatalogWriter, config: ScanConfig) -> None:
        self.config = config
        self.tally = dict.fromkeys(("new", "changed", "returned", "unchanged", "vanished"), 0)
        self.skipped: list[str] = []
        self._writer = writer
        self._unseen = {row.uri: row for row in writer.known_rows()}
        self._num_present = sum(row.status not in GONE for row in self._unseen.values())

    def to_probe(self, files: Iterator[_File]) -> Iterator[tuple[_File, CatalogRow | None]]:
        """Files whose header has to be read, each with the row whose id it keeps, if any."""
        for file in files:
            row = self._unseen.pop(file.uri, None)
            if row is None:
                self.tally["new"] += 1
                yield file, None
            elif file.bytes is None and row.bytes is not None:
                # Out of reach for now, as on a disk with errors: what is known stays.
                self.tally["unchanged"] += 1
            elif (file.bytes, file.mtime_ns) != (row.bytes, row.mtime_ns):
                self._writer.retire(row, "replaced")
                self.tally["changed"] += 1
                yield file, None
            elif row.status == "ok" and not _is_too_large(row.width, row.height, self.config):
                self.tally["unchanged"] += 1
            else:
                yield file, row

    def write(self, row: dict[str, Any], known: CatalogRow | None) -> None:
        """Take the row of a file that was probed."""
        if known is None:
            self._writer.add(row)
        elif not self._writer.override(known, row):
            self.tally["unchanged"] += 1
            return
        else:
            self.tally["returned" if known.status == "vanished" else "changed"] += 1

    def retire_vanished(self, source: Path) -> None:
        """Mark what was not seen; what lies below a folder that could not be read stays."""
        below = tuple(f"{folder}/" for folder in self.skipped)
        gone = [
            row
            for row in self._unseen.values()
            if row.status not in GONE and not row.uri.startswith(below)
        ]
        if len(gone) * 2 > self._num_present and not self.config.allow_vanished:
            raise ValueError(
                f"{source}: {len(gone):,} of {self._num_present:,} pictures are gone, such as "
                f"{gone[0].uri}. Is a disk away? If they are meant to be gone, scan with "
                "--allow-vanished."
            )
        for row in gone:
            self._writer.retire(row, "vanished")
        self.tally["vanished"] = len(gone)


def _walk(folder: Path, skipped: list[str]) -> Iterator[_File]:
    """Picture files below a folder in a stable order; each real folder is entered once.

    Sub-folders that cannot be read are appended to ``skipped``.
    """
    entered: set[tuple[int, int]] = set()
    pending = [str(folder)]
    while pending:
        current = pending.pop()
        try:
            identity = os.stat(current)  # noqa: PTH116 - plain text, as scandir gives it
            if (identity.st_dev, identity.st_ino) in entered:
                continue
            entered.add((identity.st_dev, identity.st_ino))
            with os.scandir(current) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if current == str(folder):
                raise
            logger.warning("%s: left out, it cannot be read (%s)", _printable(current), error)
            skipped.append(_printable(current))
            continue
        shown = [entry for entry in ordered if not entry.name.startswith(".")]
        pending.extend(entry.path for entry in reversed(shown) if _is_folder(entry))
        for entry in shown:
            suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - a name, not a path
            if suffix in PICTURE_SUFFIXES and (file := _file(entry)) is not None:
                yield file


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: what it is called decides whether it gets a row
        return False


def _file(entry: os.DirEntry[str]) -> _File | None:
    """The entry as a file to look at; None for a folder with a picture's suffix."""
    # A name that is not UTF-8 is kept in a printable form; such a file is reported, not read.
    uri = _printable(entry.path)
    try:
        found = entry.stat()
    except OSError as error:
        return _File(entry.path, uri, None, None, str(error))
    if stat.S_ISDIR(found.st_mode):
        return None
    problem = None if stat.S_ISREG(found.st_mode) else "Not a file but a pipe, socket or device."
    if os.fsencode(entry.path) != uri.encode():
        problem = "The file name is not valid UTF-8. Rename the file."
    return _File(entry.path, uri, found.st_size, found.st_mtime_ns, problem)


def _printable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _row(file: _File, config: ScanConfig) -> dict[str, Any]:
    row = {"uri": file.uri, "bytes": file.bytes, "mtime_ns": file.mtime_ns, "status": "ok"}
    if file.problem is not None:
        return {**row, "status": "unreadable", "error": file.problem}
    try:
        with Path(file.path).open("rb") as opened:
            picture_format, width, height = probe(opened)
    except PictureError as error:
        return {**row, "status": error.status, "error": str(error)}
    except OSError as error:
        return {**row, "status": "unreadable", "error": str(error)}
    row |= {"format": picture_format, "width": width, "height": height}
    if _is_too_large(width, height, config):
        allowed = f"{config.max_megapixels:g} megapixels or more (--max-megapixels)"
        row |= {
            "status": "too_large",
            "error": f"{width} x {height} pixels are {allowed}. Scale the picture down.",
        }
    return row


def _is_too_large(width: int | None, height: int | None, config: ScanConfig) -> bool:
    return (width or 0) * (height or 0) >= config.max_megapixels * 1e6


def _label(uri: str, source: Path, config: ScanConfig) -> str | None:
    folder = Path(uri).parent
    return folder.name if config.labels == "folder" and folder != source else None
