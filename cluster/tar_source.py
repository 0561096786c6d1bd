"""Pictures in tars, as WebDataset makes them: files of one sample share their name up to the dot.

``x/0001.jpg``, ``x/0001.cls`` and ``x/0001.json`` are one sample: a picture, its class, and its
metadata. A tar of pictures in folders is one as well, of samples that have nothing but a picture.
Compressed tars cannot be read in pieces, and are named as skipped.
"""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa

from cluster.columns import TYPES, fitted, infer_type
from cluster.file_source import folder_of
from cluster.file_walk import (
    PICTURE_SUFFIXES,
    File,
    printable,
    require_readable,
    suffix_of,
    walk,
)
from cluster.picture_bytes import MAX_BYTES
from cluster.picture_uri import PictureUri
from cluster.sources import PACKED, PACKED_SUFFIXES, PACKED_TAR, Container, Ledger, Listed, Request
from cluster.tar_members import Members

__all__ = ["TarSource"]

logger = logging.getLogger(__name__)

BUFFER_BYTES = 4 << 20
MAX_SIDECAR_BYTES = 1 << 20
SAMPLES_LOOKED_AT = 200
MAX_HELD_FILES = 64
MAX_HELD_BYTES = 256 << 20
DAMAGED = (OSError, tarfile.TarError, ValueError, OverflowError)


class _Picture(NamedTuple):
    name: str
    offset: int
    num_bytes: int
    data: bytes | None
    problem: str | None = None


class _Sample:
    """Pictures that share a name, and what lies beside them.

    Args:
        key: the name that they share.
        asked: names of facts that are kept; None for all.
        facts: what is known already.
    """

    def __init__(
        self, key: str, asked: Collection[str] | None, facts: dict[str, Any] | None = None
    ) -> None:
        self.key = key
        self.pictures: list[_Picture] = []
        self.facts = facts or {}
        self.num_files = self.num_bytes = 0
        self._asked = asked

    @property
    def is_full(self) -> bool:
        """Whether its pictures are to be given away before more are held."""
        if self._asked is not None and not self._asked:
            return bool(self.pictures)
        return self.num_files >= MAX_HELD_FILES or self.num_bytes >= MAX_HELD_BYTES

    def rest(self) -> _Sample:
        """What a full sample goes on as: what it says of its pictures holds for later ones."""
        return _Sample(self.key, self._asked, None if self._asked is None else self.facts)

    def take(self, extension: str, data: bytes) -> None:
        """Note a file beside the picture: a JSON's keys, or a text under its extension.

        Raises:
            ValueError: it is neither.
            RecursionError: a JSON that is nested too deep.
        """
        if extension != "json":
            self.facts[extension] = data.decode().strip()
            return
        content = json.loads(data)
        if isinstance(content, dict):
            asked = content.keys() if self._asked is None else content.keys() & self._asked
            # The files beside it have names that WebDataset gives a meaning.
            self.facts = {**{name: content[name] for name in asked}, **self.facts}


class TarSource:
    """Members of the tars of a folder, sub-folders included, or of one tar.

    Raises:
        ValueError: a label or column that none of the first samples has; a column whose type is
            not given, where no tar can be read.
    """

    def __init__(self, request: Request) -> None:
        self.skipped: dict[str, str] = {}
        self._request = request
        self._unreadable: set[str] = set()
        self._told_of_full = False
        wanted = [column.source for column in request.columns]
        if request.labels not in ("none", "folder"):
            wanted.append(request.labels)
        # A wanted name may also be a key of a JSON.
        self._beside = frozenset([*wanted, "json"]) if wanted else frozenset()
        facts = self._looked_at(wanted) if wanted else []
        self.fields: tuple[pa.Field, ...] = tuple(
            pa.field(
                column.name,
                column.type or infer_type(fact.get(column.source) for fact in facts),
            )
            for column in request.columns
        )

    def listed(self, ledger: Ledger) -> Iterator[Listed]:
        """All pictures, tar by tar."""
        for file in self._tars():
            container = Container(
                self._request.place.uri(file.path), file.bytes or 0, file.mtime_ns
            )
            if ledger.is_unchanged(container):
                continue
            try:
                for sample in self._samples(file, self._beside):
                    yield from self._rows(sample, container)
            except DAMAGED as error:
                logger.warning("%s: not read to its end (%s)", file.path, error)
                self.skipped[file.path] = str(error)
            else:
                ledger.has_read(container)

    def _rows(self, sample: _Sample, container: Container) -> Iterator[Listed]:
        labels = self._request.labels
        values = tuple(
            fitted(sample.facts.get(column.source), field.type)
            for column, field in zip(self._request.columns, self.fields, strict=True)
        )
        for picture in sample.pictures:
            label = (
                folder_of(picture.name)
                if labels == "folder"
                else fitted(sample.facts.get(labels), TYPES["string"])
            )
            size, data, problem = picture.num_bytes, picture.data, picture.problem
            uri = PictureUri(container.uri, "tar", picture.offset, size, picture.name)
            yield Listed(str(uri), size, container.mtime_ns, problem, label, values, data=data)

    def _looked_at(self, wanted: list[str]) -> list[dict[str, Any]]:
        """What is wanted of the first samples; tars that cannot be read are told of when listed."""
        place = self._request.place
        facts: list[dict[str, Any]] = []
        there: set[str] = set()
        reason = ""
        for file in self._tars():
            try:
                for sample in islice(self._samples(file, None), SAMPLES_LOOKED_AT - len(facts)):
                    there |= sample.facts.keys()
                    facts.append({name: sample.facts.get(name) for name in wanted})
            except DAMAGED as error:
                reason = reason or f" ({file.path}: {error})"
            if len(facts) >= SAMPLES_LOOKED_AT:
                break
        untyped = [column for column in self._request.columns if column.type is None]
        if untyped and not facts:
            raise ValueError(
                f"column {untyped[0].source!r}: {place.path} has no sample that can be read, to "
                f"tell its type from{reason}. Repair the tars, or give the type, such as "
                f"{untyped[0].source}:int."
            )
        for name in wanted if facts else ():
            if name not in there:
                raise ValueError(
                    f"column {name!r}: none of the first {len(facts)} samples of {place.path} has "
                    f"it. Beside their pictures lies: {', '.join(sorted(there)) or 'nothing'}."
                )
        return facts

    def _tars(self) -> Iterator[File]:
        for file in walk(self._request.place, PACKED_SUFFIXES | {".tar"}, self.skipped):
            if PACKED_TAR.search(file.path):
                if file.path not in self.skipped:
                    logger.warning("%s: not read (%s)", file.path, PACKED)
                self.skipped[file.path] = PACKED
            elif suffix_of(file.path) not in PACKED_SUFFIXES:
                yield file

    def _samples(self, file: File, asked: Collection[str] | None) -> Iterator[_Sample]:
        """Samples of a tar; one read through, and no more of it in memory than a sample.

        Args:
            file: the tar.
            asked: what is read beside the pictures; None for all that can be, and no pictures.
        """
        require_readable(file)
        with (
            self._request.place.fs.open_input_file(file.path) as raw,
            io.BufferedReader(raw, BUFFER_BYTES) as buffered,
            tarfile.open(fileobj=buffered, mode="r:") as tar,
        ):
            sample: _Sample | None = None
            members = Members()
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined] # else it keeps all it has seen
                problem = None if member.isdir() else members.locate(member)
                # A picture is found by its offset: its name need not be the one in the tar.
                member.name = printable(member.name)
                folder, slash, name = member.name.rpartition("/")
                if member.isdir() or name.startswith("."):
                    continue
                key = f"{folder}{slash}{name.partition('.')[0]}"
                if sample is None or sample.key != key or sample.is_full:
                    if sample is not None:
                        yield sample
                    sample = self._next(sample, key, asked, file)
                self._take(sample, member, tar, asked, problem)
            if sample is not None:
                yield sample
            raw.seek(tar.offset)
            if raw.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it ends without an end mark, so it may be cut short")

    def _take(
        self,
        sample: _Sample,
        member: tarfile.TarInfo,
        tar: tarfile.TarFile,
        asked: Collection[str] | None,
        problem: str | None,
    ) -> None:
        extension = member.name.rpartition("/")[2].partition(".")[2].lower()
        is_picture = suffix_of(member.name) in PICTURE_SUFFIXES
        is_asked = bool(extension) and (asked is None or extension in asked)
        if not is_picture and (not is_asked or member.size > MAX_SIDECAR_BYTES):
            return
        sample.num_files += 1
        if is_picture and asked is None:
            return
        place = (member.name, member.offset_data, member.size)
        if is_picture and (problem is not None or member.size > MAX_BYTES):
            sample.pictures.append(_Picture(*place, None, problem))
            return
        data = _bytes_of(member, tar) if problem is None else b""
        sample.num_bytes += len(data)
        if is_picture:
            sample.pictures.append(_Picture(*place, data))
            return
        try:
            if problem is not None:
                raise ValueError(problem)
            sample.take(extension, data)
        except (ValueError, RecursionError) as error:
            if asked is not None and extension not in self._unreadable:
                self._unreadable.add(extension)
                logger.warning(
                    "%s: left out, it cannot be read (%s). Others like it are not named.",
                    member.name,
                    error,
                )

    def _next(
        self, sample: _Sample | None, key: str, asked: Collection[str] | None, file: File
    ) -> _Sample:
        """The sample that a file belongs to that the one before has no place for."""
        if sample is None or sample.key != key:
            return _Sample(key, asked)
        if asked and not self._told_of_full:
            self._told_of_full = True
            logger.warning(
                "%s: more than %d files or %d MiB share the name %r, up to their first dot, and so "
                "are one sample. What lies beside its pictures holds for those that come after it "
                "alone. Give each sample a name of its own. Others like it are not named.",
                file.path,
                MAX_HELD_FILES,
                MAX_HELD_BYTES >> 20,
                key,
            )
        return sample.rest()


def _bytes_of(member: tarfile.TarInfo, tar: tarfile.TarFile) -> bytes:
    opened = tar.extractfile(member)
    data = opened.read() if opened else b""
    if len(data) != member.size:
        raise tarfile.ReadError(f"{member.name}: ends after {len(data)} of {member.size} bytes")
    return data
