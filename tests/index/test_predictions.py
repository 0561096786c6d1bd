import csv
import io

import numpy as np
import pyarrow.parquet as pq
import pytest

from index.artifact import CorruptArtifactError
from index.classifier import Classifier
from index.folder import Folder
from index.labels import LabelSnapshot
from index.predictions import Predictions, write_predictions
from index.same_encoder import EncoderMismatchError

LABELS = ("=cmd", 'naïve, "quoted"\nlabel', "plain")


@pytest.fixture
def classifier(shared_searcher):
    ids = shared_searcher.ids[::20]
    labels = tuple(LABELS[i % 3] for i in range(len(ids)))
    snapshot = LabelSnapshot(
        corpus_uid="uid-1", ids=ids, labels=labels, audit=np.zeros(len(ids), dtype=bool)
    )
    encoder = (shared_searcher.encoder_id, shared_searcher.layer)
    vectors = shared_searcher.vectors_of(ids)
    return Classifier.train(snapshot, vectors, shared_searcher.mean, encoder=encoder)


def uris_of(ids):
    odd = ["=1+1.png", "@x.png", "-a.png", "+b.png", "\tc.png", "plain.png", 'a,"b"\n.png']
    return [odd[i % len(odd)] for i in ids]


@pytest.fixture
def predictions(tmp_path, classifier, shared_searcher):
    folder = Folder.at(tmp_path / "predictions")
    write_predictions(
        folder, classifier, shared_searcher, uris_of, parents={"index_id": shared_searcher.id}
    )
    return Predictions.open(folder)


def exported_csv(predictions):
    sink = io.BytesIO()
    predictions.export_csv(sink)
    return list(csv.DictReader(io.StringIO(sink.getvalue().decode(), newline="")))


def test_every_picture_is_predicted_as_the_classifier_says(
    predictions, classifier, shared_searcher
):
    sink = io.BytesIO()
    predictions.export_parquet(sink)
    table = pq.read_table(io.BytesIO(sink.getvalue()))
    assert table.column_names == [
        "id", "uri", "label", "probability", *(f"p_{name}" for name in sorted(LABELS)),
    ]  # fmt: skip
    np.testing.assert_array_equal(table["id"], shared_searcher.ids)
    expected = classifier.predict_proba(shared_searcher.vectors_of(shared_searcher.ids))
    columns = np.stack([table[f"p_{name}"].to_numpy() for name in classifier.classes], axis=1)
    np.testing.assert_allclose(columns, expected, atol=1e-6)
    np.testing.assert_allclose(table["probability"], expected.max(axis=1), atol=1e-6)
    assert table["label"].to_pylist() == [classifier.classes[i] for i in expected.argmax(axis=1)]
    assert table["uri"].to_pylist() == uris_of(shared_searcher.ids)


def test_counts_and_parents_are_stated(predictions, classifier, shared_searcher):
    assert sum(predictions.counts.values()) == len(shared_searcher)
    assert set(predictions.counts) == set(LABELS)
    assert predictions.parents["classifier_id"] == classifier.id
    assert predictions.parents["index_id"] == shared_searcher.id
    assert predictions.parents["encoder_id"] == "encoder-a"
    labels = [
        label for batch in predictions.iter_batches(["label"]) for label in batch[0].to_pylist()
    ]
    assert {name: labels.count(name) for name in LABELS} == predictions.counts


def test_no_cell_of_the_csv_starts_a_formula(predictions):
    rows = exported_csv(predictions)
    assert len(rows) == sum(predictions.counts.values())
    cells = [row[name] for row in rows for name in ("uri", "label")]
    assert not [cell for cell in cells if cell[0] in "=+-@\t\r\n"]
    assert "'=cmd" in cells
    assert "'=1+1.png" in cells
    assert 'a,"b"\n.png' in cells


def test_the_csv_holds_the_same_rows(predictions, shared_searcher):
    rows = exported_csv(predictions)
    assert [int(row["id"]) for row in rows] == shared_searcher.ids.tolist()
    for row in rows[:50]:
        shares = [float(value) for name, value in row.items() if name.startswith("p_")]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert float(row["probability"]) == pytest.approx(max(shares))


def test_predicting_again_leaves_one_table(tmp_path, predictions, classifier, shared_searcher):
    write_predictions(predictions.folder, classifier, shared_searcher, uris_of)
    assert len(predictions.folder.names()) == 2
    assert Predictions.open(predictions.folder).id != predictions.id


def test_vectors_of_another_encoder_are_refused(tmp_path, classifier):
    class Foreign:
        encoder_id, layer = "encoder-b", "backbone"

        def iter_batches(self, batch_rows=1):
            raise AssertionError(f"must not be read, not even {batch_rows} rows")

    with pytest.raises(EncoderMismatchError):
        write_predictions(Folder.at(tmp_path / "p"), classifier, Foreign(), uris_of)


def test_damage_is_noticed(predictions):
    name = predictions.door["table"]
    data = bytearray(predictions.folder.read_bytes(name))
    data[100] ^= 1
    predictions.folder.write_atomic(name, bytes(data))
    with pytest.raises(CorruptArtifactError):
        Predictions.open(predictions.folder)
