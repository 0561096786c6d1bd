"""Files below a folder of a disk or an object store, in an order that stays.

Memory: the names of the largest single folder, in Arrow; an object store's listing of one folder
comes as Python objects, since pyarrow gives it no other way, and that of Google's store is of all
that lies below: for tens of millions there, give a Parquet file or a list that names them.
"""

from __future__ import annotations

import logging
import os
import stat
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs as pafs

from cluster.picture_uri import Place

__all__ = [
    "PICTURE_SUFFIXES",
    "File",
    "look_at",
    "mtime_ns_of",
    "printable",
    "require_readable",
    "suffix_of",
    "walk",
]

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
CHUNK_NAMES = 4096


class File(NamedTuple):
    """A file found; ``problem`` says why it cannot be opened.

    Args:
        path: in its filesystem; a name that is not UTF-8 in a printable form.
        bytes: its size; None when it is out of reach.
        mtime_ns: when it was last modified.
        problem: why it cannot be opened, if so.
        is_missing: whether that is because no file is there.
    """

    path: str
    bytes: int | None
    mtime_ns: int | None
    problem: str | None = None
    is_missing: bool = False


def suffix_of(path: str) -> str:
    """The suffix of a path in lower case, dot included.

    >>> suffix_of("a.b/x.JPG"), suffix_of("a.b/x")
    ('.jpg', '')
    """
    return os.path.splitext(path)[1].lower()  # noqa: PTH122 - a key of a store is no Path


def mtime_ns_of(found: os.stat_result) -> int:
    """When a file was last modified, or the nearest time that 64 bits hold: 1677 to 2262."""
    return min(max(found.st_mtime_ns, -(2**63)), 2**63 - 1)


def require_readable(file: File) -> None:
    """``OSError`` with the reason, if a file was found that cannot be opened."""
    if file.problem is not None:
        raise OSError(file.problem)


def printable(name: str) -> str:
    """A name of a file as text that can be written; bytes that are not UTF-8 by their number."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def walk(place: Place, suffixes: frozenset[str], skipped: dict[str, str]) -> Iterator[File]:
    """Files of these suffixes below a folder; each real folder is entered once, links last.

    Sub-folders that cannot be read are put into ``skipped``, with the reason; hidden ones are left
    out.
    """
    if place.fs.get_file_info(place.path).is_file:
        yield from look_at(place, [place.path])
    elif place.is_local:
        yield from _walk_disk(place.path, suffixes, skipped)
    elif isinstance(place.fs, pafs.GcsFileSystem):
        yield from _walk_google(place, suffixes)
    else:
        yield from _walk_store(place, suffixes, skipped)


def look_at(place: Place, paths: list[str]) -> Iterator[File]:
    """The files at these paths, there or not."""
    if place.is_local:
        for path in paths:
            if (file := _file(path)) is not None:
                yield file
            else:
                problem = "A folder. Give the files in it."
                yield File(path, None, None, problem, is_missing=True)
        return
    for path, info in zip(paths, place.fs.get_file_info(paths), strict=True):
        if info.is_file:
            yield File(path, info.size, info.mtime_ns)
        else:
            yield File(path, None, None, "Not there.", is_missing=True)


def _walk_disk(folder: str, suffixes: frozenset[str], skipped: dict[str, str]) -> Iterator[File]:
    entered: set[tuple[int, int]] = set()
    pending = [folder]
    linked: deque[str] = deque()
    while pending or linked:
        # Links last: a new one gives no picture of a folder that is listed anyway another name.
        current = pending.pop() if pending else linked.popleft()
        try:
            found = os.stat(current)  # noqa: PTH116 - plain text, as scandir gives it
            if (found.st_dev, found.st_ino) in entered:
                continue
            entered.add((found.st_dev, found.st_ino))
            folders, links, files = _entries(current, suffixes)
        except OSError as error:
            if current == folder:
                raise
            logger.warning("%s: left out, it cannot be read (%s)", printable(current), error)
            skipped[printable(current)] = str(error)
            continue
        pending.extend(f"{current}/{name}" for name in reversed(folders))
        linked.extend(f"{current}/{name}" for name in links)
        for start in range(0, len(files), CHUNK_NAMES):
            for name in files.slice(start, CHUNK_NAMES).to_pylist():
                if (file := _file(f"{current}/{os.fsdecode(name)}")) is not None:
                    yield file


def _entries(folder: str, suffixes: frozenset[str]) -> tuple[list[str], list[str], pa.Array]:
    """Names of a folder's sub-folders, links to folders, and files of these suffixes, sorted."""
    folders: list[str] = []
    links: list[str] = []
    chunks: list[pa.Array] = []
    names: list[bytes] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(entry.name)
            elif suffix_of(entry.name) in suffixes:
                names.append(os.fsencode(entry.name))
            if len(names) >= CHUNK_NAMES:
                chunks.append(pa.array(names, pa.large_binary()))
                names = []
    files = pa.concat_arrays([*chunks, pa.array(names, pa.large_binary())])
    del chunks
    return sorted(folders), sorted(links), files.take(pc.sort_indices(files))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: what it is called decides whether it gets a row
        return False


def _file(path: str) -> File | None:
    """The path as a file to look at; None for a folder."""
    # A name that is not UTF-8 is kept in a printable form; such a file is reported, not read.
    shown = printable(path)
    try:
        found = os.stat(path)  # noqa: PTH116 - ten million of them
    except (OSError, ValueError) as error:
        is_missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        return File(shown, None, None, str(error), is_missing)
    if stat.S_ISDIR(found.st_mode):
        return None
    problem = None if stat.S_ISREG(found.st_mode) else "Not a file but a pipe, socket or device."
    if os.fsencode(path) != shown.encode():
        problem = "The file name is not valid UTF-8. Rename the file."
    return File(shown, found.st_size, mtime_ns_of(found), problem)


def _walk_google(place: Place, suffixes: frozenset[str]) -> Iterator[File]:
    """As `_walk_store`, in the same order, by one listing of all.

    pyarrow shows a folder of Google's store only where an object stands for one, which those who
    put pictures there have no reason to make.
    """
    found = place.fs.get_file_info(pafs.FileSelector(place.path, recursive=True))
    start = len(place.path) + 1
    files = []
    for info in found:
        parts = info.path[start:].split("/")
        hidden = any(part.startswith(".") for part in parts)
        if info.is_file and not hidden and suffix_of(info.path) in suffixes:
            files.append(([*((1, folder) for folder in parts[:-1]), (0, parts[-1])], info))
    for _, info in sorted(files, key=lambda pair: pair[0]):
        yield File(info.path, info.size, info.mtime_ns)


def _walk_store(place: Place, suffixes: frozenset[str], skipped: dict[str, str]) -> Iterator[File]:
    pending = [place.path]
    while pending:
        current = pending.pop()
        try:
            found = place.fs.get_file_info(pafs.FileSelector(current))
        except OSError as error:
            if current == place.path:
                raise
            logger.warning("%s: left out, it cannot be listed (%s)", current, error)
            skipped[current] = str(error)
            continue
        found.sort(key=lambda info: info.base_name)
        shown = [info for info in found if not info.base_name.startswith(".")]
        pending.extend(info.path for info in reversed(shown) if not info.is_file)
        for info in shown:
            if info.is_file and suffix_of(info.path) in suffixes:
                yield File(info.path, info.size, info.mtime_ns)
