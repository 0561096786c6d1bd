"""import: weights from elsewhere become an encoder, for `embed` and all that follows it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from cluster.context import Context
from cluster.workspace import check_name
from encoders.encoder import Encoder
from encoders.foreign import Foreign, foreign_encoder, from_file, from_timm, from_torchvision
from index.artifact import library_versions, open_door, require_whole
from index.folder import Folder
from index.uri import local_path

__all__ = ["ImportConfig", "import_encoder"]

DOOR = "card.json"
EXPORT_DOOR = "export.json"
SUFFIX = ".safetensors"
TORCHVISION, TIMM = "torchvision:", "timm:"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportConfig:
    """Make an encoder from weights of torchvision, of timm, or of a safetensors file."""

    source: Annotated[str, tyro.conf.arg(name="from", metavar="SOURCE")]
    """torchvision:resnet18[:WEIGHTS], timm:NAME[.TAG], or FILE.safetensors."""
    name: str
    """Name of the encoder to make."""
    size: int | None = None
    """Edge in pixels of the squares that it sees; unless given, what the weights learnt on."""
    fit: Literal["crop", "pad"] | None = None
    """crop keeps the centre square, pad the whole picture on white; crop unless given."""
    mean: tuple[float, float, float] | None = None
    """Subtracted from each channel in [0, 1]; what the weights learnt with unless given."""
    std: tuple[float, float, float] | None = None
    """Each channel is divided by this; what the weights learnt with unless given."""
    architecture: str | None = None
    """Of a file that does not tell: resnet18, resnet34, resnet50 or timm:NAME."""

    def __post_init__(self) -> None:
        """Check the name, the source, and that nothing given would be ignored."""
        check_name(self.name, what="encoder")
        if not self.source.startswith((TORCHVISION, TIMM)) and not self.source.endswith(SUFFIX):
            raise ValueError(
                f"--from {self.source}: has to be torchvision:NAME, timm:NAME or a file that ends "
                f"in {SUFFIX}. Other files are not read, since they may hold programs: load them "
                "where you trust them, and save with safetensors.torch.save_file."
            )
        if self.architecture is not None and not self.source.endswith(SUFFIX):
            raise ValueError(
                f"--architecture {self.architecture}: --from {self.source} says it already; only "
                "a file may need it. Leave it out."
            )


def import_encoder(config: ImportConfig, context: Context) -> dict[str, Any]:
    """Load the weights and publish them as an encoder; the same again is left as it is.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptArtifactError: it lies in an export and is not what was exported.
        ValueError: the source is not known or cannot be loaded, or an encoder of this name is
            another one.
    """
    context.say(f"import: loading {config.source}")
    foreign = _foreign(config)
    given = {key: getattr(config, key) for key in ("size", "fit", "mean", "std")}
    stated = {key: value for key, value in given.items() if value is not None}
    encoder = foreign_encoder(foreign, replace(foreign.preprocess, **stated))
    folder = context.workspace.folder("encoders", config.name)
    was_there = _is_published(folder, config, encoder)
    if not was_there:
        # A path says where a file lay on one machine: its name and checksum tell more elsewhere.
        source = foreign.name if config.source.endswith(SUFFIX) else config.source
        facts = {
            "imported": {"source": source, **foreign.origin},
            "versions": library_versions("torch", "torchvision", "timm"),
        }
        context.workspace.publish_encoder(config.name, encoder, facts)
    return {
        "encoder": config.name,
        "encoder_id": encoder.encoder_id,
        "from": config.source,
        "backbone": encoder.config.backbone.name,
        "dim": encoder.dim(),
        "size": encoder.config.preprocess.size,
        "note": "was there already, unchanged" if was_there else None,
    }


def _foreign(config: ImportConfig) -> Foreign:
    source = config.source
    if source.startswith(TORCHVISION):
        return from_torchvision(*source.removeprefix(TORCHVISION).split(":", 1))
    if source.startswith(TIMM):
        return from_timm(*source.removeprefix(TIMM).split(":", 1), size=config.size)
    path = local_path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"{source}: no such file. Give a {SUFFIX} file, torchvision:NAME or timm:NAME."
        )
    _require_as_exported(path)
    return from_file(
        path.read_bytes(), path.name, architecture=config.architecture, size=config.size
    )


def _require_as_exported(path: Path) -> None:
    """Refuse a file that is not what the export's door beside it says; others vouch for nothing."""
    folder = Folder.at(path.parent)
    if folder.exists(EXPORT_DOOR):
        door = open_door(folder, "export", verify="sizes")
        require_whole(folder, door, {path.name} & set(door["files"]))


def _is_published(folder: Folder, config: ImportConfig, encoder: Encoder) -> bool:
    """Whether this very encoder has this name; another one under it is refused."""
    if not folder.exists(DOOR):
        return False
    known = open_door(folder, "encoder", door=DOOR)["id"]
    if known != encoder.encoder_id:
        raise ValueError(
            f"encoder {config.name!r} in {folder}: is another one ({known[:12]}; this is "
            f"{encoder.encoder_id[:12]}), and embeddings may count on it. Choose another --name."
        )
    return True
