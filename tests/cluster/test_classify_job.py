"""Labels in, a classifier and its predictions out; nothing half done when something is wrong."""

from __future__ import annotations

import csv
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.classify_job import ClassifyConfig, classify
from cluster.cli import main
from index.classifier import Classifier
from index.labels import LabelEvent, LabelStore
from index.lock import sole_writer
from index.predictions import Predictions
from index.search import Searcher


@pytest.fixture(autouse=True)
def _own_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOOKALIKE_LABELS_URL", raising=False)


def events(library: Any) -> list[LabelEvent]:
    with closing(LabelStore(library.workspace.labels_url)) as store:
        return store.history(library.catalog.uid)


def write_csv(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def digits_csv(library: Any, path: Path) -> Path:
    """The digit of each picture, by file name as it was scanned."""
    rows = [f"{row.uri},{row.label}\n" for row in library.catalog.by_uri()]
    return write_csv(path, "file,label\n" + "".join(rows))


def test_labels_of_folders_give_predictions_of_the_whole_corpus(library: Any) -> None:
    report = classify(ClassifyConfig(index=library.index, labels="corpus"), library.context)
    assert report["labels"] == {str(digit): 3 for digit in range(10)}
    assert sum(report["predictions"].values()) == 30
    classifier = Classifier.open(library.folder("classifiers", library.index))
    predictions = Predictions.open(library.folder("predictions", library.index))
    assert predictions.parents["classifier_id"] == classifier.id == report["classifier_id"]
    searcher = Searcher.open(library.folder("indexes", library.index))
    rows = {row["id"]: row for batch in predictions.iter_batches() for row in batch.to_pylist()}
    for row in library.catalog.by_uri():
        chances = classifier.predict_proba(searcher.vectors_of([row.id]))[0]
        best = int(chances.argmax())
        assert rows[row.id]["uri"] == row.uri
        assert rows[row.id]["label"] == classifier.classes[best]
        assert rows[row.id]["probability"] == pytest.approx(chances[best], abs=1e-6)
    assert events(library) == [], "the corpus' own labels are not copied into the log"


def test_an_imported_csv_counts_once_and_another_of_its_name_is_new(
    library: Any, tmp_path: Path
) -> None:
    file = digits_csv(library, tmp_path / "labels.csv")
    config = ClassifyConfig(index=library.index, import_csv=file)
    assert classify(config, library.context)["imported"] == 30
    assert classify(config, library.context)["imported"] == 0
    assert len(events(library)) == 30
    first, *rest = file.read_text().splitlines(keepends=True)[1:]
    write_csv(file, "file,label\n" + first.rpartition(",")[0] + ",9\n" + "".join(rest))
    assert classify(config, library.context)["imported"] == 30
    labelled = {event.picture_id: event.label for event in events(library)}
    assert labelled[0] == "9"


def test_pictures_are_named_by_id_by_path_and_below_the_corpus_folder(
    library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = list(library.catalog.by_uri())
    monkeypatch.chdir(library.pictures.parent)
    below = Path(rows[2].uri).relative_to(library.pictures)
    text = (
        "\ufeffID, File ,Label\r\n"
        f"{rows[0].id},,cat\r\n"
        "\r\n"
        f',pictures/{Path(rows[1].uri).relative_to(library.pictures)},"cat, small"\r\n'
        f"{rows[2].id},{below},cat\r\n"
    )
    config = ClassifyConfig(
        index=library.index, import_csv=write_csv(tmp_path / "a.csv", text), user="ann"
    )
    assert classify(config, library.context)["imported"] == 3
    assert [(event.picture_id, event.label, event.user) for event in events(library)] == [
        (rows[0].id, "cat", "ann"),
        (rows[1].id, "cat, small", "ann"),
        (rows[2].id, "cat", "ann"),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,label\n0,cat\n30,dog\n", "line 3: id 30 is no picture of corpus 'digits'"),
        ("id,label\nabc,cat\n", "line 2: id 'abc' is no whole number"),
        ("id,label\n-1,cat\n", "line 2: id '-1' is no whole number"),
        ("id,label\n1_0,cat\n", "line 2: id '1_0' is no whole number"),
        ("id,label\n99999999999999999999,cat\n", "is no whole number"),
        ("file,label\nelsewhere.png,cat\n", "line 2: 'elsewhere.png' is no picture of corpus"),
        ("id,label\n0,cat,dog\n", "line 2: has more cells than the header has columns, 2"),
        ("id,label\n0\n", "line 2: has fewer cells than the header"),
        ("id,label\n0,  \n", "line 2: label '' needs a visible sign"),
        ("id,label\n0,a\x07b\n", "line 2: label 'a\\x07b' needs a visible sign"),
        (f"id,label\n0,{'a' * 101}\n", "no control characters, and at most 100 characters"),
        ("id,file,label\n,,cat\n", "line 2: names no picture"),
        ("id,file,label\n0,1/0001.png,cat\n", "line 2: id 0 and file '1/0001.png' are two"),
        ("0,cat\n1,dog\n", "line 1: columns are 0, cat"),
        ("label\ncat\n", "line 1: columns are label"),
        ("id,label,label\n0,cat,dog\n", "each once"),
        ("", "line 1: columns are missing"),
        ('id,label\n0,"cat\n1,dog\n', "no CSV"),
        ("id,label\n\n\n0,cat\n77,dog\n", "line 5: id 77"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_imported(
    library: Any, tmp_path: Path, text: str, words: str
) -> None:
    file = write_csv(tmp_path / "labels.csv", text)
    with pytest.raises(ValueError, match=r"labels\.csv, line \d+: ") as caught:
        classify(ClassifyConfig(index=library.index, import_csv=file), library.context)
    assert words in str(caught.value)
    assert events(library) == []


def test_a_bad_line_at_the_end_leaves_nothing_half_imported(library: Any, tmp_path: Path) -> None:
    lines = "".join(f"{number % 30},cat\n" for number in range(900))
    file = write_csv(tmp_path / "labels.csv", f"id,label\n{lines}abc,cat\n")
    with pytest.raises(ValueError, match="line 902: id 'abc'"):
        classify(ClassifyConfig(index=library.index, import_csv=file), library.context)
    assert events(library) == []


def test_a_csv_that_is_not_utf8_names_its_line(library: Any, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_bytes("id,label\n0,cat\n1,café\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"line 3: byte 0xe9 is not of a text in UTF-8.*Save the"):
        classify(ClassifyConfig(index=library.index, import_csv=file), library.context)


def test_a_csv_with_a_null_byte_names_its_line(library: Any, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_bytes(b"file,label\na.png,cat\nb\0.png,cat\n")
    with pytest.raises(ValueError, match=r"labels\.csv, line 3: byte 0x00 is not of a text"):
        classify(ClassifyConfig(index=library.index, import_csv=file), library.context)


def test_classes_keep_their_names_on_the_way_through_an_exported_csv(
    library: Any, tmp_path: Path
) -> None:
    names = ["-1", "+1", "=f", "@home", "'quoted"]
    labels = "".join(f'{row},"{names[row % 5]}"\n' for row in range(15))
    given = write_csv(tmp_path / "labels.csv", f"id,label\n{labels}")
    out = tmp_path / "out.csv"
    first = classify(
        ClassifyConfig(index=library.index, import_csv=given, export=out), library.context
    )
    again = classify(ClassifyConfig(index=library.index, import_csv=out), library.context)
    assert set(first["labels"]) == set(names)
    assert set(again["labels"]) == {name for name, n in first["predictions"].items() if n}


def test_a_missing_csv_is_named(library: Any, tmp_path: Path) -> None:
    config = ClassifyConfig(index=library.index, import_csv=tmp_path / "gone.csv")
    with pytest.raises(FileNotFoundError, match=r"gone\.csv: no such file\. Give a CSV"):
        classify(config, library.context)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--import-csv", "a.csv", "--labels", "corpus"], "import_csv a.csv with labels 'corpus'"),
        (["--user", "ann"], "user 'ann' without import_csv"),
        (["--export", "a.xlsx"], "has to end in .csv or .parquet"),
    ],
)
def test_a_setting_that_would_be_ignored_is_wrong_usage(
    given: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", "--index", "mine", *given]) == 2
    assert words in capsys.readouterr().err


def test_an_export_without_its_folder_fails_before_anything_is_trained(
    library: Any, tmp_path: Path
) -> None:
    for export in (tmp_path / "none" / "out.csv", tmp_path / "folder.csv"):
        (tmp_path / "folder.csv").mkdir(exist_ok=True)
        config = ClassifyConfig(index=library.index, labels="corpus", export=export)
        with pytest.raises(FileNotFoundError, match=r"out\.csv|folder\.csv"):
            classify(config, library.context)
    assert library.workspace.names("classifiers") == []


def test_an_export_holds_every_prediction_and_replaces_the_last_as_a_whole(
    library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for suffix in (".csv", ".parquet"):
        export = tmp_path / f"out{suffix}"
        classify(
            ClassifyConfig(index=library.index, labels="corpus", export=export), library.context
        )
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    table = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [(int(row["id"]), row["label"]) for row in rows] == [
        (row["id"], row["label"]) for row in table
    ]
    before = (tmp_path / "out.csv").read_bytes()

    def torn(_: Predictions, sink: Any) -> None:
        sink.write(b"half a line")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Predictions, "export_csv", torn)
    config = ClassifyConfig(index=library.index, labels="corpus", export=tmp_path / "out.csv")
    with pytest.raises(OSError, match="No space left"):
        classify(config, library.context)
    assert (tmp_path / "out.csv").read_bytes() == before
    assert sorted(path.name for path in tmp_path.glob("*out*")) == ["out.csv", "out.parquet"]
    assert list(tmp_path.glob(".*")) == []


def test_two_at_once_do_not_tear_each_others_results(library: Any) -> None:
    config = ClassifyConfig(index=library.index, labels="corpus")
    classify(config, library.context)
    home = library.folder("classifiers", library.index)
    door = home.read_bytes("classifier.json")
    for kind in ("classifiers", "predictions"):
        with (
            sole_writer(library.folder(kind, library.index), "training this classifier"),
            pytest.raises(ValueError, match="another process is training this classifier"),
        ):
            classify(config, library.context)
    assert home.read_bytes("classifier.json") == door


def test_labels_of_one_class_are_refused_with_what_to_do(library: Any, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "labels.csv", "id,label\n0,cat\n1,cat\n")
    with pytest.raises(ValueError, match="a classifier needs two"):
        classify(ClassifyConfig(index=library.index, import_csv=file), library.context)


def test_the_report_is_json_and_readable(
    library: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["classify", "--index", library.index, "--labels", "corpus"]
    assert main([*arguments, "--workspace", library.location, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["imported"] is None
    assert main([*arguments, "--workspace", library.location]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert " ".join(f"{digit} 3," for digit in range(9)) in shown
