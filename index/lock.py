"""One writer at a time, where two would undo each other's work; no deleting of what is in use."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator

from index.artifact import TEMPORARY
from index.folder import Folder

__all__ = ["in_use", "sole_writer", "unused"]

IN_USE = ".in-use"


@contextlib.contextmanager
def sole_writer(folder: Folder, task: str, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder for writing; the lock ends with the process, however it ends.

    Temporary files that a killed writer left in the folder are cleared. An object store has no
    locks and no temporary files; there, nothing is held.

    Args:
        folder: what is written to; made if it is not there.
        task: what the other process is doing, for the message.
        wait: until the other process has ended what takes it a moment.

    Raises:
        ValueError: another process on a machine that shares the disk holds it, and is not waited
            for.
    """
    if not folder.is_local:
        yield
        return
    with folder.make().local_path(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise ValueError(
                f"{folder}: another process is {task}. Wait until it has finished, or stop it."
            ) from error
        folder.remove_others(TEMPORARY, keep=())
        yield


@contextlib.contextmanager
def in_use(folder: Folder) -> Iterator[None]:
    """Hold a local folder against whoever asks whether it is `unused`; any number may.

    Raises:
        FileNotFoundError: it is not there.
        BlockingIOError: it is being deleted.
    """
    # For both, since NFS wants to read what is shared, and to write what is not.
    with folder.local_path(IN_USE).open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield


@contextlib.contextmanager
def unused(folder: Folder) -> Iterator[bool]:
    """Whether nobody has a local folder `in_use`; if so, nobody can until the end."""
    with folder.local_path(IN_USE).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
