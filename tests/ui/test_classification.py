"""Train, predict, review and export, without a browser and without HTTP."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest

from cluster.workspace import Workspace
from index.artifact import MissingArtifactError
from index.build import build_index
from index.choose import IndexConfig
from index.classifier import Classifier
from index.embeddings import EmbeddingStore
from index.folder import Folder
from index.predictions import Predictions
from ui.classification import Classification
from ui.labelling import Labelling
from ui.predicted import ReviewList
from ui.session import Session


@pytest.fixture
def labelling(session: Session) -> Iterator[Labelling]:
    labelling = Labelling(session)
    yield labelling
    labelling.close()


@pytest.fixture
def classification(session: Session, labelling: Labelling) -> Iterator[Classification]:
    classification = Classification(session, labelling)
    yield classification
    classification.close()


def label_some(session: Session, labelling: Labelling, shapes: Any, *, per_class: int = 5) -> int:
    """Label the first pictures of every shape; returns how many."""
    seen: dict[str, int] = {}
    events = []
    for row in session.collection(shapes.index).catalog.rows(list(range(shapes.num_pictures))):
        label = shapes.shape_of(row.name)
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= per_class:
            op_id = f"label-{row.id:06d}"
            events.append({"op_id": op_id, "id": row.id, "label": label, "source": "suggest"})
    labelling.write(shapes.index, events)
    return len(events)


def wait(classification: Classification, name: str) -> dict[str, Any]:
    for _ in range(200):
        status = classification.status(name)
        if status["state"] != "running":
            return status
        time.sleep(0.05)
    raise AssertionError("training did not end within ten seconds")


def test_training_needs_labels_of_two_classes(
    classification: Classification, labelling: Labelling, shapes: Any
) -> None:
    status = classification.status(shapes.index)
    assert (status["can_train"], status["classifier"]) == (False, None)
    with pytest.raises(ValueError, match="needs at least 2"):
        classification.start(shapes.index)
    with pytest.raises(MissingArtifactError, match="nothing is predicted yet"):
        classification.page(shapes.index, label=None, offset=0, count=5)
    with pytest.raises(MissingArtifactError, match="nothing is predicted yet"):
        classification.export(shapes.index, "csv")


def test_a_few_labels_classify_the_corpus(
    session: Session, labelling: Labelling, classification: Classification, shapes: Any
) -> None:
    num_labels = label_some(session, labelling, shapes)
    classification.start(shapes.index)
    status = wait(classification, shapes.index)
    assert status["state"] == "done", status["error"]
    classifier = status["classifier"]
    assert classifier["num_labels"] == num_labels
    assert classifier["rows"] == shapes.num_pictures
    assert classifier["head"] == "logistic regression"
    assert classifier["accuracy"] is None
    assert status["message"] == f"Up to date with all {num_labels} labels."
    table = pq.read_table(
        io.BytesIO(b"".join(classification.export(shapes.index, "parquet").pieces))
    )
    names, labels = table["uri"].to_pylist(), table["label"].to_pylist()
    right = [shapes.shape_of(name) == label for name, label in zip(names, labels, strict=True)]
    assert np.mean(right) > 0.9


def test_audit_labels_give_an_accuracy_with_its_interval(
    session: Session, labelling: Labelling, classification: Classification, shapes: Any
) -> None:
    rows = session.collection(shapes.index).catalog.rows(list(range(24)))
    events = [
        {"op_id": f"audit-{row.id}", "id": row.id, "label": shapes.shape_of(row.name)}
        for row in rows
    ]
    labelling.write(shapes.index, [{**event, "source": "audit"} for event in events])
    classification.start(shapes.index)
    accuracy = wait(classification, shapes.index)["classifier"]["accuracy"]
    assert accuracy["n"] == 24
    assert 0 <= accuracy["low"] <= accuracy["estimate"] <= accuracy["high"] <= 1


def test_review_shows_unlabelled_pictures_least_certain_first(
    session: Session, labelling: Labelling, classification: Classification, shapes: Any
) -> None:
    num_labels = label_some(session, labelling, shapes)
    classification.start(shapes.index)
    wait(classification, shapes.index)
    whole = classification.page(shapes.index, label=None, offset=0, count=200)
    assert whole["total"] == shapes.num_pictures - num_labels
    confidences = [item["confidence"] for item in whole["pictures"]]
    assert confidences == sorted(confidences)
    pages = [
        classification.page(shapes.index, label=None, offset=offset, count=10)["pictures"]
        for offset in range(0, whole["total"], 10)
    ]
    assert [item for page in pages for item in page] == whole["pictures"]
    discs = classification.page(shapes.index, label="disc", offset=0, count=200)
    assert discs["pictures"] == [item for item in whole["pictures"] if item["label"] == "disc"]
    assert classification.page(shapes.index, label="none", offset=0, count=5)["total"] == 0


def test_a_class_beyond_the_first_32767_keeps_its_name(tmp_path: Path) -> None:
    names = [f"class-{number:05d}" for number in range(40_000)]
    said = [names[number] for number in (0, 32_767, 32_768, 39_999)]
    kinds = {"id": pa.int64(), "label": pa.string(), "probability": pa.float32()}
    schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])
    rows = pa.table([range(4), said, [0.1, 0.2, 0.3, 0.4]], schema=schema)
    folder, table = Folder.at(tmp_path), "table.parquet"
    record = folder.write_hashed(table, lambda path: pq.write_table(rows, path))
    door = {"id": "p", "parents": {}, "config": {"classes": names}, "rows": {}}
    review = ReviewList.of(Predictions(folder, {**door, "table": table, "files": {table: record}}))
    assert [review.describe(row)["label"] for row in range(4)] == said
    assert review.rows(names[32_768], np.empty(0, np.int64)).tolist() == [2]


def test_both_exports_hold_every_picture_and_no_folder(
    session: Session, labelling: Labelling, classification: Classification, shapes: Any
) -> None:
    label_some(session, labelling, shapes)
    classification.start(shapes.index)
    wait(classification, shapes.index)
    parquet = classification.export(shapes.index, "parquet")
    table = pq.read_table(io.BytesIO(b"".join(parquet.pieces)))
    assert parquet.file_name == f"{shapes.index}-predictions.parquet"
    assert table["id"].to_pylist() == list(range(shapes.num_pictures))
    assert set(shapes.hostile_names) <= set(table["uri"].to_pylist())
    assert not any("/" in name for name in table["uri"].to_pylist())
    sums = sum(table[f"p_{name}"].to_numpy() for name in shapes.names)
    np.testing.assert_allclose(sums, 1, atol=1e-5)
    csv = b"".join(classification.export(shapes.index, "csv").pieces)
    options = pcsv.ParseOptions(newlines_in_values=True)
    read = pcsv.read_csv(io.BytesIO(csv), parse_options=options)
    assert read["label"].to_pylist() == table["label"].to_pylist()
    assert b"\n=cmd" not in csv
    assert b",=cmd" not in csv


def test_new_labels_are_noticed_and_a_new_index_version_asks_for_training(
    session: Session,
    labelling: Labelling,
    classification: Classification,
    shapes: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.follower.CHECK_S", 0.0)
    workspace = session.workspace
    label_some(session, labelling, shapes)
    classification.start(shapes.index)
    wait(classification, shapes.index)
    labelling.undo(shapes.index)
    assert "have changed" in classification.status(shapes.index)["message"]
    store = EmbeddingStore.open(workspace.folder("embeddings", shapes.index))
    build_index(store, workspace.folder("indexes", shapes.index), IndexConfig(target_recall=0.9))
    end_s = time.monotonic() + 30
    while session.collection(shapes.index).version == "v000001":
        assert time.monotonic() < end_s
        time.sleep(0.01)
    assert classification.status(shapes.index)["classifier"] is None


@pytest.mark.parametrize("step", ["write_predictions", "publish"])
def test_a_training_that_ends_half_way_leaves_old_or_new_predictions_in_service(
    session: Session,
    labelling: Labelling,
    classification: Classification,
    shapes: Any,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    label_some(session, labelling, shapes)
    classification.start(shapes.index)
    before = wait(classification, shapes.index)["classifier"]
    labelling.undo(shapes.index)
    seen: list[Any] = []
    publish = Classifier.publish

    def killed(*_: Any, **__: Any) -> Any:
        seen.append(classification.status(shapes.index)["classifier"])
        raise OSError("killed")

    with monkeypatch.context() as patch:
        if step == "write_predictions":
            patch.setattr(f"cluster.classify_job.{step}", killed)
        else:

            def publish_once(self: Classifier, folder: Any, *, waiting: bool = False) -> Any:
                return publish(self, folder, waiting=True) if waiting else killed()

            patch.setattr(Classifier, "publish", publish_once)
        classification.start(shapes.index)
        after = wait(classification, shapes.index)
    assert after["state"] == "failed"
    is_old = step == "write_predictions"
    assert after["classifier"] is not None
    assert (after["classifier"]["id"] == before["id"]) is is_old
    assert seen == [after["classifier"]]
    classification.start(shapes.index)
    assert wait(classification, shapes.index)["state"] == "done"
    folder = session.workspace.folder("classifiers", shapes.index)
    assert [name for name in folder.names() if name.startswith("waiting-")] == []


def test_a_failed_training_says_why_and_can_be_tried_again(
    session: Session,
    labelling: Labelling,
    classification: Classification,
    shapes: Any,
    workspace: Workspace,
    caplog: pytest.LogCaptureFixture,
) -> None:
    label_some(session, labelling, shapes)
    blocker = workspace.root.local_path("classifiers")
    blocker.write_text("a file where a folder has to be")
    classification.start(shapes.index)
    failed = wait(classification, shapes.index)
    assert failed["state"] == "failed"
    assert "classifiers" in failed["error"]
    classification.status(shapes.index)
    assert caplog.text.count("training on shapes-fresh failed") == 1, "told once, asked often"
    blocker.unlink()
    classification.start(shapes.index)
    assert wait(classification, shapes.index)["state"] == "done"


def test_a_damaged_classifier_is_set_aside_and_training_replaces_it(
    session: Session,
    labelling: Labelling,
    classification: Classification,
    shapes: Any,
    workspace: Workspace,
) -> None:
    label_some(session, labelling, shapes)
    classification.start(shapes.index)
    assert wait(classification, shapes.index)["classifier"] is not None
    (head,) = workspace.folder("classifiers", shapes.index).local_path().glob("*.safetensors")
    data = bytearray(head.read_bytes())
    data[-1] ^= 1
    head.write_bytes(bytes(data))
    status = classification.status(shapes.index)
    assert (status["classifier"], status["can_train"]) == (None, True)
    classification.start(shapes.index)
    assert wait(classification, shapes.index)["classifier"] is not None
