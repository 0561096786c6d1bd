"""Files that are there in full or not at all: written beside, fsynced, renamed; or linked.

A link is a second name of the same file (a hard link): it costs no space, and deleting one name
leaves the other.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

__all__ = ["TEMPORARY", "link_durably", "require_inside", "write_durably"]

TEMPORARY = ".tmp-"
"""Start of the names of files that are being written; what a kill leaves is cleared later."""


def write_durably(
    folder: Path, write: Callable[[str], object], name_it: Callable[[Path], str]
) -> str:
    """Have ``write`` fill a temporary file in ``folder``, and give it the name that follows.

    Returns:
        What ``name_it(path)`` gives for the file that was written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        write(str(temporary))
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        name = require_inside(name_it(temporary))
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)
    return name


def link_durably(source: Path, target: Path) -> None:
    """Give a file a second name; where the disk has no links, copy it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        write_durably(
            target.parent, lambda path: shutil.copyfile(source, path), lambda _: target.name
        )
    else:
        _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def require_inside(name: str) -> str:
    """The name itself, if it stays inside its folder: relative, no ``..``, no empty part.

    >>> require_inside("shards/00000-abc.parquet")
    'shards/00000-abc.parquet'

    Raises:
        ValueError: it would lead elsewhere.
    """
    unsafe = "\0" in name or "\\" in name
    if unsafe or any(part in {"", ".", ".."} for part in name.split("/")):
        raise ValueError(
            f"{name!r} cannot name something inside a folder. "
            "Use a relative name without '..', backslashes or empty parts."
        )
    return name
