"""The classifier artefact: a head bound to its encoder and labels, and an honest accuracy.

Shapes: N rows, D embedding, C classes.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from index.artifact import (
    CorruptArtifactError,
    MissingArtifactError,
    Verify,
    digest,
    library_versions,
    open_door,
    publish,
)
from index.folder import Folder
from index.heads import LOGISTIC_C, Head, centred, fit_head
from index.labels import LabelSnapshot
from index.measure import Proportion
from index.same_encoder import require_same_encoder
from index.vectors import Floats

__all__ = ["AccuracySoFar", "Classifier", "accuracy_so_far"]

WAITING = "waiting-"
"""Start of the doors of classifiers whose predictions are under way."""

MIN_AUDIT = 20
"""Audit labels before an accuracy is worth a number: at 20, 90 % reads as 70-97 %."""

FOLDS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class AccuracySoFar:
    """What the audit labels say about accuracy on the whole corpus.

    Args:
        accuracy: the estimate, or None while there are too few.
        num_audit: audit labels behind it.
        text: the same as a sentence.
    """

    accuracy: Proportion | None
    num_audit: int
    text: str


def accuracy_so_far(
    features_ND: Floats, labels: Sequence[str], audit_N: NDArray[np.bool_], *, seed: int = 0
) -> AccuracySoFar:
    """Accuracy from the uniformly drawn audit pictures only, each predicted without its own label.

    Labels that were suggested are of hard pictures, and would understate it by tens of points;
    cross-validation over all labels is therefore not offered.

    Args:
        features_ND: ``centred`` features of the labelled pictures.
        labels: their labels.
        audit_N: which of them came from the audit stream.
        seed: of the division into folds.
    """
    rows = np.flatnonzero(audit_N)
    if len(rows) < MIN_AUDIT:
        missing = MIN_AUDIT - len(rows)
        text = f"{len(rows)} random audit labels, too few to say. Label {missing} more of them."
        return AccuracySoFar(accuracy=None, num_audit=len(rows), text=text)
    names = np.asarray(labels)
    rows = np.random.default_rng(seed).permutation(rows)
    right = 0
    for fold in range(FOLDS):
        held_out = rows[fold::FOLDS]
        known = np.ones(len(names), dtype=bool)
        known[held_out] = False
        if len(set(names[known])) < 2:
            continue
        head = fit_head(features_ND[known], [str(name) for name in names[known]])
        predicted = np.asarray(head.classes)[head.logits(features_ND[held_out]).argmax(axis=1)]
        right += int((predicted == names[held_out]).sum())
    accuracy = Proportion.wilson(right, len(rows))
    text = f"{accuracy} on random audit pictures, each predicted without its own label"
    return AccuracySoFar(accuracy=accuracy, num_audit=len(rows), text=text)


@dataclass(frozen=True, slots=True)
class Classifier:
    """A head bound to the encoder, layer and labels that it was made from.

    Args:
        head: the linear head.
        mean: the corpus mean that features are centred by, float32 [D].
        parents: ``encoder_id``, ``corpus_uid``, ``label_snapshot_id``.
        layer: the encoder's layer.
        accuracy: what the audit says.
        num_labels: labels of each class.
    """

    head: Head
    mean: Floats
    parents: Mapping[str, str]
    layer: str
    accuracy: AccuracySoFar
    num_labels: Mapping[str, int]

    @classmethod
    def train(
        cls,
        snapshot: LabelSnapshot,
        vectors_ND: Floats,
        mean_D: Floats,
        *,
        encoder: tuple[str, str],
    ) -> Classifier:
        """Train on a label snapshot.

        Args:
            snapshot: the labels.
            vectors_ND: vectors of ``snapshot.ids``, in their order.
            mean_D: mean vector of the corpus.
            encoder: encoder_id and layer of the vectors.
        """
        features = centred(vectors_ND, mean_D)
        return cls(
            head=fit_head(features, snapshot.labels),
            mean=np.asarray(mean_D, np.float32),
            parents={
                "encoder_id": encoder[0],
                "corpus_uid": snapshot.corpus_uid,
                "label_snapshot_id": snapshot.snapshot_id,
            },
            layer=encoder[1],
            accuracy=accuracy_so_far(features, snapshot.labels, snapshot.audit),
            num_labels=dict(sorted(Counter(snapshot.labels).items())),
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of ``predict_proba``'s columns."""
        return self.head.classes

    @property
    def id(self) -> str:
        """Identity: what it was trained from and its weights."""
        return digest(
            {
                "parents": dict(self.parents),
                "layer": self.layer,
                "head": digest(self._tensors_hex()),
            }
        )

    def _tensors_hex(self) -> list[str]:
        arrays = (self.head.weights, self.head.bias, self.mean)
        return [self.head.kind, *self.classes, *(array.tobytes().hex() for array in arrays)]

    def predict_proba(self, vectors_ND: Floats) -> Floats:
        """Class probabilities float32 [N, C]; rows sum to 1. Not calibrated."""
        return self.proba_of_features(centred(vectors_ND, self.mean))

    def proba_of_features(self, features_ND: Floats) -> Floats:
        """As ``predict_proba``, for rows that are ``centred`` by this classifier's mean already."""
        logits = self.head.logits(features_ND)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)

    def require_encoder(self, encoder_id: str, layer: str) -> None:
        """Check that vectors of this encoder and layer may be classified.

        Raises:
            EncoderMismatchError: they may not.
        """
        require_same_encoder(
            f"classifier {self.id[:12]}",
            (self.parents["encoder_id"], self.layer),
            (encoder_id, layer),
            "Train a classifier on the vectors of this encoder.",
        )

    def publish(self, folder: Folder, *, waiting: bool = False) -> dict[str, Any]:
        """Write ``head-*.safetensors`` and the door ``classifier.json``; returns the door.

        While it is ``waiting`` for its predictions, its door is ``waiting-ID.json``, and the
        classifier in service stays as it is.

        The weights' file name carries their identity, so an older door never meets newer weights;
        weights that no door names any more are removed last.
        """
        name = f"head-{self.id[:12]}.safetensors"
        arrays = {"weights": self.head.weights, "bias": self.head.bias, "mean": self.mean}
        # safetensors writes memory as it lies: a transposed array would come back scrambled.
        tensors = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
        record = folder.make().write_hashed(name, lambda path: _write_bytes(path, save(tensors)))
        accuracy = self.accuracy.accuracy
        body = {
            "id": self.id,
            "config": {"kind": self.head.kind, "C": LOGISTIC_C},
            "parents": dict(self.parents),
            "layer": self.layer,
            "classes": list(self.classes),
            "rows": dict(self.num_labels),
            "versions": library_versions("scikit-learn", "numpy", "safetensors"),
            "accuracy": {
                "num_audit": self.accuracy.num_audit,
                "text": self.accuracy.text,
                "interval": accuracy and [accuracy.value, accuracy.low, accuracy.high],
            },
            "head": name,
        }
        if waiting:
            return publish(folder, "classifier", body, {name: record}, door=_waiting(self.id))
        door = publish(folder, "classifier", body, {name: record})
        folder.remove_others("head-", keep=[name])
        folder.remove_others(WAITING, keep=())
        return door

    @classmethod
    def open_named(cls, folder: Folder, classifier_id: str) -> Classifier:
        """The classifier of this identity, in service or waiting; ``ArtifactError`` if neither."""
        with contextlib.suppress(MissingArtifactError):
            return cls.open(folder, door=_waiting(classifier_id))
        opened = cls.open(folder)
        if opened.id != classifier_id:
            raise MissingArtifactError(
                f"{folder}: holds classifier {opened.id[:12]}, not {classifier_id[:12]}. Train "
                "again: lookalike classify"
            )
        return opened

    @classmethod
    def open(
        cls, folder: Folder, *, verify: Verify = "full", door: str | None = None
    ) -> Classifier:
        """Open a published classifier; see ``artifact.open_door`` for what is raised."""
        return cls._opened(folder, open_door(folder, "classifier", verify=verify, door=door))

    @classmethod
    def _opened(cls, folder: Folder, door: dict[str, Any]) -> Classifier:
        tensors = load(folder.read_bytes(door["head"]))
        interval = door["accuracy"]["interval"]
        num_audit = door["accuracy"]["num_audit"]
        accuracy = interval and Proportion(
            value=interval[0], low=interval[1], high=interval[2], n=num_audit
        )
        opened = cls(
            head=Head(
                kind=door["config"]["kind"],
                classes=tuple(door["classes"]),
                weights=tensors["weights"],
                bias=tensors["bias"],
            ),
            mean=tensors["mean"],
            parents=door["parents"],
            layer=door["layer"],
            accuracy=AccuracySoFar(
                accuracy=accuracy, num_audit=num_audit, text=door["accuracy"]["text"]
            ),
            num_labels=door["rows"],
        )
        if opened.id != door["id"]:
            raise CorruptArtifactError(f"{folder}: the head is not the one its card names")
        return opened


def _waiting(classifier_id: str) -> str:
    return f"{WAITING}{classifier_id[:12]}.json"


def _write_bytes(path: str, data: bytes) -> None:
    Path(path).write_bytes(data)
