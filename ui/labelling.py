"""What the Label tab writes: classes, answers and their undo."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import numpy as np

from cluster.collection import Collection
from index.folder import Folder
from index.label_name import label_name
from index.labels import LabelEvent, LabelSnapshot, LabelStore
from index.lock import sole_writer
from index.sealed import read_sealed, write_sealed
from ui.session import Session, UnknownPictureError, shown_name

__all__ = ["Labelling"]

# Logins share one token, so there is one person as far as undo goes.
USER = "local"
MAX_CLASSES = 200
LOST = (
    "It keeps the order of the classes. Restore it from a backup, or delete it: the labels lie "
    "elsewhere, and classes that have one come back in the order of their use."
)


class Labelling:
    """The label log of a workspace as the web application uses it. Thread-safe.

    Labels belong to a corpus, not to an index: two indexes of one corpus show the same.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._store: LabelStore | None = None
        self._lock = threading.Lock()
        self._class_lock = threading.Lock()

    @property
    def store(self) -> LabelStore:
        """The label log, opened at first use so that looking at pictures writes nothing."""
        with self._lock:
            if self._store is None:
                self._session.workspace.root.make()
                self._store = LabelStore(self._session.workspace.labels_url)
            return self._store

    def close(self) -> None:
        """Close the label log."""
        with self._lock:
            if self._store is not None:
                self._store.close()

    def snapshot(self, collection: Collection) -> LabelSnapshot:
        """The labels of a collection's pictures, as far as they have vectors."""
        return self.store.snapshot(collection.corpus_uid).only(collection.ids())

    def progress(self, name: str) -> dict[str, Any]:
        """Classes in the order of their keys, each with its count, and the totals."""
        collection = self._session.collection(name)
        snapshot = self.store.snapshot(collection.corpus_uid)
        counts = Counter(snapshot.labels)
        classes = self._classes(collection.corpus_uid)
        return {
            "classes": [{"name": item, "count": counts[item]} for item in classes],
            "labelled": len(snapshot.ids),
            "audited": int(snapshot.audit.sum()),
        }

    def write(self, name: str, events: list[dict[str, Any]]) -> dict[str, Any]:
        """Append answers, all or none; an ``op_id`` that is already there changes nothing.

        Args:
            name: the index.
            events: dicts of ``op_id``, ``id``, ``label`` and ``source``.

        Raises:
            UnknownPictureError: a picture is not in the index; nothing is written.
            ValueError: a label is no name of a class, or an ``op_id`` was used for another answer;
                nothing is written.
        """
        collection = self._session.collection(name)
        given = np.array([item["id"] for item in events], dtype=np.int64)
        unknown = given[~np.isin(given, collection.ids())]
        if len(unknown):
            raise UnknownPictureError(int(unknown[0]), name)
        written = self.store.add(
            LabelEvent(
                user=USER,
                corpus_uid=collection.corpus_uid,
                picture_id=item["id"],
                label=None if item["label"] is None else label_name(item["label"]),
                source=item["source"],
                op_id=item["op_id"],
            )
            for item in events
        )
        return {"written": written, **self.progress(name)}

    def undo(self, name: str) -> dict[str, Any]:
        """Take back the last answer or renaming; ``undone`` is empty when there is none."""
        collection = self._session.collection(name)
        undone = self.store.undo(USER, collection.corpus_uid)
        rows = collection.catalog.rows([event.picture_id for event in undone])
        return {
            "undone": [{"id": row.id, "name": shown_name(row)} for row in rows],
            **self.progress(name),
        }

    def create_class(self, name: str, label: str) -> dict[str, Any]:
        """Add a class; ``ValueError`` when it is there already or there are too many."""
        uid = self._session.collection(name).corpus_uid
        with self._changing(uid) as classes:
            created = _checked(label, classes)
            if len(classes) >= MAX_CLASSES:
                raise ValueError(
                    f"class {created!r}: there are {len(classes)} classes, and no more than "
                    f"{MAX_CLASSES} may be made. Rename one."
                )
            self._save_classes(uid, [*classes, created])
        return self.progress(name)

    def rename_class(self, name: str, label: str, new_label: str) -> dict[str, Any]:
        """Rename a class in its place and relabel its pictures, as one gesture to undo.

        Raises:
            ValueError: there is no such class, or the new name is taken.
        """
        uid = self._session.collection(name).corpus_uid
        with self._changing(uid) as classes:
            if label not in classes:
                raise ValueError(
                    f"class {label!r}: there is none of that name. Reload the page to see them all."
                )
            new = _checked(new_label, classes)
            gesture = uuid4().hex
            current = self.store.current(uid)
            self.store.add(
                LabelEvent(
                    user=USER,
                    corpus_uid=uid,
                    picture_id=picture,
                    label=new,
                    source="bulk",
                    gesture=gesture,
                )
                for picture, present in current.items()
                if present == label
            )
            self._save_classes(uid, [new if item == label else item for item in classes])
        return self.progress(name)

    @contextlib.contextmanager
    def _changing(self, uid: str) -> Iterator[list[str]]:
        """The classes, which no other thread or server changes meanwhile."""
        folder, _ = self._class_file(uid)
        with self._class_lock, sole_writer(folder, "changing classes", wait=True):
            yield self._classes(uid)

    def _classes(self, uid: str) -> list[str]:
        """Classes in the order they were made, then those that only the log knows."""
        folder, name = self._class_file(uid)
        made = read_sealed(folder, name, advice=LOST)["classes"] if folder.exists(name) else []
        return list(dict.fromkeys([*made, *self.store.classes(uid)]))

    def _save_classes(self, uid: str, classes: list[str]) -> None:
        folder, name = self._class_file(uid)
        write_sealed(folder.make(), name, {"classes": classes})

    def _class_file(self, uid: str) -> tuple[Folder, str]:
        return self._session.workspace.root / "classes", f"{uid}.json"


def _checked(label: str, classes: list[str]) -> str:
    name = label_name(label)
    if name in classes:
        raise ValueError(f"class {name!r}: it is there already. Choose another name.")
    return name
