"""The versions of an index: ``CURRENT`` names one of the folders ``v000001``, ``v000002``, ...

A version is written beside the others and never changed. Renaming ``CURRENT`` puts it in service;
whoever has an older one open keeps it. ``CURRENT`` also carries the start of the door's checksum,
so that a flipped bit in it cannot serve another version.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from index.artifact import (
    ArtifactError,
    CorruptArtifactError,
    MissingArtifactError,
    Proven,
    Verify,
    open_door,
    read_door,
    require_whole,
)
from index.folder import Folder
from index.lock import sole_writer, unused
from index.vectors import VECTORS

__all__ = [
    "BUILDING",
    "CHANGING",
    "CURRENT",
    "KEPT",
    "Standing",
    "Version",
    "check_version",
    "collect",
    "finished_version",
    "last_known",
    "list_versions",
    "new_version",
    "open_current",
    "pointer_to",
    "remove_others",
    "roll_back",
    "set_current",
    "version_names",
    "while_current",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")

CURRENT = "CURRENT"
KEPT = 2
"""Versions that a build leaves: the one that it puts in service, and the one before."""
BUILDING = "building this index"
CHANGING = "building or changing this index"
VERSION = re.compile(r"v\d{6}")
POINTER = re.compile(rf"({VERSION.pattern}) ([0-9a-f]{{16}})\n")


@dataclass(frozen=True, slots=True)
class Version:
    """One version of an index, as it was found.

    Args:
        name: such as ``v000001``.
        in_service: whether ``CURRENT`` names it.
        door: its card; None where that cannot be read.
        damage: why it cannot be used; None for a whole one.
    """

    name: str
    in_service: bool
    door: dict[str, Any] | None
    damage: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """A finished version, from which another is made.

    Args:
        index: the index's folder.
        name: of the version.
        door: its door.
    """

    index: Folder
    name: str
    door: Mapping[str, Any]

    @classmethod
    def in_service(cls, index: Folder, *, base: Verify = "sizes") -> Standing:
        """The version in service; all that a change reads and writes anew is verified in full.

        Args:
            index: the index's folder.
            base: how its vectors and FAISS parts are verified, which a change leaves as they are.

        Raises:
            MissingArtifactError: no index has been published here.
            CorruptArtifactError: ``CURRENT`` or its version is damaged.
        """
        standing = cls(index, *open_current(index, verify=base))
        door = standing.door
        untouched = {VECTORS, *(part["file"] for part in door["parts"])}
        if base == "sizes":
            standing.require_whole(*(name for name in door["files"] if name not in untouched))
        return standing

    @property
    def folder(self) -> Folder:
        """The version's own folder."""
        return self.index / self.name

    def require_whole(self, *names: str) -> None:
        """Read files in full; ``CorruptArtifactError`` if one is damaged."""
        require_whole(self.folder, self.door, names)


def check_version(name: str) -> str:
    """Return ``name`` if it is that of a version; ``ValueError`` otherwise.

    >>> check_version("v000012")
    'v000012'
    """
    if not VERSION.fullmatch(name):
        raise ValueError(
            f"version {name!r}: versions of an index are called v and six digits, such as v000001. "
            "See which there are: lookalike versions --index NAME"
        )
    return name


def open_current(
    folder: Folder, *, verify: Verify = "full", proven: Collection[Proven] = ()
) -> tuple[str, dict[str, Any]]:
    """Name and door of the version in service; for the arguments see ``artifact.open_door``.

    Raises:
        MissingArtifactError: no index has been published here.
        CorruptArtifactError: ``CURRENT`` or its version is damaged.
    """
    pointer = folder.read_if_there(CURRENT)
    if pointer is None:
        raise MissingArtifactError(
            f"{folder}: no index is published here (CURRENT is missing). Build it: lookalike index"
        )
    match = POINTER.fullmatch(pointer.decode(errors="replace"))
    door = None
    if match and folder.exists(f"{match[1]}/index.json"):
        door = open_door(folder / match[1], "index", verify=verify, proven=proven)
    if match is None or door is None or door["door_sha256"][:16] != match[2]:
        raise CorruptArtifactError(
            f"{folder}/{CURRENT}: does not name a version of this index. Build the index again, or "
            "put a version in service that is whole: lookalike versions --index NAME --rollback "
            "VERSION. Finished versions are kept."
        )
    return match[1], door


def while_current(folder: Folder, open_it: Callable[[], T]) -> T:
    """Open what ``CURRENT`` names, and again if another took its place meanwhile.

    What was deleted while it was opened, since two changes had followed, is no damage.

    Raises:
        ValueError, OSError: as ``open_it`` does, of a version that still is in service.
    """
    while True:
        before = _pointer(folder)
        try:
            return open_it()
        except (ValueError, OSError):
            if _pointer(folder) == before:
                raise


def _pointer(folder: Folder) -> bytes:
    return folder.read_if_there(CURRENT) or b""


def set_current(folder: Folder, version: str, door: Mapping[str, Any]) -> None:
    """Put a published version in service: one rename, the commit point of a build."""
    folder.write_atomic(CURRENT, pointer_to(version, door))


def pointer_to(version: str, door: Mapping[str, Any]) -> bytes:
    """What ``CURRENT`` holds while a version is in service."""
    return f"{version} {door['door_sha256'][:16]}\n".encode()


def version_names(folder: Folder) -> list[str]:
    """Version folders, finished or not, oldest first."""
    return [name for name in folder.names() if VERSION.fullmatch(name)]


def new_version(folder: Folder) -> str:
    """Clear away what killed builds left; name the next version. Call as `sole_writer`."""
    names, pointer = version_names(folder), _pointer(folder)
    for name in names:
        # What is in service had a door, and its other files may be all that is left of it.
        if not folder.exists(f"{name}/index.json") and not pointer.startswith(name.encode()):
            _delete(folder / name)
    return f"v{int(names[-1][1:]) + 1 if names else 1:06d}"


def remove_others(folder: Folder, *, keep: Collection[str]) -> list[str]:
    """Delete the versions that are not to be kept; returns their names. Call as `sole_writer`.

    One that something is being made from, such as its graph, or that cannot be deleted, stays until
    the next change. On Linux and macOS, whoever has one open reads on in its memory-mapped files.
    """
    others = [name for name in version_names(folder) if name not in keep]
    return [name for name in others if _delete(folder / name)]


def _delete(version: Folder) -> bool:
    try:
        with unused(version) as is_free:
            if is_free:
                version.remove("index.json")  # first: killed half-way, it is no version any more
                shutil.rmtree(version.local_path())
            else:
                logger.info("%s is not deleted: something is being made from it", version)
            return is_free
    except OSError as error:
        # Another version is in service already, or none is affected: this is tidying up.
        logger.warning(
            "%s is not deleted, the next change of the index tries again: %s", version, error
        )
        return False


def last_known(folder: Folder) -> tuple[str, dict[str, Any] | None] | None:
    """The finished version that was in service, as far as can be told of a damaged index.

    Returns:
        Its name, and its door, None if that is damaged or gone, be it with all of the version; None
        if no version was ever finished.
    """
    doors: dict[str, dict[str, Any] | None] = {}
    for name in version_names(folder):
        with contextlib.suppress(MissingArtifactError):
            try:
                doors[name] = read_door(folder / name, "index")
            except CorruptArtifactError:
                doors[name] = None
    match = POINTER.fullmatch(_pointer(folder).decode(errors="replace"))
    if match:
        # One flipped bit may name another version: the checksum in it decides.
        for name, door in doors.items():
            if door is not None and door["door_sha256"].startswith(match[2]):
                return name, door
        return match[1], doors.get(match[1])
    return max(doors.items(), default=None, key=lambda known: known[0])


def finished_version(folder: Folder, index_id: str) -> tuple[str, dict[str, Any]] | None:
    """The newest undamaged version with this identity, if there is one."""
    for name in reversed(version_names(folder)):
        with contextlib.suppress(ArtifactError):
            if open_door(folder / name, "index", verify="sizes")["id"] == index_id:
                return name, open_door(folder / name, "index")
    return None


def list_versions(folder: Folder, *, verify: Verify = "sizes") -> list[Version]:
    """What there is of an index, oldest first, damaged and unfinished versions too.

    Args:
        folder: the index's folder.
        verify: ``full`` reads every file; ``sizes`` finds missing and cut ones only.
    """
    current = _pointer(folder)
    found = []
    for name in version_names(folder):
        door, damage = None, None
        try:
            door = open_door(folder / name, "index", verify=verify)
        except MissingArtifactError:
            damage = "it is not finished: a build is under way, or was killed"
        except ArtifactError as error:
            damage = str(error)
        # A door that cannot be read has no checksum to compare, so that its name has to do.
        start = pointer_to(name, door) if door else f"{name} ".encode()
        found.append(Version(name, current.startswith(start), door, damage))
    return found


def roll_back(folder: Folder, name: str) -> dict[str, Any]:
    """Put another version in service, once all of it was verified; returns its door.

    Killed anywhere, the one or the other is in service, and whole.

    Raises:
        MissingArtifactError: there is no finished version of that name.
        CorruptArtifactError: it is damaged; what was in service stays.
        ValueError: a build is under way.

    Cost: one pass over the version's files.
    """
    with sole_writer(folder, CHANGING):
        known = [other for other in version_names(folder) if folder.exists(f"{other}/index.json")]
        if name not in known:
            raise MissingArtifactError(
                f"version {name!r}: not in {folder}. Finished versions: "
                f"{', '.join(known) or 'none'}. Choose one of them, or build the index again."
            )
        door = open_door(folder / name, "index")
        set_current(folder, name, door)
    return door


def collect(folder: Folder, *, keep: int = KEPT) -> list[str]:
    """Delete old versions: all but the one in service and the newest others; returns their names.

    Those that are damaged or unfinished go first, and take no place of a whole one. One that
    something is being made from, such as its graph, stays.

    Args:
        folder: the index's folder.
        keep: versions that stay, the one in service among them; at least 1.

    Raises:
        MissingArtifactError: no version is in service.
        CorruptArtifactError: the one in service is damaged; nothing is deleted.
        ValueError: a build is under way.

    Cost: one pass over the files of the version in service.
    """
    with sole_writer(folder, CHANGING):
        # In full: what is deleted may be all that could replace it.
        serving, _ = open_current(folder)
        before = list_versions(folder)
        whole = [one.name for one in before if one.damage is None and one.name != serving]
        kept = {serving, *whole[::-1][: keep - 1]}
        return remove_others(folder, keep=kept)
