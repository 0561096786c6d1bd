"""Labels of a run: which there are, which are held out, and what is said when there are none."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pytest

from cluster.run_labels import (
    MAX_CLASSES,
    MAX_HELD_OUT,
    LabelSettings,
    RunLabels,
    UnreadableLabelsError,
    check_enough,
    collect_labels,
    hold_out,
    load_labels,
    save_labels,
    settle_labels,
)
from cluster.workspace import Workspace
from index.artifact import CorruptArtifactError
from index.folder import Folder
from index.labels import LabelEvent, LabelStore


def test_every_class_of_two_labels_gives_one_to_the_test_and_keeps_one() -> None:
    codes = np.array([0, 0, 1, 1, 2, -1, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, -1])
    held_out = hold_out(codes, np.zeros(len(codes), bool), 0.2)
    assert [int(held_out[codes == code].sum()) for code in range(4)] == [1, 1, 0, 2]
    assert not held_out[codes == -1].any()


def test_audit_pictures_are_held_out_first() -> None:
    codes = np.zeros(40, np.int64)
    codes[20:] = 1
    audit = np.zeros(40, bool)
    audit[[3, 7, 25]] = True
    held_out = hold_out(codes, audit, 0.1)
    assert held_out.sum() == 4
    assert held_out[audit].all()


def test_no_share_holds_nothing_out_and_many_labels_hold_out_a_bounded_number() -> None:
    codes = np.arange(50_000) % 500
    audit = np.zeros(len(codes), bool)
    assert not hold_out(codes, audit, 0.0).any()
    held_out = hold_out(codes, audit, 0.5)
    assert 0 < held_out.sum() <= MAX_HELD_OUT
    assert len(np.unique(codes[held_out])) <= MAX_CLASSES


def test_labels_on_disk_are_read_as_they_were_kept(tmp_path: Path) -> None:
    codes = np.array([0, -1, 1, 1])
    held_out = np.array([False, False, True, False])
    kept = RunLabels(ids=np.arange(4), codes=codes, held_out=held_out, classes=("a", "b"))
    folder = Folder.at(tmp_path)
    record = save_labels(folder, kept)
    found = load_labels(folder, record)
    np.testing.assert_array_equal(found[0], codes)
    np.testing.assert_array_equal(found[1], held_out)
    assert kept.taught.tolist() == [0, -1, -1, 1]
    other = replace(kept, held_out=~held_out)
    assert other.labels_id != kept.labels_id
    folder.remove("labels.parquet")
    with pytest.raises(CorruptArtifactError, match="sha256 differs"):
        load_labels(folder, record)


def give(library: Any, labels: dict[int, str]) -> None:
    with closing(LabelStore(library.workspace.labels_url)) as store:
        store.add(
            LabelEvent(
                user="local",
                corpus_uid=library.catalog.uid,
                picture_id=picture,
                label=label,
                source="suggest",
            )
            for picture, label in labels.items()
        )


def test_labels_come_from_the_scan_from_people_or_from_both(library: Any) -> None:
    give(library, {3: "mine", 4: "yours"})
    ids = np.array([0, 3, 5], np.int64)
    own = library.catalog.labels(ids)
    expected = {
        "corpus": own,
        "given": [None, "mine", None],
        "both": [own[0], "mine", own[2]],
    }
    for source, names in expected.items():
        labels = collect_labels(source, library.catalog, ids, library.workspace, share=0.0)  # type: ignore[arg-type]
        found = [labels.classes[code] if code >= 0 else None for code in labels.codes]
        assert found == names
        # Picture 4 is not among the pixels.
        assert labels.num_gone == (0 if source == "corpus" else 1)


def far(library: Any) -> Workspace:
    """The same workspace as an object store has it: no database can lie there."""
    local = library.workspace.root
    store = pafs.SubTreeFileSystem(str(Path(local.path).parent), pafs.LocalFileSystem())
    return Workspace(Folder(store, Path(local.path).name))


def test_on_an_object_store_without_a_database_only_the_corpus_own_labels_are_taken(
    library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOOKALIKE_LABELS_URL", raising=False)
    catalog, workspace = library.catalog, far(library)
    ids = catalog.ok["id"].to_numpy()
    settings = LabelSettings(source=None, share=0.2, to_learn=False)
    entry, (said, _) = settle_labels(settings, catalog, ids, workspace, "run")
    assert entry is not None
    assert entry["num_labelled"] == 30
    assert "LOOKALIKE_LABELS_URL" in said
    assert "measured by the corpus' own labels" in said
    for wanted in ("given", "both"):
        settings = LabelSettings(source=wanted, share=0.2, to_learn=True)
        with pytest.raises(UnreadableLabelsError, match="use --labels corpus"):
            check_enough(settings, catalog, workspace, "run")


def test_the_identity_of_labels_is_that_of_their_content(library: Any) -> None:
    ids = library.catalog.ok["id"].to_numpy()
    first = collect_labels("corpus", library.catalog, ids, library.workspace, share=0.2)
    again = collect_labels("corpus", library.catalog, ids, library.workspace, share=0.2)
    other = collect_labels("corpus", library.catalog, ids, library.workspace, share=0.5)
    assert first.labels_id == again.labels_id != other.labels_id
