"""How a run ends: its state, and the encoder that it leaves when it ended on its way."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from cluster.checkpoints import load_newest_checkpoint
from cluster.pretrain_worker import publish_encoder
from cluster.pulse import stop_reason
from cluster.ray_train import ASKED
from cluster.runlog import read_run, write_run
from cluster.workspace import Workspace
from encoders.pretrain_config import PretrainConfig
from encoders.training import Pretraining

__all__ = [
    "PretrainingCancelled",
    "PretrainingStoppedError",
    "end_in_error",
    "end_run",
    "publish_newest",
]

logger = logging.getLogger(__name__)


class PretrainingStoppedError(ValueError):
    """Training stopped itself, as when the embedding collapsed; the message says what to do."""


class PretrainingCancelled(KeyboardInterrupt):
    """Somebody stopped the run; the message says what is there, and how it goes on."""


def publish_newest(
    workspace: Workspace, name: str, config: PretrainConfig, *, cut_short: str | None = None
) -> int | None:
    """Publish the encoder of a run's newest healthy checkpoint, without any picture.

    Args:
        workspace: where.
        name: of the run.
        config: what it computes.
        cut_short: why it ended before its last step, for the encoder's card.

    Returns:
        The checkpoint's step, or None when there is no such checkpoint.
    """
    folder = workspace.folder("runs", name)
    run: Mapping[str, Any] = read_run(folder)
    state = load_newest_checkpoint(folder, run["config_id"], healthy_only=True)
    if state is None:
        return None
    training = Pretraining(config, num_pictures=run["num_trained"])
    training.load_state_dict(state["training"])
    publish_encoder(
        workspace,
        name,
        training,
        seconds=state["seconds"],
        parents=run.get("parents", {"corpus_id": run["corpus_id"]}),
        cut_short=cut_short if training.step_index < training.num_steps else None,
    )
    return training.step_index


def end_run(
    outcome: Mapping[str, Any], workspace: Workspace, name: str, config: PretrainConfig
) -> None:
    """Mark how a run ended.

    Args:
        outcome: of `pretrain_worker.train_worker`.
        workspace: where.
        name: of the run.
        config: what it computes.

    Raises:
        PretrainingStoppedError: it stopped itself; the encoder of its newest healthy checkpoint is
            published, if there is one.
        PretrainingCancelled: somebody asked it to stop.
    """
    folder = workspace.folder("runs", name)
    if outcome["stopped"]:
        why = outcome["stopped"] + _rescue(workspace, name, config, outcome["stopped"])
        _mark(workspace, name, state="stopped", error=why)
        raise PretrainingStoppedError(why)
    cut_short = outcome.get("cut_short")
    if cut_short is None:
        write_run(folder, state="done", finished_at=time.time())
        return
    note = (
        f"Stopped after step {outcome['steps']:,} of {read_run(folder)['num_steps']:,}, since "
        f"{cut_short}; the encoder so far is published. "
        "Run the same command again to go on to the same end."
    )
    write_run(folder, state="cancelled", note=note)
    if cut_short == ASKED:
        raise PretrainingCancelled(note)


def end_in_error(
    error: BaseException, workspace: Workspace, name: str, config: PretrainConfig
) -> None:
    """Mark a run that an error ended; when it was asked to stop before, publish what there is.

    Raises:
        PretrainingCancelled: it was asked to stop, and its workers went first: SIGTERM often goes
            to all processes of a service, Ray's among them.
    """
    if isinstance(error, KeyboardInterrupt):
        _mark(workspace, name, state="stopped", error=str(error))
        return
    asked = stop_reason(workspace.folder("runs", name))
    if not asked:
        _mark(workspace, name, state="failed", error=str(error))
        return
    note = (
        f"Stopped, since {asked}; the workers ended before they could save "
        f"({type(error).__name__}).{_rescue(workspace, name, config, asked)} "
        "Run the same command again to go on to the same end."
    )
    _mark(workspace, name, state="cancelled", note=note)
    raise PretrainingCancelled(note) from error


def _rescue(workspace: Workspace, name: str, config: PretrainConfig, why: str) -> str:
    """Publish the encoder of the newest healthy checkpoint; returns a sentence that says so."""
    try:
        step = publish_newest(workspace, name, config, cut_short=why)
    except OSError as error:
        return f" The encoder of the last healthy checkpoint could not be published ({error})."
    if step is None:
        return ""
    return f" The encoder of the last healthy checkpoint, step {step:,}, is published."


def _mark(workspace: Workspace, name: str, **changes: Any) -> None:
    """As `write_run`, where an error is on its way that a full disk may not hide."""
    folder = workspace.folder("runs", name)
    try:
        write_run(folder, **changes)
    except OSError as error:
        logger.error("%s/run.json: could not be written (%s)", folder, error)
