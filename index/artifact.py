"""One folder, one JSON at its door: how every artefact is written, published and opened.

An artefact is a folder. Its files are written first; its *door*, one small JSON such as
``corpus.json``, is renamed into place last. That rename is the commit point: killed at any line,
the artefact is old, new or absent. The door names the sha256 of every file and of itself, so that
opening can tell damage from data.

Errors (all are ``ValueError``):

* ArtifactError
    + MissingArtifactError   nothing is published there
    + CorruptArtifactError   something is there, and it is not what was published
    + NewerSchemaError       published by a newer lookalike
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NoReturn

from index.durable import TEMPORARY, require_inside
from index.folder import FileRecord, Folder
from index.identity import digest, library_versions

__all__ = [
    "TEMPORARY",
    "ArtifactError",
    "CorruptArtifactError",
    "MissingArtifactError",
    "NewerSchemaError",
    "Proven",
    "Verify",
    "by_number",
    "check_file",
    "digest",
    "library_versions",
    "open_door",
    "proven_files",
    "publish",
    "read_door",
    "require_inside",
    "require_whole",
    "write_json",
]

SCHEMA_VERSION = 1
"""What is written, unless a body says that it needs a newer reader."""
NEWEST_SCHEMA = 2

Verify = Literal["full", "sizes"]

Proven = tuple[int, int, str]
"""A file that was read and found whole: its device, its number there, its sha256."""


class ArtifactError(ValueError):
    """An artefact cannot be used."""


class MissingArtifactError(ArtifactError):
    """No artefact has been published in this folder."""


class CorruptArtifactError(ArtifactError):
    """The folder's content is not what its door says was published."""


class NewerSchemaError(ArtifactError):
    """The door was written by a newer schema than this code knows."""


def by_number(names: Iterable[str]) -> list[str]:
    """Files in the order of the first number in their names, which may outgrow its zeros.

    >>> by_number(["shards/100000-a.arrow", "shards/00002-f.arrow", "shards/99999-c.arrow"])
    ['shards/00002-f.arrow', 'shards/99999-c.arrow', 'shards/100000-a.arrow']
    """

    def number(name: str) -> int:
        found = re.search(r"\d+", name.rpartition("/")[2])
        return int(found[0]) if found else -1

    return sorted(names, key=lambda name: (number(name), name))


def write_json(folder: Folder, name: str, value: Mapping[str, Any]) -> None:
    """Write a JSON file atomically, readable by a person."""
    folder.write_atomic(name, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def publish(
    folder: Folder,
    kind: str,
    body: Mapping[str, Any],
    files: Iterable[str] | Mapping[str, FileRecord],
    *,
    door: str | None = None,
    unless: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Commit an artefact: hash its files, then rename its door into place.

    Args:
        folder: where the files already lie.
        kind: what it is, such as ``corpus``; also the door's name unless ``door`` gives another.
        body: JSON values of this kind; by convention ``id``, ``config``, ``parents``, ``rows``,
            ``versions``; ``schema_version`` where older readers would read it wrong.
        files: names of the artefact's files, relative to the folder; a mapping gives what
            ``write_hashed`` returned, so that they are not read again.
        door: file name of the door.
        unless: called right before the door is written; what it raises keeps the door as it is.

    Returns:
        The door's content as published.
    """
    content: dict[str, Any] = {
        "kind": kind,
        "schema_version": SCHEMA_VERSION,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **body,
        "files": {name: _record(folder, name, files) for name in sorted(files)},
    }
    content["door_sha256"] = digest(content)
    if unless is not None:
        unless()
    write_json(folder, door or f"{kind}.json", content)
    return content


def _record(
    folder: Folder, name: str, files: Iterable[str] | Mapping[str, FileRecord]
) -> FileRecord:
    size = folder.size_bytes(require_inside(name))
    if size is None:
        raise MissingArtifactError(f"{folder}/{name}: cannot be published, it is not there")
    if not isinstance(files, Mapping):
        return FileRecord(bytes=size, sha256=folder.sha256(name))
    if size != files[name]["bytes"]:
        raise CorruptArtifactError(
            f"{folder}/{name}: {size} bytes, written with {files[name]['bytes']}. Write it again."
        )
    return FileRecord(bytes=size, sha256=files[name]["sha256"])


def open_door(
    folder: Folder,
    kind: str,
    *,
    verify: Verify = "full",
    door: str | None = None,
    proven: Collection[Proven] = (),
) -> dict[str, Any]:
    """Read an artefact's door and check that the folder holds what was published.

    Args:
        folder: the artefact's folder.
        kind: what it has to be.
        verify: ``full`` compares every file's sha256; ``sizes`` only that it has its size.
        door: file name of the door, if it is not ``KIND.json``.
        proven: files that need not be read again, from `proven_files`.

    Raises:
        MissingArtifactError: there is no door.
        NewerSchemaError: the door's schema is newer than this code.
        CorruptArtifactError: the door or a file is damaged, of another kind, or missing.
    """
    content = read_door(folder, kind, door=door)
    for file_name, expected in content["files"].items():
        known = proven and _proven(folder, file_name, expected) in proven
        how: Verify = "sizes" if known else verify
        check_file(folder, require_inside(file_name), expected, verify=how)
    return content


def require_whole(folder: Folder, content: Mapping[str, Any], names: Iterable[str]) -> None:
    """Read some of an artefact's files in full before their content goes into another.

    Args:
        folder: the artefact's folder.
        content: its door.
        names: of files that the door names.

    Raises:
        CorruptArtifactError: one is damaged.
    """
    for name in names:
        check_file(folder, require_inside(name), content["files"][name])


def proven_files(folder: Folder, content: Mapping[str, Any]) -> frozenset[Proven]:
    """The files of an artefact that was just verified in full, for whoever opens one that has some.

    Args:
        folder: the artefact's folder.
        content: its door.
    """
    found = (_proven(folder, name, expected) for name, expected in content["files"].items())
    return frozenset(each for each in found if each is not None)


def _proven(folder: Folder, name: str, expected: Mapping[str, Any]) -> Proven | None:
    if not folder.is_local:
        return None
    try:
        status = folder.local_path(require_inside(name)).stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, expected["sha256"]


def read_door(folder: Folder, kind: str, *, door: str | None = None) -> dict[str, Any]:
    """Read an artefact's door alone, without a look at the files it names; see `open_door`."""
    name = door or f"{kind}.json"
    where, data = f"{folder}/{name}", folder.read_if_there(name)
    if data is None:
        raise MissingArtifactError(f"{folder}: no {kind} is published here ({name} is missing)")
    try:
        content = json.loads(data, parse_constant=_refuse_constant)
        version, stated = content["schema_version"], content.pop("door_sha256")
        found = digest(content)  # which refuses numbers beyond floats, such as 1e999
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptArtifactError(
            f"{where}: not a readable {kind} ({error}). Restore it from a backup or make it again."
        ) from error
    if isinstance(version, int) and version > NEWEST_SCHEMA:
        raise NewerSchemaError(
            f"{where}: schema {version} is newer than {NEWEST_SCHEMA}, "
            "the newest this version knows. Upgrade lookalike."
        )
    if found != stated or content.get("kind") != kind:
        raise CorruptArtifactError(
            f"{where}: its content does not match its own checksum, or it is not a {kind}. "
            "Restore it from a backup or make it again."
        )
    content["door_sha256"] = stated
    return dict(content)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def check_file(
    folder: Folder, name: str, expected: Mapping[str, Any], *, verify: Verify = "full"
) -> None:
    """Compare a file with its record in a door; ``CorruptArtifactError`` unless it is as stated."""
    size = folder.size_bytes(name)
    if size != expected["bytes"]:
        found = "missing" if size is None else f"{size} bytes"
        raise CorruptArtifactError(
            f"{folder}/{name}: {found}, published with {expected['bytes']} bytes. "
            "Restore the file or make the artefact again."
        )
    try:
        same = verify == "sizes" or folder.sha256(name) == expected["sha256"]
    except FileNotFoundError as error:
        raise CorruptArtifactError(
            f"{folder}/{name}: deleted while it was read. Make the artefact again."
        ) from error
    except OSError as error:
        if error.errno != errno.EIO or not folder.is_local:
            raise
        raise CorruptArtifactError(
            f"{folder}/{name}: the disk cannot read it ({error.strerror}). Restore the file or "
            "make the artefact again, and look at the disk's health."
        ) from error
    if not same:
        raise CorruptArtifactError(
            f"{folder}/{name}: its content changed since it was published (sha256 differs). "
            "Restore the file or make the artefact again."
        )
