"""Pictures in tars, as WebDataset makes them: files of one sample share their name up to the dot.

``x/0001.jpg``, ``x/0001.cls`` and ``x/0001.json`` are one sample: a picture, its class, and its
metadata. A tar of pictures in folders is one as well, of samples that have nothing but a picture.
Compressed tars cannot be read in pieces, and are left out.
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
from cluster.file_walk import PICTURE_SUFFIXES, File, suffix_of, walk
from cluster.picture_bytes import MAX_BYTES
from cluster.picture_uri import PictureUri
from cluster.sources import Container, Ledger, Listed, Request

__all__ = ["TarSource"]

logger = logging.getLogger(__name__)

BUFFER_BYTES = 4 << 20
MAX_SIDECAR_BYTES = 1 << 20
SAMPLES_LOOKED_AT = 200


class _Picture(NamedTuple):
    name: str
    offset: int
    num_bytes: int
    data: bytes | None


class _Sample:
    """Pictures that share a name, and what lies beside them."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.pictures: list[_Picture] = []
        self.facts: dict[str, Any] = {}

    def take(self, extension: str, data: bytes) -> None:
        """Note a file beside the picture: a JSON's keys, or a text under its extension.

        Raises:
            ValueError: it is neither.
        """
        if extension == "json":
            content = json.loads(data)
            # The files beside it have names that WebDataset gives a meaning.
            self.facts = {**content, **self.facts} if isinstance(content, dict) else self.facts
        else:
            self.facts[extension] = data.decode().strip()


class TarSource:
    """Members of the tars of a folder, sub-folders included, or of one tar.

    Raises:
        ValueError: a label or column that none of the first samples has.
    """

    def __init__(self, request: Request) -> None:
        self.skipped: list[str] = []
        self._request = request
        self._unreadable: set[str] = set()
        wanted = [column.source for column in request.columns]
        if request.labels not in ("none", "folder"):
            wanted.append(request.labels)
        # A wanted name may also be a key of a JSON.
        self._beside = frozenset([*wanted, "json"]) if wanted else frozenset()
        facts = self._looked_at() if wanted else []
        for name in wanted:
            if facts and not any(name in fact for fact in facts):
                there = ", ".join(sorted({key for fact in facts for key in fact})) or "nothing"
                raise ValueError(
                    f"column {name!r}: none of the first {len(facts)} samples of "
                    f"{request.place.path} has it. Beside their pictures lies: {there}."
                )
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
            except (OSError, tarfile.TarError) as error:
                logger.warning("%s: not read to its end (%s)", file.path, error)
                self.skipped.append(file.path)
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
            size = picture.num_bytes
            uri = PictureUri(container.uri, "tar", picture.offset, size, picture.name)
            yield Listed(str(uri), size, container.mtime_ns, None, label, values, data=picture.data)

    def _looked_at(self) -> list[dict[str, Any]]:
        for file in self._tars():
            return [sample.facts for sample in islice(self._samples(file), SAMPLES_LOOKED_AT)]
        return []

    def _tars(self) -> Iterator[File]:
        return walk(self._request.place, frozenset([".tar"]), self.skipped)

    def _samples(self, file: File, beside: Collection[str] | None = None) -> Iterator[_Sample]:
        """Samples of a tar; one read through, and no more of it in memory than a sample.

        Args:
            file: the tar.
            beside: extensions that are read beside the pictures; None for all that can be.
        """
        with (
            self._request.place.fs.open_input_file(file.path) as raw,
            io.BufferedReader(raw, BUFFER_BYTES) as buffered,
            tarfile.open(fileobj=buffered, mode="r:") as tar,
        ):
            sample: _Sample | None = None
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined] # else it keeps all it has seen
                folder, slash, name = member.name.rpartition("/")
                if not member.isreg() or member.issparse() or name.startswith("."):
                    continue
                stem, _, extension = name.partition(".")
                key = f"{folder}{slash}{stem}"
                if sample is None or sample.key != key:
                    if sample is not None:
                        yield sample
                    sample = _Sample(key)
                self._take(sample, member, tar, extension.lower(), beside)
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
        extension: str,
        beside: Collection[str] | None,
    ) -> None:
        is_picture = suffix_of(member.name) in PICTURE_SUFFIXES
        is_asked = bool(extension) and (beside is None or extension in beside)
        if not is_picture and (not is_asked or member.size > MAX_SIDECAR_BYTES):
            return
        if is_picture and member.size > MAX_BYTES:
            sample.pictures.append(_Picture(member.name, member.offset_data, member.size, None))
            return
        opened = tar.extractfile(member)
        data = opened.read() if opened else b""
        if len(data) != member.size:
            raise tarfile.ReadError(f"{member.name}: ends after {len(data)} of {member.size} bytes")
        if is_picture:
            sample.pictures.append(_Picture(member.name, member.offset_data, member.size, data))
            return
        try:
            sample.take(extension, data)
        except ValueError as error:
            if beside is not None and extension not in self._unreadable:
                self._unreadable.add(extension)
                logger.warning(
                    "%s: left out, it cannot be read (%s). Others like it are not named.",
                    member.name,
                    error,
                )
