"""Predictions of a whole corpus: one Parquet file, its door, and exports.

Shapes: N rows of a batch, C classes.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from index.artifact import Verify, check_file, digest, library_versions, open_door, publish
from index.classifier import Classifier
from index.folder import Folder
from index.vector_sets import VectorSource
from index.vectors import Ids

__all__ = ["Predictions", "write_predictions"]

FORMULA = r"^[=+\-@\t\r\n]"
"""What spreadsheets take for the start of a formula (OWASP, "CSV Injection")."""

UrisOf = Callable[[Ids], Sequence[str]]


def write_predictions(
    folder: Folder,
    classifier: Classifier,
    source: VectorSource,
    uris_of: UrisOf,
    *,
    parents: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Classify every picture of a corpus, in batches, and publish the result.

    Columns: ``id``, ``uri``, ``label``, ``probability`` of that label, ``p_CLASS`` of each class.

    Args:
        folder: the predictions' folder.
        classifier: the classifier.
        source: the corpus's vectors.
        uris_of: the pictures' uris, for ids int64 [N].
        parents: identities to name beside the classifier's own, such as ``index_id``.

    Returns:
        The door ``predictions.json``; its ``rows`` counts the pictures of each class.

    Raises:
        EncoderMismatchError: the vectors are of another encoder or layer.
    """
    classifier.require_encoder(source.encoder_id, source.layer)
    all_parents = {**classifier.parents, "classifier_id": classifier.id, **(parents or {})}
    counts: Counter[str] = Counter(dict.fromkeys(classifier.classes, 0))
    name = f"predictions-{digest(all_parents)[:12]}.parquet"
    batches = _classified(classifier, source, uris_of, counts)
    record = folder.make().write_hashed(
        name, lambda path: _write_table(path, _schema(classifier.classes), batches)
    )
    body = {
        "id": digest({"parents": all_parents, "sha256": record["sha256"]}),
        "config": {"classes": list(classifier.classes)},
        "parents": all_parents,
        "rows": dict(counts),
        "versions": library_versions("pyarrow", "numpy"),
        "table": name,
    }
    door = publish(folder, "predictions", body, {name: record})
    folder.remove_others("predictions-", keep=[name])
    return door


def _classified(
    classifier: Classifier, source: VectorSource, uris_of: UrisOf, counts: Counter[str]
) -> Iterator[pa.RecordBatch]:
    for ids, vectors in source.iter_batches(8192):
        batch = _predict(classifier, ids, vectors, uris_of)
        counts.update(batch.column("label").to_pylist())
        yield batch


def _write_table(path: str, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)


def _schema(classes: Sequence[str]) -> pa.Schema:
    return pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("uri", pa.string()),
            pa.field("label", pa.string(), nullable=False),
            pa.field("probability", pa.float32(), nullable=False),
            *(pa.field(f"p_{name}", pa.float32(), nullable=False) for name in classes),
        ]
    )


def _predict(classifier: Classifier, ids: Ids, vectors: Any, uris_of: UrisOf) -> pa.RecordBatch:
    probabilities = classifier.predict_proba(vectors)
    best = probabilities.argmax(axis=1)
    labels = np.asarray(classifier.classes, dtype=object)[best]
    columns = [
        pa.array(ids),
        pa.array(list(uris_of(ids)), pa.string()),
        pa.array(labels, pa.string()),
        pa.array(probabilities[np.arange(len(best)), best]),
        *(pa.array(np.ascontiguousarray(column)) for column in probabilities.T),
    ]
    return pa.record_batch(columns, schema=_schema(classifier.classes))


class Predictions:
    """Published predictions, opened for reading.

    Attributes:
        classes: class names.
        counts: pictures of each predicted class.
        door: the whole door.
    """

    def __init__(self, folder: Folder, door: Mapping[str, Any]) -> None:
        self.folder = folder
        self.door = door
        self.id = str(door["id"])
        self.parents: dict[str, str] = dict(door["parents"])
        self.classes: tuple[str, ...] = tuple(door["config"]["classes"])
        self.counts: dict[str, int] = dict(door["rows"])
        self._name: str = door["table"]
        self._is_verified = False

    @classmethod
    def open(cls, folder: Folder, *, verify: Verify = "full") -> Predictions:
        """Open published predictions; see ``artifact.open_door`` for what is raised.

        Opened by ``sizes``, the table is compared with its sha256 before it is first read.
        """
        opened = cls(folder, open_door(folder, "predictions", verify=verify))
        opened._is_verified = verify == "full"
        return opened

    @contextlib.contextmanager
    def _table(self) -> Iterator[pa.NativeFile]:
        """The Parquet file, once it is known to be whole; ``CorruptArtifactError`` if it is not."""
        if not self._is_verified:
            check_file(self.folder, self._name, self.door["files"][self._name])
            self._is_verified = True
        with self.folder.fs.open_input_file(f"{self.folder.path}/{self._name}") as source:
            yield source

    def iter_batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Stream the rows as Arrow record batches, by id."""
        with self._table() as source:
            names = None if columns is None else list(columns)
            yield from pq.ParquetFile(source).iter_batches(8192, columns=names)

    def export_parquet(self, sink: BinaryIO) -> None:
        """Copy the Parquet file to an open binary file."""
        with self._table() as source:
            while piece := source.read(1 << 20):
                sink.write(piece)

    def export_csv(self, sink: BinaryIO) -> None:
        """Write all rows as UTF-8 CSV to an open binary file.

        A text cell that a spreadsheet would run as a formula (it starts with ``=``, ``+``, ``-``,
        ``@``, a tab or a line break) gets a leading ``'``. The Parquet export changes nothing.
        """
        with pcsv.CSVWriter(sink, _schema(self.classes)) as writer:
            for batch in self.iter_batches():
                writer.write_batch(_guarded(batch))


def _guarded(batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = [
        _guarded_text(column) if pa.types.is_string(column.type) else column
        for column in batch.columns
    ]
    return pa.record_batch(columns, schema=batch.schema)


def _guarded_text(column: pa.Array) -> pa.Array:
    risky = pc.match_substring_regex(column, FORMULA)
    return pc.if_else(risky, pc.binary_join_element_wise("'", column, ""), column)
