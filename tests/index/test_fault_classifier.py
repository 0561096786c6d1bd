"""Classifier, predictions and their exports: killed at every step, every file damaged."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.artifact import CorruptArtifactError
from index.classifier import Classifier
from index.folder import Folder
from index.predictions import Predictions

CLASSIFY = """
    import io
    from pathlib import Path

    import numpy as np

    from index.folder import Folder
    from index.classifier import Classifier
    from index.embeddings import EmbeddingStore
    from index.labels import LabelSnapshot
    from index.predictions import write_predictions

    def classify(home, flip):
        store = EmbeddingStore.open(Folder.at(home) / "embeddings")
        ids, vectors = next(store.iter_batches())
        names = ["cat", "dog"][:: -1 if flip else 1]
        labels = tuple(names[int(row >= 20)] for row in range(len(ids)))
        audit = np.zeros(len(ids), bool)
        snapshot = LabelSnapshot(corpus_uid="uid-1", ids=ids, labels=labels, audit=audit)
        encoder = (store.encoder_id, store.layer)
        classifier = Classifier.train(snapshot, vectors, store.mean, encoder=encoder)
        classifier.publish(Folder.at(home) / "classifier")
        folder = Folder.at(home) / "predictions"
        write_predictions(folder, classifier, store, lambda ids: [f"/{i}.png" for i in ids])

    def run(home):
        classify(home, flip=False)
"""
BEFORE = """
    def run(home):
        classify(home, flip=True)
"""


def answers(home: Path, verify: Any = "full") -> tuple[Any, Any]:
    """What the classifier says of a vector, and all predictions with both exports."""
    classifier = Classifier.open(Folder.at(home) / "classifier")
    predictions = Predictions.open(Folder.at(home) / "predictions", verify=verify)
    rows = [row for batch in predictions.iter_batches() for row in batch.to_pylist()]
    table, text = io.BytesIO(), io.BytesIO()
    predictions.export_parquet(table)
    predictions.export_csv(text)
    said = classifier.predict_proba(np.linspace(-1, 1, 8, dtype=np.float32)[None]).tolist()
    known = [classifier.classes, dict(classifier.num_labels), classifier.accuracy.text]
    return (said, known), (rows, table.getvalue(), text.getvalue(), predictions.counts)


@pytest.fixture
def home(tmp_path: Path, publish_store: Any, clustered: Any, forge: Any) -> Path:
    """Forty vectors, and a classifier of other labels with its predictions."""
    home = tmp_path / "home"
    publish_store(Folder.at(home / "embeddings"), clustered(40, 8, classes=2)[0])
    ended = forge.run(CLASSIFY + BEFORE, home)
    assert ended["ended"] == "done", ended
    return home


@pytest.mark.slow
def test_whatever_is_killed_an_old_or_new_classifier_and_predictions_answer(
    home: Path, forge: Any
) -> None:
    before = answers(home)
    whole = shutil.copytree(home, home.with_name("whole"))
    assert forge.run(CLASSIFY, whole)["ended"] == "done"
    after = answers(whole)
    assert before[0] != after[0]
    assert before[1] != after[1]

    def check(home: Path, is_done: bool) -> None:
        for found, old, new in zip(answers(home), before, after, strict=True):
            assert found == new or (found == old and not is_done)

    assert forge.walk(CLASSIFY, home, check) > 15


@pytest.mark.parametrize("verify", ["full", "sizes"])
def test_all_damage_is_noticed_before_anything_is_read(
    home: Path, assert_noticed: Any, verify: str
) -> None:
    read = assert_noticed
    assert len(read(home / "classifier", lambda: answers(home, verify))) == 2
    assert len(read(home / "predictions", lambda: answers(home, verify))) == 2


def test_a_table_that_was_damaged_since_it_was_opened_by_size_is_not_exported(home: Path) -> None:
    predictions = Predictions.open(Folder.at(home) / "predictions", verify="sizes")
    (path,) = (home / "predictions").glob("*.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    for read in (predictions.export_csv, predictions.export_parquet):
        with pytest.raises(CorruptArtifactError, match="sha256 differs"):
            read(io.BytesIO())
