"""The versions of an index: ``CURRENT`` names one of the folders ``v000001``, ``v000002``, ...

A version is written beside the others and never changed. Renaming ``CURRENT`` puts it in service;
whoever has an older one open keeps it. ``CURRENT`` also carries the start of the door's checksum,
so that a flipped bit in it cannot serve another version.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Collection, Mapping
from typing import Any

from index.artifact import (
    ArtifactError,
    CorruptArtifactError,
    Folder,
    MissingArtifactError,
    Verify,
    open_door,
)

__all__ = [
    "finished_version",
    "new_version",
    "open_current",
    "remove_others",
    "set_current",
    "version_names",
]

CURRENT = "CURRENT"
VERSION = re.compile(r"v\d{6}")
POINTER = re.compile(rf"({VERSION.pattern}) ([0-9a-f]{{16}})\n")


def open_current(folder: Folder, *, verify: Verify = "full") -> tuple[str, dict[str, Any]]:
    """Name and door of the version in service.

    Raises:
        MissingArtifactError: no index has been published here.
        CorruptArtifactError: ``CURRENT`` or its version is damaged.
    """
    if not folder.exists(CURRENT):
        raise MissingArtifactError(
            f"{folder}: no index is published here (CURRENT is missing). Build it: lookalike index"
        )
    match = POINTER.fullmatch(folder.read_bytes(CURRENT).decode(errors="replace"))
    door = None
    if match and folder.exists(f"{match[1]}/index.json"):
        door = open_door(folder / match[1], "index", verify=verify)
    if match is None or door is None or door["door_sha256"][:16] != match[2]:
        raise CorruptArtifactError(
            f"{folder}/{CURRENT}: does not name a version of this index. Build the index again; "
            "finished versions are kept."
        )
    return match[1], door


def set_current(folder: Folder, version: str, door: Mapping[str, Any]) -> None:
    """Put a published version in service: one rename, the commit point of a build."""
    folder.write_atomic(CURRENT, f"{version} {door['door_sha256'][:16]}\n".encode())


def version_names(folder: Folder) -> list[str]:
    """Version folders, finished or not, oldest first."""
    return [name for name in folder.names() if VERSION.fullmatch(name)]


def new_version(folder: Folder) -> str:
    """Clear away what killed builds left; name the next version. Call as `sole_writer`."""
    names = version_names(folder)
    for name in names:
        if not folder.exists(f"{name}/index.json"):
            shutil.rmtree(folder.local_path(name))
    return f"v{int(names[-1][1:]) + 1 if names else 1:06d}"


def remove_others(folder: Folder, *, keep: Collection[str]) -> None:
    """Delete the versions that are not to be kept. Call as `sole_writer`.

    On Linux and macOS, whoever has one open reads on in its memory-mapped files.
    """
    for name in set(version_names(folder)) - set(keep):
        (folder / name).remove("index.json")  # first: killed half-way, it is no version any more
        shutil.rmtree(folder.local_path(name))


def finished_version(folder: Folder, index_id: str) -> tuple[str, dict[str, Any]] | None:
    """The newest undamaged version with this identity, if there is one."""
    for name in reversed(version_names(folder)):
        with contextlib.suppress(ArtifactError):
            if open_door(folder / name, "index", verify="sizes")["id"] == index_id:
                return name, open_door(folder / name, "index")
    return None
