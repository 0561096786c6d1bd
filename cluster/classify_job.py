"""classify: a classifier from a few labels, and its predictions for the whole corpus.

1. Take the labels: those given in the web application, those of a CSV file, or the corpus' own. 2.
Train a head on the labelled pictures' vectors. 3. Predict every indexed picture and publish that.
4. Put the classifier in service. Until the predictions are there, those of before answer.
"""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cluster.collection import Collection
from cluster.context import Context
from cluster.label_csv import read_label_csv
from cluster.workspace import Workspace, check_name
from index.artifact import require_inside
from index.classifier import Classifier
from index.folder import Folder
from index.labels import LabelSnapshot, LabelStore
from index.lock import sole_writer
from index.predictions import Predictions, write_predictions
from index.vectors import Ids

__all__ = ["ClassifyConfig", "classify", "train_and_predict", "train_on"]


IMPORTER = "cli"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifyConfig:
    """Train a classifier on a few labels and predict every picture of an index."""

    index: str
    """Name of the index."""
    labels: Literal["given", "corpus"] = "given"
    """given: those of the Label tab and of imported files; corpus: those of the scan."""
    import_csv: Path | None = None
    """CSV with columns file (or id) and label, whose rows are added to the given labels once."""
    export: Path | None = None
    """Also write the predictions to this file, which ends in .csv or .parquet."""
    user: str = IMPORTER
    """Whose name imported labels carry."""

    def __post_init__(self) -> None:
        """Check names, the export's type, and that nothing given would be ignored."""
        check_name(self.index, what="index")
        if self.export is not None and self.export.suffix not in (".csv", ".parquet"):
            raise ValueError(
                f"export {self.export}: has to end in .csv or .parquet, which says what is "
                "written. Give it one of these endings."
            )
        if self.import_csv is not None and self.labels == "corpus":
            raise ValueError(
                f"import_csv {self.import_csv} with labels 'corpus': a classifier is trained on "
                "given labels, to which a CSV adds, or on the corpus' own. Leave one of them out."
            )
        if self.import_csv is None and self.user != IMPORTER:
            raise ValueError(
                f"user {self.user!r} without import_csv: it names whose imported labels are. "
                "Give --import-csv, or leave --user out."
            )


def classify(config: ClassifyConfig, context: Context) -> dict[str, Any]:
    """Train, publish and predict.

    Returns:
        Number of labels and of predictions by class, and the accuracy so far with its interval.

    Raises:
        MissingArtifactError: there is no such index.
        FileNotFoundError: the CSV is not there, or no folder for the export.
        ValueError: labels of fewer than two classes; a CSV row that names no picture, and then
            none is imported; another process trains this classifier.
    """
    if config.export is not None:
        _check_export(config.export)
    collection = Collection.open(context.workspace, config.index)
    num_imported = _import(config, collection, context.workspace)
    snapshot = _snapshot(config, collection, context.workspace)
    classifier, predictions = train_and_predict(collection, snapshot, context.workspace)
    if config.export is not None:
        _export(predictions, config.export)
    return {
        "index": config.index,
        "imported": num_imported,
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

    Raises:
        ValueError: labels of fewer than two classes; another process does the same just now.
    """
    home = workspace.folder("classifiers", collection.name)
    folder = workspace.folder("predictions", collection.name)

    def uris_of(ids: Ids) -> list[str]:
        return [row.uri for row in collection.catalog.rows(ids)]

    task = "training this classifier"
    with sole_writer(home, task), sole_writer(folder, task):
        classifier = train_on(collection, snapshot)
        # What is predicted names its classifier, and is the commit point: whoever is there before
        # it finds the old pair, and after it the new one.
        classifier.publish(home, waiting=True)
        door = write_predictions(
            folder,
            classifier,
            collection.searcher,
            uris_of,
            parents={"index_id": collection.searcher.id},
        )
        classifier.publish(home)
    return classifier, Predictions(folder, door)


def _import(config: ClassifyConfig, collection: Collection, workspace: Workspace) -> int | None:
    """Add the CSV's rows to the label log, all or none; returns how many were new."""
    if config.import_csv is None:
        return None
    events = read_label_csv(config.import_csv, config.user, collection.catalog)
    with closing(LabelStore(workspace.labels_url)) as store:
        return store.add(events)


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
        return store.snapshot(collection.corpus_uid)


def _check_export(path: Path) -> None:
    """Refuse an export that could not be written, before anything is trained."""
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise FileNotFoundError(
            f"export {path}: has to be a file in a folder that is there and can be written. "
            f"Make the folder {folder}, or choose another file."
        )
    require_inside(path.name)


def _export(predictions: Predictions, path: Path) -> None:
    """Write the whole file, or leave what was there before."""
    export = predictions.export_csv if path.suffix == ".csv" else predictions.export_parquet

    def write(temporary: str) -> None:
        with Path(temporary).open("wb") as file:
            export(file)

    Folder.at(path.parent).write_with(path.name, write)
