"""An encoder as bytes: safetensors files and the JSON body of its card, and back.

Both layers are exported and the card names their dimensions: nobody guesses what an index holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from encoders.backbone import BackboneConfig
from encoders.encoder import Encoder, EncoderConfig, fresh_modules
from encoders.heads import ProjectorConfig
from encoders.preprocess import PREPROCESS_RULE, PreprocessConfig

__all__ = ["config_of", "encoder_body", "encoder_files", "load_encoder", "tensor_bytes"]

BACKBONE_FILE = "model"
PROJECTOR_FILE = "projector"
SUFFIX = ".safetensors"


def encoder_files(encoder: Encoder) -> dict[str, bytes]:
    """Content of the encoder's files by name, such as ``model-0123456789ab.safetensors``.

    Names carry the start of the encoder's id: to write another encoder into the same folder is to
    leave the files of the published one alone. The first file names the backbone's tensors as its
    library does, so a torchvision ResNet with the ImageNet stem loads into torchvision as it is.
    """
    ending = f"-{encoder.encoder_id[:12]}{SUFFIX}"
    files = {BACKBONE_FILE + ending: tensor_bytes(encoder.backbone.net)}
    if "projector" in encoder.layers:
        files[PROJECTOR_FILE + ending] = tensor_bytes(encoder.projector)
    return files


def encoder_body(encoder: Encoder) -> dict[str, Any]:
    """The encoder's part of ``card.json``: identity, config and the dimension of each layer."""
    return {
        "id": encoder.encoder_id,
        "config": encoder.config.facts(),
        "dims": {layer: encoder.dim(layer) for layer in encoder.layers},
        "preprocess_rule": PREPROCESS_RULE,
    }


def load_encoder(body: Mapping[str, Any], files: Mapping[str, bytes]) -> Encoder:
    """Rebuild an encoder and check that it is the one its card names.

    Args:
        body: what `encoder_body` gave, through JSON or not; further keys are ignored.
        files: what `encoder_files` gave; names may lack the id.

    Raises:
        ValueError: a file is missing or damaged, the card is of another version, or the identity
            computed from weights and config is not the card's.
    """
    config = config_of(body)
    backbone, projector = fresh_modules(config, seed=0)
    _load_tensors(backbone.net, files, BACKBONE_FILE)
    if config.projector.num_layers:
        _load_tensors(projector, files, PROJECTOR_FILE)
    encoder = Encoder(config, backbone, projector)
    if encoder.encoder_id != body.get("id"):
        raise ValueError(
            f"encoder: weights and config give id {encoder.encoder_id[:12]}, its card names "
            f"{str(body.get('id'))[:12]}. One was changed: restore the artefact or pretrain again."
        )
    return encoder


def tensor_bytes(module: nn.Module, metadata: dict[str, str] | None = None) -> bytes:
    """The module's weights as the content of a safetensors file."""
    # safetensors wants rows in plain order, the convolutions are channels_last.
    state = {name: tensor.cpu().contiguous() for name, tensor in module.state_dict().items()}
    return bytes(save(state, metadata))


def config_of(body: Mapping[str, Any]) -> EncoderConfig:
    """The config that `encoder_body` stated.

    Raises:
        ValueError: it is not one of this version.
    """
    rule = body.get("preprocess_rule")
    if rule != PREPROCESS_RULE:
        raise ValueError(
            f"encoder card: preprocess_rule is {rule}, this lookalike decodes pictures by rule "
            f"{PREPROCESS_RULE}. Use the version that trained the encoder, or pretrain again."
        )
    try:
        parts = body["config"]
        return EncoderConfig(
            backbone=BackboneConfig(**_with_tuples(parts["backbone"])),
            projector=ProjectorConfig(**_with_tuples(parts["projector"])),
            preprocess=PreprocessConfig(**_with_tuples(parts["preprocess"])),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"encoder card: its config does not describe an encoder of this version ({error}). "
            "Restore the card, or use the version of lookalike that wrote it."
        ) from error


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no tuples, configs have no lists."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}


def _load_tensors(module: nn.Module, files: Mapping[str, bytes], part: str) -> None:
    named = (name for name in files if name.partition("-")[0].removesuffix(SUFFIX) == part)
    name = next(named, None)
    if name is None:
        raise ValueError(
            f"encoder: {part}{SUFFIX} is missing, found {', '.join(sorted(files)) or 'no files'}. "
            "Restore the artefact or pretrain again."
        )
    try:
        module.load_state_dict(load(files[name]))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"encoder: {name} ({len(files[name])} bytes) does not hold this encoder's tensors "
            f"({reason}). Restore the file or pretrain again."
        ) from error
