"""versions: what was built of an index; put another version in service; delete old ones.

1. Put the version asked for in service, once it was verified in full. 2. Delete versions that are
not to be kept. 3. List those that there are. Servers follow by themselves (`cluster.follower`).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.context import Context
from cluster.workspace import check_name
from index.folder import Folder
from index.versions import (
    KEPT,
    Version,
    check_version,
    collect,
    list_versions,
    roll_back,
    version_names,
)

__all__ = ["VersionsConfig", "show_versions"]


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionsConfig:
    """List the versions of an index, put another one in service, delete old ones."""

    index: str
    """Name of the index."""
    rollback: str | None = None
    """Version to put in service, such as v000001; all of it is verified first."""
    collect: bool = False
    """Delete old versions; never the one in service."""
    keep: int | None = None
    """With --collect, how many versions stay, the one in service among them; 2 unless given, as
    many as a build leaves."""
    full: bool = False
    """Read every file to find damage; otherwise those that are missing or cut are found."""

    def __post_init__(self) -> None:
        """Check names, and that nothing is asked for in vain."""
        check_name(self.index, what="index")
        if self.rollback is not None:
            check_version(self.rollback)
        if self.keep is not None and self.keep < 1:
            raise ValueError(
                f"keep {self.keep}: at least 1, since the version in service always stays. "
                f"Usual is --keep {KEPT}"
            )
        if self.keep is not None and not self.collect:
            raise ValueError(
                f"keep {self.keep}: has a meaning only where old versions are deleted. Add "
                "--collect, or leave it out."
            )


def show_versions(config: VersionsConfig, context: Context) -> dict[str, Any]:
    """Change what was asked for, then say what there is.

    Returns:
        The version in service, if any; of each version what its card says and whether it is whole;
        the versions that were deleted.

    Raises:
        MissingArtifactError: there is no such index or version.
        CorruptArtifactError: the version to put in service is damaged, or old ones are to be
            deleted and the one in service is.
        ValueError: a build is under way.
    """
    workspace = context.workspace
    folder = workspace.folder("indexes", config.index)
    if not version_names(folder):
        make = "lookalike index --corpus CORPUS --encoder ENCODER"
        workspace.require("indexes", config.index, door="CURRENT", make=make)
    if config.rollback is not None:
        _roll_back(folder, config.rollback, context)
    removed = collect(folder, keep=config.keep or KEPT) if config.collect else []
    versions = list_versions(folder, verify="full" if config.full else "sizes")
    return {
        "index": config.index,
        "in_service": next((one.name for one in versions if one.in_service), None),
        "versions": [_described(one, folder) for one in versions],
        "checked": "every byte" if config.full else "sizes of files",
        "removed": removed,
        "path": str(folder),
    }


def _roll_back(folder: Folder, name: str, context: Context) -> None:
    """Put a version in service; whose vectors it has is said aloud, since they may be others'."""
    before = next((one for one in list_versions(folder) if one.in_service), None)
    door = roll_back(folder, name)
    parents = door["parents"]
    context.say(
        f"{name} is in service: embedding set {parents['embeddings']!r} of corpus "
        f"{parents['corpus']!r}, encoder {parents['encoder']!r} ({parents['encoder_id'][:12]})"
    )
    if before is None or before.door is None:
        return
    if before.door["parents"]["encoder_id"] != parents["encoder_id"]:
        context.say(
            f"It is of another encoder than {before.name}, {parents['encoder_id'][:12]} and not "
            f"{before.door['parents']['encoder_id'][:12]}: queries need that one."
        )


def _described(version: Version, folder: Folder) -> dict[str, Any]:
    door = version.door
    card: dict[str, Any] = {}
    if door is not None:
        recall = door["recall"]
        card = {
            "created_at": door["created_at"],
            "rows": door["rows"],
            "recipe": door["recipe"]["factory"],
            "recall": {name: recall[name] for name in ("k", "value", "low", "high")},
            "bytes": sum(file["bytes"] for file in door["files"].values()),
            "shared_bytes": sum(
                file["bytes"]
                for name, file in door["files"].items()
                if _is_shared((folder / version.name).local_path(name))
            ),
            "encoder": door["parents"]["encoder"],
            "encoder_id": door["parents"]["encoder_id"],
        }
    return {
        "name": version.name,
        "in_service": version.in_service,
        "damage": version.damage,
        **card,
    }


def _is_shared(path: Path) -> bool:
    """Whether other versions have the file too; none does when it was deleted meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_nlink > 1
    return False
