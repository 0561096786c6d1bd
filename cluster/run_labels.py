"""The labels of a run: what a method may learn from, and what the run is judged by.

They are read once, when the run begins, and kept in its folder: catalog and label log may change,
and a run learns from one set to its end. Some are held out: no method ever sees them, whether it
learns from labels or not, so that accuracy on them is that of pictures whose class is not known.

Labels that a person gives while a run trains are not taken in. Its workers may be on machines that
cannot open the label log, and figures by a ruler that changes say nothing of the encoder.

Shapes: N pictures of the pixel cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa
from numpy.typing import NDArray

from cluster.catalog import Catalog
from cluster.runlog import read_run
from cluster.workspace import Workspace
from encoders.losses import NO_LABEL
from index.artifact import CorruptArtifactError
from index.folder import FileRecord, Folder
from index.labels import LabelSnapshot, LabelStore

__all__ = [
    "LabelSettings",
    "LabelSource",
    "RunLabels",
    "UnreadableLabelsError",
    "check_enough",
    "collect_labels",
    "hold_out",
    "load_labels",
    "save_labels",
    "settle_labels",
]

LabelSource = Literal["corpus", "given", "both"]

Codes = NDArray[np.int64]
Mask = NDArray[np.bool_]

LABELS = "labels.parquet"
MAX_HELD_OUT = 512
"""Pictures: the share they measure is then known to 4 points, at less cost than an epoch."""
MAX_CLASSES = 100
"""Of which labels are held out; a random choice of more bounds the time of a linear probe."""
SPLIT_SEED = 0
"""The same pictures are held out in every run, so that runs can be compared."""


class UnreadableLabelsError(ValueError):
    """There is no label log that can be opened from here."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunLabels:
    """Labels of the pictures that a run learns from.

    Args:
        ids: int64 [N], in the order of the pixels.
        codes: int64 [N], position in ``classes``; -1 for none.
        held_out: bool [N], whose label serves to measure by and is never learnt.
        classes: names, sorted.
        snapshot_id: of the given labels that are among them, if any.
        num_gone: given labels of pictures that are not among ``ids``.
    """

    ids: Codes
    codes: Codes
    held_out: Mask
    classes: tuple[str, ...]
    snapshot_id: str | None = None
    num_gone: int = 0

    @property
    def taught(self) -> Codes:
        """What a method that learns from labels is shown: int64 [N], -1 for none or held out."""
        return np.where(self.held_out, NO_LABEL, self.codes)

    @property
    def labels_id(self) -> str:
        """Identity of the pictures, their labels, and what is held out."""
        rows = np.stack([self.ids, self.codes, self.held_out]).astype("<i8")
        return hashlib.sha256(rows.tobytes() + "\0".join(self.classes).encode()).hexdigest()

    @property
    def num_labelled(self) -> int:
        """Pictures with a label."""
        return int((self.codes != NO_LABEL).sum())

    def facts(self) -> dict[str, Any]:
        """What ``run.json`` tells of them."""
        return {
            "labels_id": self.labels_id,
            "snapshot_id": self.snapshot_id,
            "num_labelled": self.num_labelled,
            "num_classes": len(self.classes),
            "num_held_out": int(self.held_out.sum()),
            "num_gone": self.num_gone,
        }

    def said(self) -> str:
        """The same for a person."""
        gone = f"; {self.num_gone:,} more are of pictures that are gone" if self.num_gone else ""
        return (
            f"{self.num_labelled:,} of {len(self.ids):,} pictures have a label, of "
            f"{len(self.classes):,} classes; {int(self.held_out.sum()):,} labels are held out to "
            f"measure by{gone}."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelSettings:
    """Which labels a run takes.

    Args:
        source: as for `collect_labels`; None takes all to measure by, and to learn from those of
            the corpus alone.
        share: of each class that is held out.
        to_learn: whether the method learns from them.
    """

    source: LabelSource | None
    share: float
    to_learn: bool

    @property
    def resolved(self) -> LabelSource:
        """The source, chosen where it was not given."""
        return self.source or ("corpus" if self.to_learn else "both")


def settle_labels(
    settings: LabelSettings, catalog: Catalog, ids: Codes, workspace: Workspace, run: str
) -> tuple[dict[str, Any] | None, list[str]]:
    """The labels that a run began with; a new run takes those of now, and keeps them.

    Returns:
        The entry ``labels`` of ``run.json``, None without any, and sentences for a person.

    Raises:
        UnreadableLabelsError: the method learns from given labels, and they cannot be read.
        ValueError: the method learns from labels, and there are not two classes to learn.
        CorruptArtifactError: those that the run began with are damaged, and others by now.
    """
    folder = workspace.folder("runs", run)
    began_with: dict[str, Any] | None = read_run(folder).get("labels")
    if began_with is not None:
        try:
            load_labels(folder, began_with["file"])
        except CorruptArtifactError:
            again, _ = _available(settings, catalog, ids, workspace)
            if again.labels_id != began_with["labels_id"]:
                raise
            save_labels(folder, again)
        return began_with, []
    labels, notes = _available(settings, catalog, ids, workspace)
    if settings.to_learn:
        _check_taught(labels, run)
    if not labels.num_labelled:
        return None, notes
    return {**labels.facts(), "file": save_labels(folder, labels)}, [*notes, labels.said()]


def _available(
    settings: LabelSettings, catalog: Catalog, ids: Codes, workspace: Workspace
) -> tuple[RunLabels, list[str]]:
    """The labels of now; where given ones cannot be read and need not be, without them."""
    source = settings.resolved
    try:
        return collect_labels(source, catalog, ids, workspace, share=settings.share), []
    except UnreadableLabelsError as error:
        if settings.to_learn or source == "given":
            raise
        labels = collect_labels("corpus", catalog, ids, workspace, share=settings.share)
        return labels, [f"{error} Training goes on, measured by the corpus' own labels, if any."]


def check_enough(settings: LabelSettings, catalog: Catalog, workspace: Workspace, run: str) -> int:
    """Refuse a method that learns from labels where there are too few, before anything is made.

    Returns:
        The number of labels to learn from; 0 for a method that learns from none.

    Raises:
        UnreadableLabelsError: given labels are to be learnt, and cannot be read.
        ValueError: there are not two classes to learn.
    """
    if not settings.to_learn:
        return 0
    ids = np.asarray(catalog.ok["id"].to_numpy())
    labels = collect_labels(settings.resolved, catalog, ids, workspace, share=settings.share)
    _check_taught(labels, run)
    return int((labels.taught != NO_LABEL).sum())


def _check_taught(labels: RunLabels, run: str) -> None:
    """Raise ``ValueError`` when there are too few labels to learn classes from."""
    taught = labels.taught[labels.taught != NO_LABEL]
    found = np.unique(taught)
    if len(found) >= 2:
        return
    said = f"all {len(taught)} are {labels.classes[found[0]]!r}" if len(found) else "there are none"
    gone = f" ({labels.num_gone} are of pictures that are gone)" if labels.num_gone else ""
    raise ValueError(
        f"run {run!r}: of the labels that it may learn from, {said}{gone}; a method that learns "
        "from labels needs them of two classes. Label pictures in the Label tab of lookalike ui, "
        "or with lookalike classify --import-csv, and add --labels given; or scan a folder for "
        "each class with --labels folder. simclr, moco and byol need no labels."
    )


def collect_labels(
    source: LabelSource, catalog: Catalog, ids: Codes, workspace: Workspace, *, share: float
) -> RunLabels:
    """The labels as they are now, and which of them are held out.

    Args:
        source: ``corpus``, those of the scan; ``given``, those that people gave, by the label log;
            ``both``, where a given one takes the place of the corpus' own.
        catalog: the corpus.
        ids: int64 [N], of the pictures that can be learnt from.
        workspace: has the label log.
        share: of each class that is held out.

    Raises:
        UnreadableLabelsError: given ones are wanted and there is no database to read them from.
    """
    names: list[str | None] = [None] * len(ids)
    if source != "given":
        names = catalog.labels(ids)
    audit_N = np.zeros(len(ids), bool)
    snapshot = None if source == "corpus" else _given(workspace, catalog)
    num_gone = 0
    if snapshot is not None:
        known = snapshot.only(ids)
        num_gone = len(snapshot.ids) - len(known.ids)
        rows = np.searchsorted(ids, known.ids)
        audit_N[rows] = known.audit
        for row, label in zip(rows, known.labels, strict=True):
            names[row] = label
    codes, classes = _coded(names)
    return RunLabels(
        ids=ids,
        codes=codes,
        held_out=hold_out(codes, audit_N, share),
        classes=classes,
        snapshot_id=snapshot.snapshot_id if snapshot is not None and len(snapshot.ids) else None,
        num_gone=num_gone,
    )


def _given(workspace: Workspace, catalog: Catalog) -> LabelSnapshot | None:
    """What people gave so far; None when there is no label log yet, which reading would make."""
    try:
        url = sa.make_url(workspace.labels_url)
        is_file = url.get_backend_name() == "sqlite" and url.database
        if is_file and not Path(str(url.database)).exists():
            return None
        with closing(LabelStore(workspace.labels_url)) as store:
            return store.snapshot(catalog.uid)
    except (ValueError, OSError, ImportError, sa.exc.SQLAlchemyError) as error:
        raise UnreadableLabelsError(
            f"labels that people gave for corpus {catalog.door['name']!r} cannot be read: "
            f"{str(error).splitlines()[0].rstrip('.')}. Mend that, or use --labels corpus."
        ) from error


def _coded(names: Sequence[str | None]) -> tuple[Codes, tuple[str, ...]]:
    """Positions of the names among all, sorted; -1 for none."""
    classes = sorted({name for name in names if name is not None})
    code_of = {name: code for code, name in enumerate(classes)}
    codes = [NO_LABEL if name is None else code_of[name] for name in names]
    return np.array(codes, np.int64), tuple(classes)


def hold_out(codes_N: Codes, audit_N: Mask, share: float) -> Mask:
    """Choose pictures to measure by: of each class a share of those with a label.

    A class of two labels gives one, a class of one gives none, and at least one stays. Pictures of
    the audit stream come first, since they were drawn uniformly. No more than 512 are chosen, and
    of no more than 100 classes.

    Args:
        codes_N: int64, -1 for none.
        audit_N: bool, whether the audit stream drew the picture.
        share: of each class, in [0, 1); 0 holds nothing out.

    Returns:
        bool [N].
    """
    held_out_N = np.zeros(len(codes_N), bool)
    labelled = np.flatnonzero(codes_N != NO_LABEL)
    if share <= 0 or not len(labelled):
        return held_out_N
    rng = np.random.default_rng(SPLIT_SEED)
    counts_C = np.bincount(codes_N[labelled])
    wanted = min(share, MAX_HELD_OUT / len(labelled))
    takes_C = np.clip(np.round(counts_C * wanted), 1, np.maximum(counts_C - 1, 0)).astype(np.int64)
    takes_C[counts_C < 2] = 0
    measured = np.flatnonzero(takes_C)
    takes_C[rng.permutation(measured)[MAX_CLASSES:]] = 0
    # Rows class by class, audit pictures first, the others at random.
    order = np.lexsort((rng.permutation(len(labelled)), ~audit_N[labelled], codes_N[labelled]))
    rows = labelled[order]
    starts_C = np.cumsum(counts_C) - counts_C
    place_N = np.arange(len(rows)) - starts_C[codes_N[rows]]
    chosen = rows[place_N < takes_C[codes_N[rows]]]
    held_out_N[rng.permutation(chosen)[:MAX_HELD_OUT]] = True
    return held_out_N


def save_labels(folder: Folder, labels: RunLabels) -> FileRecord:
    """Keep them in the run's folder."""
    table = pa.table({"id": labels.ids, "label": labels.codes, "held_out": labels.held_out})
    return folder.make().write_hashed(LABELS, lambda path: pq.write_table(table, path))


def load_labels(folder: Folder, record: FileRecord) -> tuple[Codes, Mask]:
    """Codes and what is held out, both [N], as `save_labels` kept them.

    Raises:
        CorruptArtifactError: the file is gone, or is not the one that was saved.
    """
    data = folder.read_if_there(LABELS) or b""
    if hashlib.sha256(data).hexdigest() != record["sha256"]:
        raise CorruptArtifactError(
            f"{folder}/{LABELS}: its content is not that of the labels this run began with "
            "(sha256 differs). Restore it from a backup, or begin anew under another --name."
        )
    table = pq.read_table(pa.BufferReader(data))
    return np.asarray(table["label"].to_numpy()), np.asarray(table["held_out"].to_numpy())
