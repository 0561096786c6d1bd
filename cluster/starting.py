"""The encoder that a run starts from: taken once, and kept in the run's folder.

So a run that was killed goes on whatever became of the encoder since, and its first step is always
the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster.runlog import read_run
from cluster.workspace import Workspace
from encoders.pretrain_config import PretrainConfig
from encoders.warm_start import keeps_projector, load_start, starting_config
from index.artifact import ArtifactError, CorruptArtifactError, open_door, publish
from index.folder import Folder

if TYPE_CHECKING:
    from encoders.encoder import Encoder

__all__ = ["check_start", "load_kept_start", "recipe_around", "settle_start", "start_encoder"]

KEPT = "start"
DOOR = "card.json"


def start_encoder(workspace: Workspace, run: str, name: str) -> Encoder:
    """The encoder that a run starts from: the one it began with, or for a new run, the named one.

    Raises:
        MissingArtifactError: a new run's encoder is not there.
        ValueError: the run began from another encoder, or from none, or the encoder of this name
            has changed since.
    """
    folder = workspace.folder("runs", run)
    begun = read_run(folder)
    if not begun:
        return workspace.open_encoder(name)
    check_start(begun, workspace, run, name)
    if (folder / KEPT).exists(DOOR):
        return load_kept_start(folder, begun["start"]["encoder_id"])
    return workspace.open_encoder(name)


def check_start(begun: dict[str, Any], workspace: Workspace, run: str, name: str | None) -> None:
    """Refuse to go on with a run that began from another encoder.

    Args:
        begun: its ``run.json``.
        workspace: where the encoders are.
        run: its name.
        name: the encoder that is asked for now, or None.

    Raises:
        ValueError: it is not the one that the run began from.
    """
    was: dict[str, str] | None = begun.get("start")
    was_name = was["encoder"] if was else None
    if was_name != name:
        raise ValueError(
            f"run {run!r}: began from {_named(was_name)}, and is asked to start from "
            f"{_named(name)}; a run starts once. Give --start as it was, or a new --name."
        )
    if was is None or name is None:
        return
    try:
        door = open_door(workspace.folder("encoders", name), "encoder", door=DOOR, verify="sizes")
    except ArtifactError:
        return  # Gone or damaged: the run has a copy of its own.
    if door["id"] != was["encoder_id"]:
        raise ValueError(
            f"run {run!r}: began from encoder {name!r} when it was {was['encoder_id'][:12]}; "
            f"it is {str(door['id'])[:12]} now, and a run starts once. Give a new --name to start "
            "from the encoder as it is."
        )


def _named(encoder: str | None) -> str:
    return "weights of its seed" if encoder is None else f"encoder {encoder!r}"


def recipe_around(
    recipe: PretrainConfig, workspace: Workspace, run: str, name: str | None
) -> tuple[PretrainConfig, str]:
    """The recipe with the network and colours of a run's starting encoder, and why.

    Raises:
        MissingArtifactError, ValueError: as from `start_encoder`; no encoder is named.
    """
    if name is None:
        raise ValueError("--start: names no encoder. Give the name of one, or leave it out.")
    encoder = start_encoder(workspace, run, name)
    config = starting_config(recipe, encoder)
    head = "its projector" if keeps_projector(config, encoder) else "a fresh projector"
    return config, (
        f"Starting from encoder {name!r} ({encoder.encoder_id[:12]}) with {head}. The backbone is "
        f"the encoder's, whatever else was said of it: {config.backbone.name}, "
        f"{config.backbone.stem} stem; so are the mean and std of its input."
    )


def settle_start(workspace: Workspace, run: str, config: PretrainConfig, name: str) -> str:
    """Find the encoder, check that training can start from it, and keep it with the run.

    Returns:
        Its id.

    Raises:
        MissingArtifactError, ValueError: as from `start_encoder`; also when the settings ask for
            another network or other colours, or the weights do not fit.
    """
    from encoders.encoder import fresh_modules

    folder = workspace.folder("runs", run)
    encoder = start_encoder(workspace, run, name)
    around = starting_config(config, encoder)
    if around != config:
        raise ValueError(
            f"--start {name}: its network is {around.backbone}, for pictures of mean "
            f"{around.preprocess.mean} and std {around.preprocess.std}; the settings ask for "
            f"{config.backbone}, mean {config.preprocess.mean} and std {config.preprocess.std}. "
            "Leave --backbone, --preprocess.mean and --preprocess.std out: the encoder decides."
        )
    load_start(config, encoder, *fresh_modules(config.encoder, config.seed))
    if not read_run(folder) or not (folder / KEPT).exists(DOOR):
        _keep(folder / KEPT, encoder)
    return encoder.encoder_id


def _keep(folder: Folder, encoder: Encoder) -> None:
    from encoders.card import encoder_body, encoder_files

    files = encoder_files(encoder)
    for file, data in files.items():
        folder.make().write_atomic(file, data)
    body = {"parents": {}, "rows": {}, "versions": {}, **encoder_body(encoder)}
    publish(folder, "encoder", body, list(files), door=DOOR)


def load_kept_start(folder: Folder, encoder_id: str) -> Encoder:
    """The encoder that `settle_start` kept.

    Raises:
        CorruptArtifactError: it is another one, or damaged.
    """
    from encoders.card import load_encoder

    kept = folder / KEPT
    body = open_door(kept, "encoder", door=DOOR)
    encoder = load_encoder(body, {file: kept.read_bytes(file) for file in body["files"]})
    if encoder.encoder_id != encoder_id:
        raise CorruptArtifactError(
            f"{kept}: holds encoder {encoder.encoder_id[:12]}, and the run began from "
            f"{encoder_id[:12]}. Restore it from a backup, or begin anew under another --name."
        )
    return encoder
