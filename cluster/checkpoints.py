"""Checkpoints of a run: whole states of training in ``checkpoints/step-NNNNNNNNN/``.

Each is an artefact of its own, so a half-written one is never taken for whole. What a kill or a
full disk left of one is removed by the next that succeeds.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import io
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from index.artifact import (
    ArtifactError,
    CorruptArtifactError,
    MissingArtifactError,
    library_versions,
    open_door,
    publish,
)
from index.folder import Folder

__all__ = [
    "Checkpoint",
    "host_copy",
    "load_checkpoint",
    "load_newest_checkpoint",
    "newest_checkpoint",
    "save_checkpoint",
]

logger = logging.getLogger(__name__)

KEEP = 2
NAME = re.compile(r"step-(\d{9})")
STATE = "state.pt"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The state of a run after a step."""

    step: int
    """Optimiser steps made."""
    config_id: str
    """What the run computes; a run takes no other's checkpoint."""
    state: dict[str, Any]
    """Tensors and plain values, such as `host_copy` makes; nothing may change them any more."""
    seconds: float = 0.0
    """Training time so far."""
    healthy: bool = True
    """Whether nothing spoke against the encoder when it was made."""


def host_copy(state: Any) -> Any:
    """The same nested dicts and lists with every tensor copied to this machine's memory.

    So the next step may change the originals at once. Waits for the device that they lie on.

    >>> weights = torch.zeros(2)
    >>> copied = host_copy({"weights": [weights], "step": 3})
    >>> copied["step"], copied["weights"][0] is weights
    (3, False)
    """
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        copied = copy.copy(state)  # a module's keeps its versions in an attribute
        copied.update((key, host_copy(value)) for key, value in state.items())
        return copied
    if isinstance(state, list | tuple):
        return type(state)(host_copy(value) for value in state)
    return state


def save_checkpoint(folder: Folder, checkpoint: Checkpoint, keep: int = KEEP) -> None:
    """Publish a checkpoint, then delete all but the newest ``keep`` and the newest healthy one.

    Args:
        folder: the run's.
        checkpoint: what to keep.
        keep: how many.

    Raises:
        OSError: it could not be written, as on a full disk; nothing is left of it, and older
            checkpoints are as they were.
    """
    own = _at(folder, checkpoint.step)
    if _door(own, checkpoint.config_id) is not None:
        return  # A run that was resumed before it comes here again, to the same bits.
    body = {
        "id": checkpoint.config_id,
        "step": checkpoint.step,
        "seconds": checkpoint.seconds,
        "healthy": checkpoint.healthy,
        "config": {},
        "parents": {},
        "rows": {},
        "versions": library_versions("torch"),
    }
    try:
        _remove(own)
        record = own.make().write_hashed(STATE, functools.partial(_write, checkpoint.state))
        publish(own, "checkpoint", body, {STATE: record})
    except (OSError, RuntimeError) as error:  # torch says RuntimeError of a file it cannot write.
        with contextlib.suppress(OSError):
            _remove(own)
        # Without the path: the Runs page shows this, too.
        raise OSError(getattr(error, "strerror", None) or str(error)) from error
    try:
        _retire(folder, checkpoint, keep)
    except OSError as error:
        logger.warning("%s: older checkpoints could not be deleted (%s)", folder, error)


def load_newest_checkpoint(
    folder: Folder, config_id: str, *, healthy_only: bool = False
) -> dict[str, Any] | None:
    """State of the newest whole checkpoint of this configuration, or None.

    A checkpoint that a kill left unpublished is passed over; a damaged one, or one of another
    configuration, too, with a warning.

    Args:
        folder: the run's.
        config_id: what the run computes.
        healthy_only: pass over those that were not healthy.
    """
    newest = newest_checkpoint(folder, config_id, healthy_only=healthy_only)
    return None if newest is None else load_checkpoint(folder, config_id, newest["step"])


def newest_checkpoint(
    folder: Folder, config_id: str, *, healthy_only: bool = False
) -> dict[str, Any] | None:
    """Door of the checkpoint that `load_newest_checkpoint` would load: ``step``, ``seconds``."""
    for name in reversed(_names(folder)):
        door = _door(folder / "checkpoints" / name, config_id)
        if door is not None and (door["healthy"] or not healthy_only):
            return door
    return None


def load_checkpoint(folder: Folder, config_id: str, step: int) -> dict[str, Any]:
    """State of the checkpoint of one step.

    Raises:
        CorruptArtifactError: it is not what was published, or of another configuration.
        MissingArtifactError: it is not there.
    """
    own = _at(folder, step)
    door = open_door(own, "checkpoint", verify="sizes")
    data = own.read_bytes(STATE)
    if (
        door["id"] != config_id
        or hashlib.sha256(data).hexdigest() != door["files"][STATE]["sha256"]
    ):
        raise CorruptArtifactError(
            f"{own}: not the checkpoint that this run published (sha256 or settings differ). "
            "Run the same command again: it goes on from one that is whole."
        )
    return dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))


def _at(folder: Folder, step: int) -> Folder:
    return folder / "checkpoints" / f"step-{step:09d}"


def _door(own: Folder, config_id: str) -> dict[str, Any] | None:
    """The checkpoint's door, if it is published, whole, and of this configuration."""
    try:
        door = open_door(own, "checkpoint")
    except MissingArtifactError:
        return None
    except ArtifactError as error:
        logger.warning("%s This checkpoint is passed over.", error)
        return None
    if door["id"] != config_id:
        logger.warning(
            "%s: this checkpoint of other settings (%s, not %s) is passed over; it may be deleted.",
            own,
            door["id"][:12],
            config_id[:12],
        )
        return None
    return {"seconds": 0.0, "healthy": True, **door}


def _write(state: dict[str, Any], path: str) -> None:
    # Given the path, torch would take a name that starts with a dot for none.
    with Path(path).open("wb") as file:
        torch.save(state, file)


def _names(folder: Folder) -> list[str]:
    return [name for name in (folder / "checkpoints").names() if NAME.fullmatch(name)]


def _retire(folder: Folder, newest: Checkpoint, keep: int) -> None:
    """Delete what is not needed any more, and what is left of checkpoints that are none."""
    kept = 0
    needs_healthy = True
    for name in reversed(_names(folder)):
        own = folder / "checkpoints" / name
        try:
            door = open_door(own, "checkpoint", verify="sizes")
        except (MissingArtifactError, CorruptArtifactError):
            door = None
        except ArtifactError:
            continue  # a newer lookalike's
        if door is not None and door["id"] != newest.config_id:
            continue
        # One of a later step was damaged: else the run would have gone on from there.
        if door is not None and door["step"] <= newest.step:
            healthy = bool(door.get("healthy", True))
            if kept < keep or (healthy and needs_healthy):
                kept += 1
                needs_healthy = needs_healthy and not healthy
                continue
        _remove(own)


def _remove(own: Folder) -> None:
    """The door first: without it the rest is nothing."""
    if own.exists():
        own.remove("checkpoint.json")
        own.fs.delete_dir(own.path)
