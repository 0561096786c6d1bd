"""Pictures that are files of their own: those of a folder, and those that a list names.

A list is a text file with a path a line, a CSV file or a Parquet file with a column of paths.
Paths are taken from the folder of the list on; those that begin with ``/`` or a scheme stand alone.
"""

from __future__ import annotations

import hashlib
import logging
import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from cluster.columns import TYPES, Column, carried_type, converted, fitting
from cluster.file_walk import PICTURE_SUFFIXES, File, look_at, suffix_of, walk
from cluster.picture_bytes import column_of, open_parquet
from cluster.picture_uri import Place, place_of, require_no_keys
from cluster.sources import Ledger, Listed, Request
from index.uri import shown_uri

__all__ = [
    "PATH_COLUMNS",
    "FolderSource",
    "ListSource",
    "fields_of",
    "folder_of",
    "rows_of",
    "stand_alone",
]

logger = logging.getLogger(__name__)

PATH_COLUMNS = [
    "path",
    "file",
    "file_name",
    "filename",
    "file_path",
    "filepath",
    "uri",
    "url",
    "image",
    "image_path",
    "picture",
]
BATCH_ROWS = 1024
CSV_BLOCK_BYTES = 1 << 20
LABEL = pa.field("label", TYPES["string"])
# Whole numbers pass as floats too: the first that fits is meant.
NARROW = [TYPES[name] for name in ("int", "float", "bool", "timestamp")]


class FolderSource:
    """Picture files below a folder, sub-folders included.

    Raises:
        ValueError: labels or columns are asked for that no folder has.
    """

    def __init__(self, request: Request) -> None:
        self.fields: tuple[pa.Field, ...] = ()
        self.skipped: dict[str, str] = {}
        self._request = request
        if request.columns or request.labels not in ("none", "folder"):
            asked = request.columns[0].source if request.columns else request.labels
            raise ValueError(
                f"column {asked!r}: a folder of pictures has no columns. Allowed are --labels none "
                "and folder, without --columns. Scan a list (.csv) with these columns in its place."
            )

    def listed(self, _: Ledger) -> Iterator[Listed]:
        """All picture files, by folder and name."""
        place = self._request.place
        for file in walk(place, PICTURE_SUFFIXES, self.skipped):
            label = None
            if self._request.labels == "folder":
                label = folder_of(file.path, below=place.path)
            yield _listed(place, file, label)


def _listed(place: Place, file: File, label: str | None = None) -> Listed:
    return Listed(
        place.picture_uri(file.path),
        file.bytes,
        file.mtime_ns,
        file.problem,
        label,
        is_missing=file.is_missing,
    )


def folder_of(path: str, *, below: str = "") -> str | None:
    """Name of the folder that a file lies in; None for one that lies in ``below`` itself.

    >>> folder_of("/pictures/cats/a.png", below="/pictures")
    'cats'
    """
    folder = path.rpartition("/")[0]
    return folder.rpartition("/")[2] or None if folder != below else None


class ListSource:
    """Files that a list names, with its columns.

    Raises:
        ValueError: no column of paths, a column that is not there or of a type that is not carried.
    """

    def __init__(self, request: Request) -> None:
        self.skipped: dict[str, str] = {}
        self._request = request
        self._named: set[str] = set()
        first = next(self._batches(), None)
        if first is None:
            raise ValueError(f"{request.place.path}: names no picture. Write a path on each line.")
        self._path = _path_column(request, first.schema)
        self.fields = fields_of(first, request)
        if suffix_of(request.place.path) != ".parquet":
            kinds = self._infer([column.source for column in request.columns if not column.type])
            self.fields = tuple(
                pa.field(column.name, column.type or kinds[column.source])
                for column in request.columns
            )

    def listed(self, _: Ledger) -> Iterator[Listed]:
        """All files named, in the order of the list."""
        labels = self._request.labels
        for batch in self._batches():
            names = column_of(batch, self._path).cast(pa.string()).to_pylist()
            rows = rows_of(batch, self._request, self.fields, self._request.place.path, self._named)
            for name, found, row in zip(
                names, stand_alone(names, self._request.place), rows, strict=True
            ):
                label = self._folder_named(name or "") if labels == "folder" else row[0]
                file = self._in_its_place(name, found) if isinstance(found, str) else found
                yield file._replace(label=label, values=row[1:])

    def _folder_named(self, name: str) -> str | None:
        """Name of the folder that a listed file lies in; None for one beside the list."""
        if "://" in name:
            return folder_of(_normal(unquote(name.partition("?")[0])))
        if name.startswith("/"):
            return folder_of(_normal(name))
        folder = self._request.place.path.rpartition("/")[0]
        return folder_of(posixpath.normpath(f"{folder}/{name}"), below=folder)

    def _in_its_place(self, name: str | None, problem: str) -> Listed:
        """What stands for a name that leads to no file: without what might be a key."""
        if not name:
            return Listed(f"{self._request.place.path.rpartition('/')[0]}/", None, None, problem)
        shown = shown_uri(name).partition("#")[0]
        # Names that differ in what was cut off are of different pictures.
        cut = "" if shown == name else f"?{hashlib.sha256(name.encode()).hexdigest()[:12]}"
        return Listed(f"{shown}{cut}", None, None, problem)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        place = self._request.place
        try:
            if suffix_of(place.path) != ".parquet":
                yield from _text_batches(place)
                return
            for _, batch in open_parquet(place, None, batch_rows=BATCH_ROWS):
                yield batch
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"{place.path}: no list that can be read ({error}). Allowed are UTF-8 text with a "
                "path a line, CSV with a header, and Parquet. Correct the file."
            ) from error

    def _infer(self, names: list[str]) -> dict[str, pa.DataType]:
        """The narrowest types that hold every cell of a text."""
        kinds = {name: [*NARROW] for name in names}
        filled: set[str] = set()
        digits = set(names)
        for batch in self._batches() if names else ():
            for name in names:
                cells = column_of(batch, name)
                kinds[name] = [kind for kind in kinds[name] if _holds(cells, kind)]
                filled |= {name} if cells.null_count < len(cells) else set()
                digits -= set() if _are_digits(cells) else {name}
        for name in digits:
            # As floats, numbers that are too long for integers would equal their neighbours.
            kinds[name] = [kind for kind in kinds[name] if not pa.types.is_floating(kind)]
        return {
            name: kinds[name][0] if kinds[name] and name in filled else pa.string()
            for name in names
        }


def fields_of(first: pa.RecordBatch, request: Request) -> tuple[pa.Field, ...]:
    """Names and types of the metadata columns, by a first batch of what they are taken from.

    Raises:
        ValueError: a label or column that is not there, or of a type that is not carried.
    """
    if request.labels not in ("none", "folder"):
        label = Column("label", request.labels, LABEL.type)
        carried_type(label, column_of(first, request.labels).type)
    try:
        cells = [column_of(first, column.source) for column in request.columns]
    except ValueError as error:
        raise ValueError(
            f"{request.place.path}: {error} A scan asks for the columns of the one before unless "
            '--columns names others; --columns "" is for none.'
        ) from error
    return tuple(
        pa.field(column.name, carried_type(column, found.type))
        for column, found in zip(request.columns, cells, strict=True)
    )


def rows_of(
    batch: pa.RecordBatch,
    request: Request,
    fields: tuple[pa.Field, ...],
    path: str,
    named: set[str],
) -> list[tuple[Any, ...]]:
    """Label and metadata of each row of a batch; None for what is not there or does not fit.

    Args:
        batch: rows of a table.
        request: which columns are asked for.
        fields: names and types of the metadata columns.
        path: of the table, for a warning.
        named: columns with a value that does not fit, of which the first has been named.
    """
    columns: list[list[Any]] = [[None] * len(batch)] if request.labels in ("none", "folder") else []
    wanted = [] if columns else [(request.labels, LABEL)]
    wanted += [
        (column.source, field) for column, field in zip(request.columns, fields, strict=True)
    ]
    for source, field in wanted:
        cells, reason = fitting(column_of(batch, source), field)
        columns.append(cells)
        if reason is not None and field.name not in named:
            named.add(field.name)
            logger.warning(
                "%s: column %r: left empty where it is no %s (%s). Others like it are not named.",
                path,
                source,
                field.type,
                reason,
            )
    return list(zip(*columns, strict=True))


def _holds(cells: pa.Array, kind: pa.DataType) -> bool:
    try:
        converted(cells, pa.field("cells", kind))
    except ValueError:
        return False
    return True


def _are_digits(cells: pa.Array) -> bool:
    return bool(pc.all(pc.match_substring_regex(cells, r"^\s*[+-]?\d+\s*$"), min_count=0).as_py())


def _text_batches(place: Place) -> Iterator[pa.RecordBatch]:
    """Cells as text; an empty one is null. A ``.txt`` is one column, ``path``, without a header."""
    is_plain = suffix_of(place.path) == ".txt"
    reading = {
        "read_options": pa_csv.ReadOptions(
            block_size=CSV_BLOCK_BYTES, column_names=["path"] if is_plain else None
        ),
        "parse_options": pa_csv.ParseOptions(
            delimiter="\x1f" if is_plain else ",",
            quote_char=False if is_plain else '"',
            newlines_in_values=not is_plain,
        ),
    }
    with place.fs.open_input_stream(place.path) as stream:
        names = pa_csv.open_csv(stream, **reading).schema.names
    as_text = pa_csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        null_values=[""],
        strings_can_be_null=True,
    )
    with place.fs.open_input_stream(place.path) as stream:
        yield from pa_csv.open_csv(stream, **reading, convert_options=as_text)


def _path_column(request: Request, schema: pa.Schema) -> str:
    if request.picture_column is not None:
        if request.picture_column not in schema.names:
            raise ValueError(
                f"picture_column {request.picture_column!r}: not in {request.place.path}, whose "
                f"columns are {', '.join(schema.names)}. Give one of them."
            )
        return request.picture_column
    known = [name for name in schema.names if name.lower() in PATH_COLUMNS]
    if len(known) != 1:
        found = "several could name the pictures" if known else "none names the pictures"
        raise ValueError(
            f"{request.place.path}: of its columns {', '.join(schema.names) or '(none)'} {found}. "
            "Say which by --picture-column."
        )
    return str(known[0])


def _with_options(name: str, beside: Place) -> str:
    """A URI that states no options takes those of the list, if that lies in such a store too."""
    scheme, _, options = beside.base.partition("?")
    return f"{name}?{options}" if options and name.startswith(scheme) and "?" not in name else name


def _normal(path: str) -> str:
    """A whole path with no step that leads nowhere; ``..`` may follow a link, and stays.

    >>> _normal("//pictures/./cats//a.png")
    '/pictures/cats/a.png'
    """
    return re.sub(r"/(?:\.?/)+", "/", path)


def stand_alone(names: Sequence[str | None], beside: Place) -> list[Listed | str]:
    """The files that a list names; a text in place of one says why a name leads to none.

    Args:
        names: paths and URIs; relative ones are taken from the folder of ``beside`` on.
        beside: the list.
    """
    folder = beside.path.rpartition("/")[0]
    found: list[Listed | str] = ["The list names no file here."] * len(names)
    asked: dict[str, tuple[Place, list[int], list[str]]] = {}
    for position, name in enumerate(names):
        if not name:
            continue
        whole = "://" in name or name.startswith("/")
        try:
            place = place_of(_with_options(require_no_keys(name), beside)) if whole else beside
        except ValueError as error:  # one row in a million must not cost the others
            found[position] = str(error)
            continue
        _, positions, paths = asked.setdefault(place.base, (place, [], []))
        positions.append(position)
        if whole:
            paths.append(_normal(place.path) if place.is_local else place.path)
        else:
            paths.append(posixpath.normpath(f"{folder}/{name}"))
    for place, positions, paths in asked.values():
        for position, file in zip(positions, look_at(place, paths), strict=True):
            found[position] = _listed(place, file)
    return found
