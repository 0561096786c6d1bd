"""Pictures in the rows of tables: Parquet files, and Hugging Face datasets on disk.

A picture is a column of bytes, or of structs ``{bytes, path}`` as Hugging Face stores them; where
such a row has a path alone, the picture is that file. Class numbers become class names.
"""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from cluster.file_source import fields_of, rows_of, stand_alone
from cluster.file_walk import File, look_at, require_readable, walk
from cluster.picture_bytes import BATCH_ROWS, column_of, open_arrow, open_parquet
from cluster.picture_uri import PictureUri, Place
from cluster.sources import Container, Ledger, Listed, Request

__all__ = ["HuggingFaceSource", "ParquetSource"]

logger = logging.getLogger(__name__)

NAMES = ["image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes"]
MAX_JSON_BYTES = 64 << 20
T = TypeVar("T")
DAMAGED = (OSError, pa.ArrowException, ValueError)


class _Table(NamedTuple):
    """A file of rows, and what every row of it shares: its split, the names of class numbers."""

    file: File
    split: str | None = None
    class_names: Mapping[str, list[str]] = MappingProxyType({})


class _TableSource(ABC):
    """What tables of both formats share.

    Args:
        request: what is asked for.
        kind: how the files are read.
    """

    def __init__(self, request: Request, kind: Any) -> None:
        self.skipped: dict[str, str] = {}
        self._request, self._kind = request, kind
        self._misfits: set[str] = set()
        first = self._first_batch()
        self._picture = request.picture_column or self._recognised(first.schema)
        picture = column_of(first, self._picture)
        self._is_struct = pa.types.is_struct(picture.type)
        if not _is_picture(picture.type):
            raise ValueError(
                f"picture_column {self._picture!r}: {picture.type} holds no pictures. Allowed are "
                "bytes and structs of bytes and path. Give another of "
                f"{', '.join(first.schema.names)}."
            )
        if request.labels == "folder":
            raise ValueError(
                "labels 'folder': the rows of a table lie in no folder. Give a column of "
                f"{', '.join(first.schema.names)}, or none."
            )
        self.fields = fields_of(first, request)
        names = [column.source for column in request.columns]
        names += [request.labels] if request.labels != "none" else []
        self._wanted = [self._picture, *names]

    def listed(self, ledger: Ledger) -> Iterator[Listed]:
        """All rows, file by file."""
        place = self._request.place
        for table in self._tables():
            file = table.file
            container = Container(place.uri(file.path), file.bytes or 0, file.mtime_ns)
            if ledger.is_unchanged(container):
                continue
            try:
                names_files = yield from self._rows(table, container)
            except DAMAGED as error:
                logger.warning("%s: not read to its end (%s)", file.path, error)
                self.skipped[file.path] = str(error)
            else:
                # Files that it names may change while it does not: it is read each time, as a list.
                if not names_files:
                    ledger.has_read(container)

    def _rows(self, table: _Table, container: Container) -> Generator[Listed, None, bool]:
        """Its pictures; returns whether any of them is a file of its own."""
        names_files = False
        place = self._request.place._replace(path=table.file.path)
        name = f"{self._picture}.bytes" if self._is_struct else self._picture
        for first, raw in self._batches(table, self._wanted):
            batch = self._named(raw, table)
            facts = rows_of(batch, self._request, self.fields, place.path, self._misfits)
            pictures = column_of(batch, name).to_pylist()
            beside = self._beside(batch, pictures, place)
            names_files |= any(isinstance(found, Listed) for found in beside.values())
            for position, (data, fact) in enumerate(zip(pictures, facts, strict=True)):
                uri = PictureUri(container.uri, self._kind, first + position, 0, name)
                row = Listed(str(uri), len(data or b""), container.mtime_ns, data=data or b"")
                found = beside.get(position, row)
                file = row._replace(problem=found) if isinstance(found, str) else found
                yield file._replace(label=fact[0], values=fact[1:])
        return names_files

    def _beside(
        self, batch: pa.RecordBatch, pictures: list[bytes | None], place: Place
    ) -> dict[int, Listed | str]:
        """Pictures that are files of their own, by position: rows with a path in place of bytes.

        A text in place of one says why a path leads to none.
        """
        if not self._is_struct or all(pictures):
            return {}
        if "path" not in [field.name for field in column_of(batch, self._picture).type]:
            return {}
        paths = pc.cast(column_of(batch, f"{self._picture}.path"), pa.string()).to_pylist()
        alone = [
            i
            for i, (data, path) in enumerate(zip(pictures, paths, strict=True))
            if not data and path
        ]
        return dict(zip(alone, stand_alone([paths[i] for i in alone], place), strict=True))

    def _named(self, batch: pa.RecordBatch, table: _Table) -> pa.RecordBatch:
        """The batch with class numbers replaced by their names, and its split as a column."""
        for column, names in table.class_names.items():
            if column in batch.schema.names:
                numbers = column_of(batch, column)
                known = pc.if_else(
                    pc.and_(pc.greater_equal(numbers, 0), pc.less(numbers, len(names))),
                    numbers,
                    None,
                )
                values = pc.take(pa.array(names, pa.string()), known)
                batch = batch.set_column(batch.schema.names.index(column), column, values)
        if table.split is not None and "split" not in batch.schema.names:
            batch = batch.append_column("split", pa.array([table.split] * len(batch), pa.string()))
        return batch

    def _first_batch(self) -> pa.RecordBatch:
        """Of the first table that can be read; the others are told of as they are listed."""
        place = self._request.place
        damaged: tuple[str, Exception] | None = None
        for table in self._tables():
            try:
                for _, batch in self._batches(table, None):
                    return self._named(batch, table)
            except DAMAGED as error:
                damaged = damaged or (table.file.path, error)
        if damaged is not None:
            path, reason = damaged
            # An object store that cannot be reached is told of as such by who asked.
            kind = OSError if isinstance(reason, OSError) else ValueError
            raise kind(
                f"{path}: cannot be read ({reason}), and no other file in {place.path} has rows. "
                "Repair or replace it, and scan again."
            ) from reason
        raise ValueError(
            f"{place.path}: no rows in here. Give a folder with Parquet files, or a dataset that "
            "was saved by save_to_disk."
        )

    def _recognised(self, schema: pa.Schema) -> str:
        fit = [field.name for field in schema if _is_picture(field.type)]
        named = [name for name in fit if name.lower() in NAMES]
        for names in (named, fit):
            if len(names) == 1:
                return str(names[0])
        raise ValueError(
            f"{self._request.place.path}: {len(fit)} of its columns hold bytes, out of "
            f"{', '.join(schema.names)}. Say which has the pictures by --picture-column; if one "
            "has their paths, scan the Parquet file with --source-kind list."
        )

    def _batches(
        self, table: _Table, columns: list[str] | None
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        # Opening a pipe would wait for whoever writes into it, maybe for ever.
        require_readable(table.file)
        place = self._request.place._replace(path=table.file.path)
        if self._kind == "parquet":
            return open_parquet(place, columns)
        return _small(open_arrow(place))

    @abstractmethod
    def _tables(self) -> Iterator[_Table]:
        """The tables at the place, one after the other."""


def _small(
    batches: Iterator[tuple[int, pa.RecordBatch]],
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The same cut into batches of few rows."""
    for first, batch in batches:
        for start in range(0, len(batch), BATCH_ROWS):
            yield first + start, batch.slice(start, BATCH_ROWS)


def _is_picture(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        names = [field.name for field in kind]
        return "bytes" in names and _is_picture(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


class ParquetSource(_TableSource):
    """Rows of the Parquet files of a folder, sub-folders included, or of one file."""

    def __init__(self, request: Request) -> None:
        super().__init__(request, "parquet")

    def _tables(self) -> Iterator[_Table]:
        for file in walk(self._request.place, frozenset([".parquet"]), self.skipped):
            yield _Table(file)


class HuggingFaceSource(_TableSource):
    """A dataset that Hugging Face's ``save_to_disk`` wrote, or several splits of one.

    Raises:
        ValueError: no such dataset, or one that is a selection of the rows in its files.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._features: dict[str, Any] = {}
        for _, place in self._splits():
            self._features |= _features(place)
        pictures = [
            name
            for name, kind in self._features.items()
            if isinstance(kind, dict) and kind.get("_type") == "Image"
        ]
        if request.picture_column is None and len(pictures) == 1:
            request = Request(request.place, request.labels, request.columns, pictures[0])
        super().__init__(request, "arrow")

    def _splits(self) -> Iterator[tuple[str | None, Place]]:
        place = self._request.place
        splits = _json(place, "dataset_dict.json", _split_names)
        if splits is None:
            yield None, place
        for split in splits or ():
            yield split, place._replace(path=f"{place.path}/{split}")

    def _tables(self) -> Iterator[_Table]:
        for split, place in self._splits():
            state = _json(place, "state.json", _with_file_names)
            if "_data_files" not in state and split is not None:
                reason = "a split without a state.json that names its files"
                if place.path not in self.skipped:
                    logger.warning("%s: not read (%s)", place.path, reason)
                self.skipped[place.path] = reason
            if state.get("_indices_data_files"):
                raise ValueError(
                    f"{place.path}: holds a selection of the rows in its files. Save it once more "
                    "after flatten_indices()."
                )
            names = {
                name: [str(one) for one in kind["names"]]
                for name, kind in (_features(place) or self._features).items()
                if isinstance(kind, dict)
                and kind.get("_type") == "ClassLabel"
                and isinstance(kind.get("names"), list)
            }
            for name in state.get("_data_files", ()):
                for file in look_at(place, [f"{place.path}/{name}"]):
                    yield _Table(file, split, names)


def _features(place: Place) -> dict[str, Any]:
    """What a split states of its columns."""
    return _json(place, "dataset_info.json", lambda info: dict(info.get("features") or {}))


def _split_names(splits: dict[str, Any]) -> list[str] | None:
    return [str(name) for name in splits["splits"]] if "splits" in splits else None


def _with_file_names(state: dict[str, Any]) -> dict[str, Any]:
    """The state with the names of its files in place of what it says of each."""
    if "_data_files" not in state:
        return state
    return {**state, "_data_files": [str(entry["filename"]) for entry in state["_data_files"]]}


def _json(place: Place, name: str, read: Callable[[dict[str, Any]], T]) -> T:
    """What is read from a JSON object of the dataset; an empty one when the file is not there."""
    path = f"{place.path}/{name}"
    if not place.fs.get_file_info(path).is_file:
        return read({})
    with place.fs.open_input_stream(path) as stream:
        content = stream.read(MAX_JSON_BYTES)
    try:
        return read(dict(json.loads(content)))
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: no JSON object as save_to_disk writes it ({error!r}). Save the dataset again "
            "with save_to_disk."
        ) from error
