"""Labels as an append-only log of events: nothing is overwritten, undo is one more event.

SQLite in WAL mode with full synchronisation by default, so an acknowledged label survives a kill
and a power cut, and several processes write at once; any other SQLAlchemy URL works as well. Every
event carries a checksum, and SQLite's own structure is checked on opening, so that damage is not
taken for labels.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from index.artifact import CorruptArtifactError, digest
from index.label_database import check_sqlite, named_errors, prepare_sqlite, shown
from index.vectors import Ids

__all__ = ["LabelEvent", "LabelSnapshot", "LabelStore", "Source"]

Source = Literal["suggest", "audit", "bulk", "import", "search"]
SOURCES = ("suggest", "audit", "bulk", "import", "search")
MAX_TRIES = 5
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

METADATA = sa.MetaData()
EVENTS = sa.Table(
    "label_events",
    METADATA,
    sa.Column("seq", BIG, primary_key=True, autoincrement=True),
    sa.Column("op_id", sa.String(64), nullable=False, unique=True),
    sa.Column("user", sa.String(255), nullable=False),
    sa.Column("corpus_uid", sa.String(64), nullable=False, index=True),
    sa.Column("picture_id", BIG, nullable=False),
    sa.Column("label", sa.Text(), nullable=True),
    sa.Column("source", sa.String(16), nullable=False),
    sa.Column("gesture", sa.String(64), nullable=False),
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("undoes", sa.String(64), nullable=True, unique=True),
    sa.Column("checksum", sa.String(16), nullable=True),
)
CHECKSUM = EVENTS.c.checksum
FIELDS = tuple(column.name for column in EVENTS.columns if column.name not in ("seq", "checksum"))


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelEvent:
    """One act of labelling one picture.

    Args:
        user: who.
        corpus_uid: the corpus.
        picture_id: the picture.
        label: the class; None takes the label away.
        source: where the picture came from; ``audit`` means drawn uniformly at random.
        op_id: unique; adding it twice counts once.
        gesture: events of one gesture, such as labelling a selection, are undone together; the
            event's own op_id if empty.
        created_at: ISO time, UTC.
        undoes: the op_id that this event takes back.
    """

    user: str
    corpus_uid: str
    picture_id: int
    label: str | None
    source: Source
    op_id: str = field(default_factory=lambda: uuid4().hex)
    gesture: str = ""
    created_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat())
    undoes: str | None = None

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"label source {self.source!r} is unknown, use one of {SOURCES}")
        if self.label is not None and not self.label.strip():
            raise ValueError("a label cannot be blank; use None to take a label away")
        if not self.op_id or len(self.op_id) > 64 or self.picture_id < 0:
            raise ValueError(
                f"op_id {self.op_id!r}, picture {self.picture_id}: an op_id has 1 to 64 "
                "characters and picture ids are not negative"
            )
        if not self.gesture:
            object.__setattr__(self, "gesture", self.op_id)


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelSnapshot:
    """The labels of a corpus at one moment; what a classifier is trained on.

    Args:
        corpus_uid: the corpus.
        ids: labelled pictures int64 [N], rising.
        labels: N labels.
        audit: bool [N], drawn by the audit stream.
    """

    corpus_uid: str
    ids: Ids
    labels: tuple[str, ...]
    audit: NDArray[np.bool_]

    @property
    def snapshot_id(self) -> str:
        """Identity of its content."""
        rows = [self.ids.tolist(), list(self.labels), self.audit.tolist()]
        return digest([self.corpus_uid, *rows])

    def only(self, ids: Ids) -> LabelSnapshot:
        """The part of it whose pictures are among ``ids`` (those that have a vector)."""
        keep = np.isin(self.ids, ids)
        labels = tuple(label for label, kept in zip(self.labels, keep, strict=True) if kept)
        return LabelSnapshot(
            corpus_uid=self.corpus_uid, ids=self.ids[keep], labels=labels, audit=self.audit[keep]
        )


class LabelStore:
    """The label log of a workspace. Safe to use from many threads and processes.

    Args:
        url: an SQLAlchemy URL, such as ``sqlite:////data/labels.db``.

    Raises:
        CorruptArtifactError: the database is damaged; any method may find so later, too.
        OSError: it cannot be opened, read or written, as on a full disk.
    """

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url)
        if self._engine.dialect.name == "sqlite":
            prepare_sqlite(self._engine)
        with self._connected(writes=True) as connection:
            METADATA.create_all(connection)
            known = {column["name"] for column in sa.inspect(connection).get_columns(EVENTS.name)}
            if CHECKSUM.name not in known:  # a log from before events had one
                kind = CHECKSUM.type.compile(self._engine.dialect)
                added = f"ALTER TABLE {EVENTS.name} ADD COLUMN {CHECKSUM.name} {kind}"
                connection.execute(sa.text(added))
            if self._engine.dialect.name == "sqlite":
                check_sqlite(connection)

    @contextlib.contextmanager
    def _connected(self, *, writes: bool = False) -> Iterator[sa.Connection]:
        """A transaction; what a database says of its disk becomes an error of ours."""
        with named_errors(self._engine):
            if not writes:
                with self._engine.connect() as connection:
                    yield connection
                return
            with self._engine.execution_options(writes=True).begin() as connection:
                yield connection

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def add(self, events: Iterable[LabelEvent]) -> int:
        """Append events, all or none; durable on return. Returns how many were new.

        Events whose op_id is already there with the same content are skipped.

        Raises:
            ValueError: an op_id is already there with other content.
        """
        rows = [_row(event) for event in events]
        for attempt in range(MAX_TRIES):
            try:
                with self._connected(writes=True) as connection:
                    fresh = _not_yet_there(connection, rows)
                    if fresh:
                        connection.execute(sa.insert(EVENTS), fresh)
                    return len(fresh)
            except sa.exc.IntegrityError:  # another process added one of them in between
                if attempt == MAX_TRIES - 1:
                    raise
        raise AssertionError("the loop returns or raises")

    def undo(self, user: str, corpus_uid: str) -> list[LabelEvent]:
        """Take back the user's last gesture that is not yet taken back.

        Later labels of other users, or of the same picture, stay as they are.

        Returns:
            The compensating events, as appended; empty when nothing is left to undo.
        """
        with self._connected(writes=True) as connection:
            taken_back = sa.select(EVENTS.c.undoes).where(EVENTS.c.undoes.is_not(None))
            mine = sa.and_(
                EVENTS.c.user == user,
                EVENTS.c.corpus_uid == corpus_uid,
                EVENTS.c.undoes.is_(None),
                EVENTS.c.op_id.not_in(taken_back),
            )
            last = sa.select(EVENTS.c.gesture).where(mine).order_by(EVENTS.c.seq.desc()).limit(1)
            gesture = connection.execute(last).scalar()
            if gesture is None:
                return []
            undone = connection.execute(
                sa.select(EVENTS).where(mine, EVENTS.c.gesture == gesture).order_by(EVENTS.c.seq)
            )
            compensations = [
                LabelEvent(
                    user=user,
                    corpus_uid=corpus_uid,
                    picture_id=event.picture_id,
                    label=None,
                    source=event.source,
                    gesture=f"undo-{gesture}"[:64],
                    undoes=event.op_id,
                )
                for event in map(self._event, undone.mappings())
            ]
            connection.execute(sa.insert(EVENTS), [_row(event) for event in compensations])
        return compensations

    def history(self, corpus_uid: str) -> list[LabelEvent]:
        """All events of a corpus, oldest first."""
        query = sa.select(EVENTS).where(EVENTS.c.corpus_uid == corpus_uid).order_by(EVENTS.c.seq)
        with self._connected() as connection:
            return [self._event(row) for row in connection.execute(query).mappings()]

    def _event(self, row: Mapping[Any, Any]) -> LabelEvent:
        """The event of a row, if it is the one that was written."""
        fields = {name: row[name] for name in FIELDS}
        try:
            if row[CHECKSUM.name] not in (None, _checksum(fields)):
                raise ValueError("its checksum differs")
            return LabelEvent(**fields)
        except (TypeError, ValueError) as error:
            raise CorruptArtifactError(
                f"{shown(self._engine)}: event {row['seq']} is not what was written ({error}). "
                "Restore the labels from a backup."
            ) from error

    def current(self, corpus_uid: str) -> dict[int, str]:
        """The label of every labelled picture: its last event that was not undone."""
        last = _last_standing(self.history(corpus_uid))
        return {picture: event.label for picture, event in last.items() if event.label is not None}

    def classes(self, corpus_uid: str) -> dict[str, int]:
        """Number of pictures of each class in use, in the order the classes were first used."""
        counts = Counter(self.current(corpus_uid).values())
        used = dict.fromkeys(event.label for event in self.history(corpus_uid))
        return {label: counts[label] for label in used if label is not None and counts[label]}

    def snapshot(self, corpus_uid: str) -> LabelSnapshot:
        """The labels now; a picture counts as audit if any standing event of it came from there."""
        events = self.history(corpus_uid)
        undone = {event.undoes for event in events}
        audit = {
            event.picture_id
            for event in events
            if event.source == "audit" and event.undoes is None and event.op_id not in undone
        }
        last = _last_standing(events)
        labels = {
            picture: last[picture].label
            for picture in sorted(last)
            if last[picture].label is not None
        }
        return LabelSnapshot(
            corpus_uid=corpus_uid,
            ids=np.array(list(labels), np.int64),
            labels=tuple(label for label in labels.values() if label is not None),
            audit=np.array([picture in audit for picture in labels], dtype=bool),
        )


def _last_standing(events: Sequence[LabelEvent]) -> dict[int, LabelEvent]:
    """The last event of every picture that is neither undone nor itself an undo."""
    undone = {event.undoes for event in events}
    standing = (event for event in events if event.undoes is None and event.op_id not in undone)
    return {event.picture_id: event for event in standing}


def _row(event: LabelEvent) -> dict[str, Any]:
    fields = {name: getattr(event, name) for name in FIELDS}
    return {**fields, CHECKSUM.name: _checksum(fields)}


def _checksum(fields: Mapping[str, Any]) -> str:
    # repr: a damaged row may hold what JSON does not.
    return hashlib.sha256(repr([fields[name] for name in FIELDS]).encode()).hexdigest()[:16]


def _not_yet_there(
    connection: sa.Connection, rows: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    known: dict[str, Any] = {}
    for start in range(0, len(rows), 500):
        op_ids = [row["op_id"] for row in rows[start : start + 500]]
        found = connection.execute(sa.select(EVENTS).where(EVENTS.c.op_id.in_(op_ids))).mappings()
        known.update({row["op_id"]: row for row in found})
    content = ("user", "corpus_uid", "picture_id", "label", "source", "undoes")
    fresh: list[dict[str, Any]] = []
    for row in rows:
        there = known.setdefault(row["op_id"], row)
        if there is row:
            fresh.append(row)
        elif any(there[name] != row[name] for name in content):
            raise ValueError(
                f"op_id {row['op_id']!r} was already used for another label "
                f"(picture {there['picture_id']}). Give every act of labelling its own op_id."
            )
    return fresh
