"""Which picture the Label tab asks about next, and what the labels so far say about it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from cluster.classify_job import train_on
from cluster.collection import Collection
from index.classifier import Classifier
from index.labels import LabelSnapshot
from index.suggest import Suggester, Suggestion
from ui.labelling import Labelling
from ui.session import Session, check_page, shown_name

__all__ = ["Suggesting"]


class Suggesting:
    """Suggestions for every index. Thread-safe; the working sample of an index is drawn once."""

    def __init__(self, session: Session, labelling: Labelling) -> None:
        self._session = session
        self._labelling = labelling
        self._suggesters: dict[str, tuple[str, Suggester]] = {}
        self._classifiers: dict[str, tuple[str, Classifier]] = {}
        self._lock = threading.Lock()

    def suggest(self, name: str, count: int, exclude: list[int]) -> dict[str, Any]:
        """The next pictures to label, and the accuracy as far as audit answers tell it.

        Args:
            name: the index.
            count: pictures wanted; fewer come back when there are no more.
            exclude: pictures that wait to be answered already, or were skipped.
        """
        collection = self._session.collection(name)
        snapshot = self._labelling.snapshot(collection)
        classifier = self._classifier(collection, snapshot)
        found = self._suggester(collection).suggest(
            snapshot,
            classifier,
            count=check_page(count),
            num_asked=len(snapshot.ids) + len(exclude),
            seen=exclude,
        )
        return {
            "pictures": _described(collection, classifier, found),
            "accuracy": classifier.accuracy.text if classifier else None,
        }

    def _suggester(self, collection: Collection) -> Suggester:
        with self._lock:
            version, suggester = self._suggesters.get(collection.name, (None, None))
            if suggester is None or version != collection.searcher.id:
                searcher = collection.searcher
                suggester = Suggester.over(searcher, searcher.mean)
                self._suggesters[collection.name] = (searcher.id, suggester)
            return suggester

    def _classifier(self, collection: Collection, snapshot: LabelSnapshot) -> Classifier | None:
        if len(set(snapshot.labels)) < 2:
            return None
        key = f"{collection.searcher.id} {snapshot.snapshot_id}"
        with self._lock:
            known, classifier = self._classifiers.get(collection.name, (None, None))
            if classifier is None or known != key:
                classifier = train_on(collection, snapshot)
                self._classifiers[collection.name] = (key, classifier)
            return classifier


def _described(
    collection: Collection, classifier: Classifier | None, found: list[Suggestion]
) -> list[dict[str, Any]]:
    ids = np.array([item.picture_id for item in found], dtype=np.int64)
    guesses: list[str | None] = [None] * len(found)
    if classifier is not None and len(found):
        best = classifier.predict_proba(collection.vectors(ids)).argmax(axis=1)
        guesses = [classifier.classes[column] for column in best]
    return [
        {
            "id": row.id,
            "name": shown_name(row),
            "source": item.source,
            "reason": item.reason,
            # A guess beside an audit picture would lead the hand that is to check it.
            "guess": None if item.source == "audit" else guess,
        }
        for row, item, guess in zip(collection.catalog.rows(ids), found, guesses, strict=True)
    ]
