"""Labels from a CSV file: each row becomes an event of the label log, or names what is wrong.

The header has ``label``, and ``file`` or ``id`` or both. A file is given as it was scanned,
relative to here, or relative to the corpus' folder.

Memory: what the CSV holds, and 5 bytes for each picture of the corpus.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.catalog import GONE, Catalog
from index.artifact import digest
from index.label_name import label_name
from index.labels import LabelEvent

__all__ = ["read_label_csv"]

COLUMNS = ("file", "id", "label")
GUARDED = re.compile(r"^'(?=[=+\-@])")
"""How a label begins that an exported CSV keeps spreadsheets from running."""


def read_label_csv(path: Path, user: str, catalog: Catalog) -> list[LabelEvent]:
    """The label events of a CSV file.

    An event's op_id covers the file's content and the line, so that the log takes the same file's
    rows once, and those of a file that was edited or only has the same name as new events.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8 or no CSV, or a line names no picture of the corpus or no label.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file. Give a CSV file with the columns file (or id) and label."
        )
    data = path.read_bytes()
    content = hashlib.sha256(data).hexdigest()
    rows = _rows(path, _decoded(path, data))
    pictures = _Pictures(catalog, {row["file"] for _, row in rows if row.get("file")})
    events = []
    for line, row in rows:
        where = f"{path}, line {line}"
        picture, label = pictures.find(row, where), _label(row, where)
        identity = [catalog.uid, user, content, line, picture, label]
        events.append(
            LabelEvent(
                user=user,
                corpus_uid=catalog.uid,
                picture_id=picture,
                label=label,
                source="import",
                op_id=digest(identity)[:40],
                gesture=f"import-{content[:40]}",
            )
        )
    return events


def _decoded(path: Path, data: bytes) -> str:
    try:
        text, bad = data.decode("utf-8-sig"), data.find(0)
    except UnicodeDecodeError as error:
        text, bad = "", error.start
    if bad >= 0:
        line = data.count(b"\n", 0, bad) + 1
        raise ValueError(
            f"{path}, line {line}: byte {data[bad]:#04x} is not of a text in UTF-8, the only "
            "encoding read here. Save the table again as CSV UTF-8."
        )
    return text


def _rows(path: Path, text: str) -> list[tuple[int, dict[str, str]]]:
    """(line number, cells by column) of each row that is not empty."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        names = [name.strip().lower() for name in reader.fieldnames or ()]
        if "label" not in names or not {"file", "id"} & set(names) or len(set(names)) < len(names):
            raise ValueError(
                f"{path}, line 1: columns are {', '.join(names) or 'missing'}. There have to be "
                "label, and file or id, each once. Give the file a header such as: file,label"
            )
        reader.fieldnames = names
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{path}, line {reader.line_num}: has {'more' if None in row else 'fewer'} "
                    f"cells than the header has columns, {len(names)}. Put cells that hold a comma "
                    "into double quotes."
                )
            rows.append(
                (reader.line_num, {name: row[name].strip() for name in COLUMNS & row.keys()})
            )
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num}: no CSV ({error}). Allowed are cells between commas, "
            "in double quotes where they hold one. Correct the line."
        ) from error
    return rows


def _label(row: dict[str, str], where: str) -> str:
    try:
        return label_name(GUARDED.sub("", row["label"], count=1))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


class _Pictures:
    """Finds the pictures of a corpus by id and by file.

    Args:
        catalog: the corpus.
        files: all that will be asked for.
    """

    def __init__(self, catalog: Catalog, files: Iterable[str]) -> None:
        self._name = catalog.door["name"]
        self._folder = Path(catalog.door["config"]["folder"])
        self._ids = catalog.table["id"].to_numpy()
        self._uris = {file: self._uris_of(file) for file in files}
        self._by_uri = _living(catalog, {uri for uris in self._uris.values() for uri in uris})

    def _uris_of(self, file: str) -> tuple[str, ...]:
        """How a catalog may call a file, the likeliest first."""
        path = Path(file)
        return (file, str(path.absolute()), str(path.resolve()), str(self._folder / path))

    def find(self, row: dict[str, str], where: str) -> int:
        """The picture that a row names."""
        number, file = row.get("id", ""), row.get("file", "")
        if not number and not file:
            raise ValueError(f"{where}: names no picture. Fill in the file or the id.")
        found = {self._of_id(number, where)} if number else set()
        if file:
            found.add(self._of_file(file, where))
        if len(found) > 1:
            raise ValueError(
                f"{where}: id {number} and file {file!r} are two pictures of corpus "
                f"{self._name!r}. Correct one of them, or leave a column out."
            )
        return found.pop()

    def _of_id(self, text: str, where: str) -> int:
        if not re.fullmatch("[0-9]{1,18}", text):
            raise ValueError(
                f"{where}: id {text!r} is no whole number. Ids are those of `lookalike search` and "
                "of exported predictions; give one of them, or a file in the column file."
            )
        position = int(np.searchsorted(self._ids, int(text)))
        if position == len(self._ids) or self._ids[position] != int(text):
            raise ValueError(
                f"{where}: id {text} is no picture of corpus {self._name!r}, whose ids are 0 to "
                f"{self._ids[-1]}. Give one of them, or a file in the column file."
            )
        return int(text)

    def _of_file(self, text: str, where: str) -> int:
        for uri in self._uris[text]:
            if uri in self._by_uri:
                return self._by_uri[uri]
        raise ValueError(
            f"{where}: {text!r} is no picture of corpus {self._name!r}. Give paths as they were "
            f"scanned, or below {self._folder}; pictures that are new there need a scan first."
        )


def _living(catalog: Catalog, uris: Iterable[str]) -> dict[str, int]:
    """Ids of those pictures that were there at the last scan, by URI; one pass over all URIs."""
    # A folder whose name is no UTF-8 is in no catalog.
    wanted = pa.array([uri for uri in uris if uri.isascii() or _is_utf8(uri)], pa.string())
    place = pc.index_in(catalog.table["uri"], value_set=wanted)
    gone = pc.is_in(catalog.table["status"], value_set=pa.array(GONE))
    there = pc.and_(pc.is_valid(place), pc.invert(gone))
    found = wanted.take(place.filter(there).combine_chunks())
    return dict(zip(found.to_pylist(), catalog.table["id"].filter(there).to_pylist(), strict=True))


def _is_utf8(text: str) -> bool:
    return text.encode(errors="replace").decode() == text
