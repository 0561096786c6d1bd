"""What the label log asks of its database: SQLite that loses nothing, errors that advise."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from index.artifact import CorruptArtifactError

__all__ = ["check_sqlite", "named_errors", "prepare_sqlite", "shown"]

BUSY_TIMEOUT_MS = 30_000
RESTORE = "Restore the labels from a backup."
NUMBERS = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_BUSY: errno.EBUSY,
    sqlite3.SQLITE_LOCKED: errno.EBUSY,
}
"""What SQLite says of its disk, in the operating system's numbers; all else is damage."""


def prepare_sqlite(engine: sa.Engine) -> None:
    """WAL, full synchronisation, and write transactions that queue up instead of colliding."""

    @sa.event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves, below
        for pragma in (
            f"busy_timeout={BUSY_TIMEOUT_MS}",
            "journal_mode=WAL",
            "synchronous=FULL",
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    @sa.event.listens_for(engine, "begin")
    def on_begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def shown(engine: sa.Engine) -> str:
    """The database's URL without its password."""
    return engine.url.render_as_string()


def check_sqlite(connection: sa.Connection) -> None:
    """Compare tables with their indexes; ``CorruptArtifactError`` where a row or page is lost.

    Cost: reads all of the database.
    """
    found = connection.execute(sa.text("PRAGMA integrity_check(1)")).scalar()
    if found != "ok":
        raise CorruptArtifactError(f"{shown(connection.engine)}: damaged ({found}). {RESTORE}")


@contextlib.contextmanager
def named_errors(engine: sa.Engine) -> Iterator[None]:
    """Say what happened to the database in errors of ours.

    Raises:
        CorruptArtifactError: it is damaged.
        OSError: its disk is full, fails, or may not be written.
    """
    try:
        yield
    except sa.exc.IntegrityError:
        raise
    except UnicodeDecodeError as error:
        raise CorruptArtifactError(f"{shown(engine)}: damaged ({error}). {RESTORE}") from error
    except (sa.exc.DatabaseError, sqlite3.DatabaseError) as error:
        said = getattr(error, "orig", None) or error
        if not isinstance(said, sqlite3.Error):  # of a server, which has its own words
            raise
        # The lowest byte: the others say in more detail what failed.
        number = NUMBERS.get((getattr(said, "sqlite_errorcode", 0) or 0) & 0xFF)
        if number is None:
            raise CorruptArtifactError(f"{shown(engine)}: damaged ({said}). {RESTORE}") from error
        raise OSError(
            number, f"{said}: no label of this request was kept", engine.url.database
        ) from error
