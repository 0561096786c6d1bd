"""Published predictions for the browser: by certainty to review, without folders to export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index.predictions import Predictions
from index.vectors import Ids

__all__ = ["NamedPredictions", "ReviewList"]


class NamedPredictions(Predictions):
    """Predictions whose ``uri`` is the file's name alone: folders stay on the server."""

    def iter_batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Stream the rows as Arrow record batches, by id."""
        for batch in super().iter_batches(columns):
            if "uri" not in batch.schema.names:
                yield batch
                continue
            names = pc.replace_substring_regex(batch["uri"], r"(?s)^.*/", "")
            yield batch.set_column(
                batch.schema.get_field_index("uri"), batch.schema.field("uri"), names
            )

    def export_parquet(self, sink: BinaryIO) -> None:
        """Write the rows as a Parquet file to an open binary file."""
        writer = None
        for batch in self.iter_batches():
            writer = writer or pq.ParquetWriter(sink, batch.schema, compression="zstd")
            writer.write_batch(batch)
        if writer is not None:
            writer.close()


@dataclass(frozen=True, slots=True)
class ReviewList:
    """All predictions of one index in memory, 16 bytes a picture, sorted by certainty.

    Args:
        id: identity of the predictions.
        ids: int64 [N], the least certain first.
        codes: int32 [N], positions in ``classes``.
        probabilities: float32 [N] of the predicted class, rising.
        classes: class names.
    """

    id: str
    ids: Ids
    codes: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    classes: tuple[str, ...]

    @classmethod
    def of(cls, predictions: Predictions) -> ReviewList:
        """Read the columns it needs and sort them."""
        table = pa.Table.from_batches(
            predictions.iter_batches(["id", "label", "probability"]),
            schema=pa.schema(
                [
                    pa.field("id", pa.int64(), nullable=False),
                    pa.field("label", pa.string(), nullable=False),
                    pa.field("probability", pa.float32(), nullable=False),
                ]
            ),
        )
        probabilities = table["probability"].to_numpy()
        order = np.argsort(probabilities, kind="stable")
        codes = pc.index_in(table["label"], value_set=pa.array(predictions.classes, pa.string()))
        return cls(
            id=predictions.id,
            ids=table["id"].to_numpy()[order],
            codes=codes.to_numpy().astype(np.int32)[order],
            probabilities=probabilities[order],
            classes=predictions.classes,
        )

    def rows(self, label: str | None, without: Ids) -> NDArray[np.intp]:
        """Positions of the pictures not in ``without``, of one predicted class or of all."""
        wanted = ~np.isin(self.ids, without)
        if label is not None:
            code = self.classes.index(label) if label in self.classes else -1
            wanted &= self.codes == code
        return np.flatnonzero(wanted)

    def describe(self, row: int) -> dict[str, Any]:
        """Id, predicted class and its probability at a position."""
        return {
            "id": int(self.ids[row]),
            "label": self.classes[self.codes[row]],
            "confidence": round(float(self.probabilities[row]), 6),
        }
