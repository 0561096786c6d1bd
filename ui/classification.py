"""What the Classify tab does: train and predict in the background, report, review and export."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, Literal

from cluster.classify_job import train_and_predict
from cluster.collection import Collection
from index.artifact import ArtifactError, MissingArtifactError
from index.classifier import Classifier
from index.labels import LabelSnapshot
from index.predictions import Predictions
from ui.labelling import Labelling
from ui.predicted import NamedPredictions, ReviewList
from ui.session import Session, check_page, shown_name

__all__ = ["Classification", "Download"]

logger = logging.getLogger(__name__)

HEADS = {"prototypes": "class means", "logistic": "logistic regression"}
MEDIA_TYPES = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}
PIECE_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Download:
    """A file to send: its name and type, and its content piece by piece."""

    file_name: str
    media_type: str
    pieces: Iterator[bytes]


class Classification:
    """Classifiers and predictions of a workspace, one of each per index. Thread-safe.

    Training runs in a thread of the server, not of a request: it goes on when the tab is closed,
    and what it publishes is found by the next one.
    """

    def __init__(self, session: Session, labelling: Labelling) -> None:
        self._session = session
        self._labelling = labelling
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="classify")
        self._jobs: dict[str, Future[None]] = {}
        self._reviews: dict[str, ReviewList] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Wait for the training that runs; what waits behind it is dropped."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def start(self, name: str) -> dict[str, Any]:
        """Begin to train and predict, unless that is going on already; returns the status.

        Raises:
            ValueError: there are labels of fewer than two classes.
        """
        collection = self._session.collection(name)
        num_classes = len(set(self._labelling.snapshot(collection).labels))
        if num_classes < 2:
            raise ValueError(
                f"index {name!r}: its pictures have labels of {num_classes} classes, and a "
                "classifier needs at least 2. Label some pictures in the Label tab first."
            )
        with self._lock:
            job = self._jobs.get(name)
            if job is None or job.done():
                self._jobs[name] = self._executor.submit(self._train, name)
        return self.status(name)

    def _train(self, name: str) -> None:
        try:
            collection = self._session.collection(name)
            snapshot = self._labelling.snapshot(collection)
            train_and_predict(collection, snapshot, self._session.workspace)
        except Exception:
            logger.exception("training on %s failed", name)
            raise

    def status(self, name: str) -> dict[str, Any]:
        """State of training, and the classifier in service with its accuracy and counts."""
        collection = self._session.collection(name)
        snapshot = self._labelling.snapshot(collection)
        num_classes = len(set(snapshot.labels))
        job = self._jobs.get(name)
        state = "idle" if job is None else "done" if job.done() else "running"
        error = job.exception() if job is not None and job.done() else None
        if error is not None:
            state = "failed"
        found = self._published(collection)
        trained_on = found[0].parents["label_snapshot_id"] if found else None
        return {
            "state": state,
            "error": _sentence(error) if error else None,
            "can_train": num_classes >= 2,
            "message": _message(state, snapshot, trained_on),
            "classifier": _described(*found) if found else None,
        }

    def _published(self, collection: Collection) -> tuple[Classifier, NamedPredictions] | None:
        """Classifier and predictions that fit this index, or None before the first training."""
        workspace = self._session.workspace
        try:
            folder = workspace.folder("predictions", collection.name)
            predictions = NamedPredictions(folder, Predictions.open(folder, verify="sizes").door)
            classifier = Classifier.open_named(
                workspace.folder("classifiers", collection.name),
                predictions.parents["classifier_id"],
            )
        except MissingArtifactError:
            return None
        except ArtifactError as error:
            logger.warning("%s; training again replaces it", error)
            return None
        if predictions.parents["index_id"] != collection.searcher.id:
            return None
        return classifier, predictions

    def _predictions(self, collection: Collection) -> NamedPredictions:
        found = self._published(collection)
        if found is None:
            raise MissingArtifactError(
                f"index {collection.name!r}: nothing is predicted yet for its present version. "
                "Train in the Classify tab, or POST /v1/classify."
            )
        return found[1]

    def page(self, name: str, *, label: str | None, offset: int, count: int) -> dict[str, Any]:
        """Predictions of pictures without a label, the least certain first.

        Args:
            name: the index.
            label: only those predicted to be of this class.
            offset: how many to pass over.
            count: how many to return.

        Raises:
            MissingArtifactError: nothing is predicted yet.
        """
        collection = self._session.collection(name)
        predictions = self._predictions(collection)
        with self._lock:
            review = self._reviews.get(name)
            if review is None or review.id != predictions.id:
                review = ReviewList.of(predictions)
                self._reviews[name] = review
        labelled = self._labelling.snapshot(collection).ids
        rows = review.rows(label, labelled)
        shown = rows[offset : offset + check_page(count)]
        names = [shown_name(row) for row in collection.catalog.rows(review.ids[shown])]
        pictures = [
            {**review.describe(row), "name": picture_name}
            for row, picture_name in zip(shown, names, strict=True)
        ]
        return {"pictures": pictures, "total": len(rows)}

    def export(self, name: str, format: Literal["csv", "parquet"]) -> Download:
        """All predictions as a file, with file names in place of their folders.

        Raises:
            MissingArtifactError: nothing is predicted yet.
        """
        predictions = self._predictions(self._session.collection(name))
        spool = tempfile.TemporaryFile()  # noqa: SIM115 - `_pieces` closes it
        write = predictions.export_csv if format == "csv" else predictions.export_parquet
        write(spool)
        spool.seek(0)
        return Download(f"{name}-predictions.{format}", MEDIA_TYPES[format], _pieces(spool))


def _pieces(spool: IO[bytes]) -> Iterator[bytes]:
    with spool:
        while piece := spool.read(PIECE_BYTES):
            yield piece


def _message(state: str, snapshot: LabelSnapshot, trained_on: str | None) -> str:
    if state == "running":
        return "Training, then predicting every picture. You may close the page."
    if len(set(snapshot.labels)) < 2:
        return "Label pictures of at least two classes first, in the Label tab."
    if trained_on is None:
        return f"{len(snapshot.labels)} labels are ready."
    if trained_on == snapshot.snapshot_id:
        return f"Up to date with all {len(snapshot.labels)} labels."
    return "The labels have changed since the last training."


def _sentence(error: BaseException) -> str:
    if isinstance(error, ValueError | OSError):
        return str(error)
    return f"Training failed: {type(error).__name__}. The server's log says more. Train again."


def _described(classifier: Classifier, predictions: NamedPredictions) -> dict[str, Any]:
    accuracy = classifier.accuracy.accuracy
    return {
        "id": predictions.id,
        "head": HEADS[classifier.head.kind],
        "encoder_id": classifier.parents["encoder_id"],
        "num_labels": sum(classifier.num_labels.values()),
        "num_classes": len(classifier.classes),
        "rows": sum(predictions.counts.values()),
        "accuracy_text": classifier.accuracy.text,
        "accuracy": accuracy
        and {
            "estimate": accuracy.value,
            "low": accuracy.low,
            "high": accuracy.high,
            "n": accuracy.n,
        },
        "classes": [
            {
                "name": item,
                "labels": classifier.num_labels.get(item, 0),
                "predicted": predictions.counts.get(item, 0),
            }
            for item in classifier.classes
        ],
    }
