"""A folder on a disk or in an object store, whose files are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from pyarrow import fs as pafs

from index.durable import link_durably, require_inside, write_durably
from index.uri import open_uri, put_file, real_path

__all__ = ["FileRecord", "Folder"]

CHUNK_BYTES = 1 << 20
MAX_READS = 4
"""Times that a file is read which others replace meanwhile."""
SETTLED_NS = 24 * 3600 * 10**9


class FileRecord(TypedDict):
    """What a door says of a file: its size and its hex sha256."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder on any pyarrow filesystem: a local disk, a shared one, or an object store.

    Args:
        fs: the filesystem.
        path: absolute path inside it, without a trailing slash.
    """

    fs: pafs.FileSystem
    path: str

    @classmethod
    def at(cls, location: str | Path) -> Folder:
        """The folder at a path or URI such as ``s3://bucket/prefix``; see `open_uri` for errors."""
        text = str(location)
        if "://" in text:
            return cls(*open_uri(text))
        return cls(pafs.LocalFileSystem(), real_path(text))

    def __truediv__(self, name: str) -> Folder:
        return Folder(self.fs, f"{self.path}/{require_inside(name)}")

    def __str__(self) -> str:
        if self.is_local:
            return self.path
        scheme = "gs" if isinstance(self.fs, pafs.GcsFileSystem) else self.fs.type_name
        return f"{scheme}://{self.path}"

    @property
    def is_local(self) -> bool:
        """Whether its files can be memory-mapped and fsynced."""
        return isinstance(self.fs, pafs.LocalFileSystem)

    def local_path(self, name: str = "") -> Path:
        """The path of a file for memory-mapping; ``ValueError`` on an object store."""
        if not self.is_local:
            raise ValueError(
                f"{self}: memory-mapping needs a local or shared disk. Copy the artefact to one."
            )
        return Path(self.path) / name if name else Path(self.path)

    def exists(self, name: str = "") -> bool:
        """Whether the file (or, without a name, the folder) is there."""
        info = self.fs.get_file_info(f"{self.path}/{name}" if name else self.path)
        return bool(info.type != pafs.FileType.NotFound)

    def names(self) -> list[str]:
        """Names of the files and folders directly inside, sorted; empty when it does not exist."""
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        if not isinstance(self.fs, pafs.GcsFileSystem):
            try:
                found = self.fs.get_file_info(selector)
            except FileNotFoundError:  # made by another between pyarrow's listing and its look
                found = self.fs.get_file_info(selector)
            return sorted(info.base_name for info in found)
        # Of Google's store pyarrow leaves folders out of a listing that does not go below them.
        selector.recursive = True
        start = len(self.path) + 1
        return sorted({i.path[start:].partition("/")[0] for i in self.fs.get_file_info(selector)})

    def size_bytes(self, name: str) -> int | None:
        """Size of a file, or None when it is not there."""
        info = self.fs.get_file_info(f"{self.path}/{name}")
        return int(info.size) if info.type == pafs.FileType.File else None

    def make(self) -> Folder:
        """Create it with its parents; returns itself."""
        self.fs.create_dir(self.path, recursive=True)
        return self

    def read_bytes(self, name: str) -> bytes:
        """The content of one file, as it was at one moment.

        Raises:
            FileNotFoundError: it is not there, or others deleted it meanwhile.
            OSError: it cannot be read, or others replace it faster than it is read.
        """
        for left in reversed(range(MAX_READS)):
            try:
                file = self.fs.open_input_file(f"{self.path}/{name}")
            except NotADirectoryError as error:
                raise self._gone(name) from error
            with file:
                try:
                    with self._clear_errors(name):
                        data = bytes(file.read())
                except FileNotFoundError:
                    raise
                except (OSError, ValueError):  # pyarrow's "closed file", of Google's store
                    if self.is_local or not left:
                        raise
                    continue
            # In a store no more is read than the object held when it was opened.
            if self.is_local or self.size_bytes(name) in (None, len(data)):
                return data
        raise OSError(
            f"{self}/{name}: replaced by others each of the {MAX_READS} times it was read. "
            "Wait until they are done."
        )

    def read_if_there(self, name: str) -> bytes | None:
        """The content of one file, or None when it is not there."""
        with contextlib.suppress(FileNotFoundError):
            return self.read_bytes(name)
        return None

    def sha256(self, name: str) -> str:
        """Hex sha256 of a file, read in pieces of 1 MiB."""
        hasher = hashlib.sha256()
        with self.fs.open_input_stream(f"{self.path}/{name}") as stream, self._clear_errors(name):
            while piece := stream.read(CHUNK_BYTES):
                hasher.update(piece)
        return hasher.hexdigest()

    @contextlib.contextmanager
    def _clear_errors(self, name: str) -> Iterator[None]:
        """Say of an object that was deleted as it was read that it is gone; stores do not.

        And of a disk's error which file it is of; pyarrow does not.
        """
        try:
            yield
        except (OSError, ValueError) as error:
            there = True
            with contextlib.suppress(OSError):
                there = self.is_local or self.exists(name)
            if not there:
                raise self._gone(name) from error
            number = getattr(error, "errno", None)
            if self.is_local and number:
                raise OSError(number, os.strerror(number), f"{self}/{name}") from error
            raise

    def _gone(self, name: str) -> FileNotFoundError:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self}/{name}")

    def remove(self, name: str) -> None:
        """Delete one file; a file that is already gone is fine."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.delete_file(f"{self.path}/{name}")

    def remove_others(self, prefix: str, *, keep: Iterable[str]) -> None:
        """Delete the files directly inside whose name starts with ``prefix``, but for ``keep``.

        In an object store, only those of `settled_names`.
        """
        for name in set(self.settled_names()) - set(keep):
            if name.startswith(prefix):
                self.remove(name)

    def settled_names(self) -> list[str]:
        """Names of the files directly inside that no job under way is about to publish.

        On a disk all of them, as whoever asks holds the lock. An object store has none, so that
        those count which have been there for a day, or do not say for how long.
        """
        if self.is_local:
            return self.names()
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        until_ns = time.time_ns() - SETTLED_NS
        found = (info for info in self.fs.get_file_info(selector) if info.is_file)
        return sorted(info.base_name for info in found if (info.mtime_ns or 0) <= until_ns)

    def link(self, name: str, source: Folder) -> None:
        """Take over a file of another local folder under its name; where links fail, by a copy."""
        link_durably(source.local_path(require_inside(name)), self.local_path(name))

    def write_atomic(self, name: str, data: bytes) -> None:
        """Write a whole file so that a reader sees the old content or the new, never a part."""
        self.write_with(name, lambda path: Path(path).write_bytes(data))

    def write_with(self, name: str, write: Callable[[str], object]) -> None:
        """Let ``write(path)`` fill a temporary file, then fsync it and rename it to ``name``.

        On an object store, where a put is atomic, the content of the temporary file is put.
        """
        require_inside(name)
        self._write(write, lambda _: name)

    def write_hashed(self, name: str, write: Callable[[str], object]) -> FileRecord:
        """As ``write_with``, and say the size and sha256 of what was written, for ``publish``."""
        return self.write_by_content(name, write)[1]

    def write_by_content(self, name: str, write: Callable[[str], object]) -> tuple[str, FileRecord]:
        """As ``write_hashed``, with ``{sha256}`` in the name replaced by 12 digits of the sha256.

        So what a published door names is never overwritten with anything else.

        Returns:
            The file's name and record.
        """
        records: list[FileRecord] = []

        def name_it(path: Path) -> str:
            sha256 = Folder(pafs.LocalFileSystem(), str(path.parent)).sha256(path.name)
            records.append(FileRecord(bytes=path.stat().st_size, sha256=sha256))
            return name.replace("{sha256}", sha256[:12])

        return self._write(write, name_it), records[0]

    def _write(self, write: Callable[[str], object], name_it: Callable[[Path], str]) -> str:
        if self.is_local:
            return write_durably(Path(self.path), write, name_it)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "file"
            write(str(path))
            name = require_inside(name_it(path))
            put_file(self.fs, path, f"{self.path}/{name}")
        return name
