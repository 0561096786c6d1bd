"""classify: a classifier from a few labels, and its predictions for the whole corpus.

1. Take the labels: those given in the web application, those of a CSV file, or the corpus' own. 2.
Train a head on the labelled pictures' vectors. 3. Publish it. 4. Predict every indexed picture and
publish that too.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cluster.collection import Collection
from cluster.context import Context
from cluster.workspace import Workspace, check_name
from index.artifact import digest
from index.classifier import Classifier
from index.labels import LabelEvent, LabelSnapshot, LabelStore
from index.predictions import Predictions, write_predictions
from index.vectors import Ids

__all__ = ["ClassifyConfig", "classify", "train_and_predict", "train_on"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifyConfig:
    """Train a classifier on a few labels and predict every picture of an index."""

    index: str
    """Name of the index."""
    labels: Literal["given", "corpus"] = "given"
    """given: those of the Label tab and of imported files; corpus: the folder names of the scan."""
    import_csv: Path | None = None
    """CSV with columns file (or id) and label, whose rows are added to the given labels first."""
    export: Path | None = None
    """Also write the predictions to this file, which ends in .csv or .parquet."""
    user: str = "cli"
    """Whose name imported labels carry."""

    def __post_init__(self) -> None:
        """Check names and the export's type."""
        check_name(self.index, what="index")
        if self.export is not None and self.export.suffix not in (".csv", ".parquet"):
            raise ValueError(f"export {self.export}: has to end in .csv or .parquet")


def classify(config: ClassifyConfig, context: Context) -> dict[str, Any]:
    """Train, publish and predict.

    Returns:
        Number of labels and of predictions by class, and the accuracy so far with its interval.

    Raises:
        MissingArtifactError: there is no such index.
        ValueError: labels of fewer than two classes; a CSV row that names no picture.
    """
    collection = Collection.open(context.workspace, config.index)
    snapshot = _snapshot(config, collection, context.workspace)
    classifier, predictions = train_and_predict(collection, snapshot, context.workspace)
    if config.export is not None:
        _export(predictions, config.export)
    return {
        "index": config.index,
        "classifier_id": classifier.id,
        "head": classifier.head.kind,
        "labels": dict(classifier.num_labels),
        "accuracy": classifier.accuracy.text,
        "predictions": predictions.counts,
        "export": str(config.export) if config.export else None,
        "path": str(predictions.folder),
    }


def train_on(collection: Collection, snapshot: LabelSnapshot) -> Classifier:
    """A classifier from the labels of those pictures that the index holds.

    Raises:
        ValueError: fewer than two classes among them.
    """
    known = snapshot.only(collection.ids())
    return Classifier.train(
        known,
        collection.vectors(known.ids),
        collection.searcher.mean,
        encoder=(collection.encoder_id, collection.layer),
    )


def train_and_predict(
    collection: Collection, snapshot: LabelSnapshot, workspace: Workspace
) -> tuple[Classifier, Predictions]:
    """Publish a classifier and its predictions under the index's name.

    Memory does not grow with the corpus: vectors are read, and predictions written, in batches.
    """
    classifier = train_on(collection, snapshot)
    classifier.publish(workspace.folder("classifiers", collection.name))

    def uris_of(ids: Ids) -> list[str]:
        return [row.uri for row in collection.catalog.rows(ids)]

    folder = workspace.folder("predictions", collection.name)
    door = write_predictions(
        folder,
        classifier,
        collection.searcher,
        uris_of,
        parents={"index_id": collection.searcher.id},
    )
    return classifier, Predictions(folder, door)


def _snapshot(
    config: ClassifyConfig, collection: Collection, workspace: Workspace
) -> LabelSnapshot:
    if config.labels == "corpus":
        ids = collection.ids()
        labels = collection.catalog.labels(ids)
        known = np.array([label is not None for label in labels], bool)
        return LabelSnapshot(
            corpus_uid=collection.corpus_uid,
            ids=ids[known],
            labels=tuple(label for label in labels if label is not None),
            audit=np.zeros(int(known.sum()), bool),
        )
    with closing(LabelStore(workspace.labels_url)) as store:
        if config.import_csv is not None:
            store.add(_imported(config.import_csv, config.user, collection))
        return store.snapshot(collection.corpus_uid)


def _imported(path: Path, user: str, collection: Collection) -> Iterator[LabelEvent]:
    """Label events of a CSV; the same row gives the same op id, so a second import adds nothing."""
    ids = {row.uri: row.id for row in collection.catalog.by_uri()}
    with path.open(newline="", encoding="utf-8-sig") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            picture, label = row.get("id") or row.get("file"), row.get("label")
            if not picture or not label:
                raise ValueError(
                    f"{path}, line {number}: needs a label, and a file or an id; columns are "
                    f"{', '.join(row)}. Give the file a header such as: file,label"
                )
            known = int(picture) if row.get("id") else ids.get(str(Path(picture).resolve()))
            if known is None:
                raise ValueError(
                    f"{path}, line {number}: {picture!r} is no picture of corpus "
                    f"{collection.corpus_name!r}. Give paths as they were scanned."
                )
            yield LabelEvent(
                user=user,
                corpus_uid=collection.corpus_uid,
                picture_id=known,
                label=label,
                source="import",
                op_id=digest([collection.corpus_uid, known, label, path.name, number])[:40],
            )


def _export(predictions: Predictions, path: Path) -> None:
    export = predictions.export_csv if path.suffix == ".csv" else predictions.export_parquet
    with path.open("wb") as file:
        export(file)
