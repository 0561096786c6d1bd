"""Which pictures of a corpus somebody means: those of some files, those of which a filter holds.

The catalog is read in pieces, its newest part first: a row counts unless its id was met before.

Memory: a byte of each picture, the ids of one part, some rows, and the ids that are found.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.catalog import catalog_schema
from cluster.picture_uri import display_names
from cluster.workspace import Workspace
from index.artifact import by_number, open_door
from index.filters import compile_filter, filter_columns
from index.folder import Folder
from index.id_file import NO_IDS
from index.uri import real_path
from index.vectors import Ids

__all__ = ["ChosenPictures"]

BLOCK_ROWS = 16_384


@dataclass(frozen=True, slots=True)
class ChosenPictures:
    """Finds pictures in a published corpus.

    Args:
        folder: of the corpus.
        door: content of ``corpus.json``, checked against the files.
    """

    folder: Folder
    door: Mapping[str, Any]

    @classmethod
    def of_corpus(cls, workspace: Workspace, name: str) -> ChosenPictures:
        """Those of a workspace's corpus; raises the errors of `index.artifact.open_door`."""
        make = f"lookalike scan FOLDER --corpus {name}"
        folder = workspace.require("corpora", name, door="corpus.json", make=make)
        return cls(folder, open_door(folder, "corpus"))

    def where(self, text: str) -> Ids:
        """Ids of the pictures for which a filter is true, in any order.

        Raises:
            FilterError: see `index.filters.compile_filter`.
        """
        expression = compile_filter(text, self._schema)
        found = [
            rows.filter(expression)["id"].to_numpy()
            for rows in self._newest_rows(filter_columns(text))
        ]
        return np.concatenate([NO_IDS, *found])

    def of_files(self, names: Sequence[str]) -> Ids:
        """Ids of files, those that they had before they changed too, in any order.

        Args:
            names: whole paths or URIs, or their ends from a / on.

        Raises:
            ValueError: a name is of no file, or of several.
        """
        sought = [_Sought.of(name) for name in names]
        for rows in self._newest_rows({"uri"}):
            ids, uris = rows["id"].to_numpy(), rows["uri"]
            for each in sought:
                each.look_at(ids, uris)
        return np.concatenate([NO_IDS, *(each.found(self.door["name"]) for each in sought)])

    @property
    def _schema(self) -> pa.Schema:
        """The catalog's columns, and ``name``: each picture's own unless the source has one."""
        own = catalog_schema(self.door["config"])
        return own if "name" in own.names else own.append(pa.field("name", pa.string()))

    def _newest_rows(self, wanted: Collection[str]) -> Iterator[pa.Table]:
        """The newest row of each picture, some at a time: ``id`` and the columns wanted."""
        met = np.zeros(int(self.door["rows"]["total"]), np.bool_)
        for name in reversed(by_number(self.door["files"])):
            with self.folder.fs.open_input_file(f"{self.folder.path}/{name}") as source:
                file = pq.ParquetFile(source)
                ids = np.concatenate(
                    [NO_IDS, *(batch.column("id").to_numpy() for batch in _batches(file, ["id"]))]
                )
                is_newest = _is_last(ids) & ~met[ids]
                met[ids] = True
                read = {"id", *wanted, *(["uri"] if "name" in wanted else [])}
                there, start = [each for each in file.schema_arrow.names if each in read], 0
                for batch in _batches(file, there):
                    newest = is_newest[start : start + len(batch)]
                    start += len(batch)
                    if newest.any():
                        rows = pa.Table.from_batches([batch]).filter(pa.array(newest))
                        yield self._with_all(rows, wanted)

    def _with_all(self, rows: pa.Table, wanted: Collection[str]) -> pa.Table:
        """The rows with columns that their part lacks, since they joined the corpus later."""
        columns = {}
        for column in self._schema:
            if column.name not in ("id", *wanted):
                continue
            if column.name in rows.column_names:
                columns[column.name] = rows[column.name].cast(column.type)
            elif column.name == "name" and "name" not in catalog_schema(self.door["config"]).names:
                columns["name"] = display_names(rows["uri"])
            else:
                columns[column.name] = pa.nulls(len(rows), column.type)
        return pa.table(columns)


@dataclass(frozen=True, slots=True)
class _Matches:
    """Rows that may be those of one file.

    Args:
        ids: of the rows.
        places: their URIs; from the second on it is clear that they are not, and none is added.
    """

    ids: list[Ids] = field(default_factory=list)
    places: list[str] = field(default_factory=list)

    def add(self, ids: Ids, uris: pa.ChunkedArray, is_it: pa.ChunkedArray) -> None:
        """Take in what matches."""
        if len(self.places) > 1 or not pc.any(is_it).as_py():
            return
        self.ids.append(ids[is_it.to_numpy()])
        others = pc.unique(uris.filter(is_it)).slice(0, 3).to_pylist()
        self.places.extend(place for place in others if place not in self.places)


@dataclass(frozen=True, slots=True)
class _Sought:
    """A file that is looked for.

    Args:
        name: as it was given.
        wholes: what its URI is, if the name is a whole one.
        by_whole: rows of such a URI.
        by_end: rows whose URI ends with the name.
    """

    name: str
    wholes: pa.Array
    by_whole: _Matches = field(default_factory=_Matches)
    by_end: _Matches = field(default_factory=_Matches)

    @classmethod
    def of(cls, name: str) -> _Sought:
        """The file of a name."""
        return cls(name, pa.array([name, real_path(name)]))

    def look_at(self, ids: Ids, uris: pa.ChunkedArray) -> None:
        """Take in those of some rows that match."""
        self.by_whole.add(ids, uris, pc.is_in(uris, self.wholes))
        if not self.by_whole.places:
            self.by_end.add(ids, uris, pc.ends_with(uris, f"/{self.name.lstrip('/')}"))

    def found(self, corpus: str) -> Ids:
        """The file's ids, once all rows were looked at; ``ValueError`` if it is not one file."""
        matches = self.by_whole if self.by_whole.places else self.by_end
        places = matches.places
        if len(places) != 1:
            what = f"could be {places[0]} or {places[1]}" if places else "is in no row"
            raise ValueError(
                f"file {self.name!r}: {what} of corpus {corpus!r}. Give the whole path, or the id, "
                "as lookalike search shows them."
            )
        return np.concatenate(matches.ids)


def _is_last(ids: Ids) -> np.ndarray:
    """Which of the ids come no more behind: of equal ones the last.

    >>> _is_last(np.array([4, 7, 4])).tolist()
    [False, True, True]
    """
    if (np.diff(ids) > 0).all():
        return np.ones(len(ids), np.bool_)
    found = np.zeros(len(ids), np.bool_)
    found[len(ids) - 1 - np.unique(ids[::-1], return_index=True)[1]] = True
    return found


def _batches(file: pq.ParquetFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    # Without threads, whose pools keep tens of megabytes for as long as the process lives.
    yield from file.iter_batches(BLOCK_ROWS, columns=columns, use_threads=False)
