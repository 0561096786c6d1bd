"""Start training from weights that exist: an encoder trained here, or one that was imported.

The weights decide the architecture and the colours they expect; the recipe decides everything else.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from encoders.backbone import TIMM_PREFIX, Backbone, resolve_stem
from encoders.encoder import Encoder
from encoders.pretrain_config import PretrainConfig

__all__ = ["keeps_projector", "load_start", "starting_config"]


def starting_config(config: PretrainConfig, encoder: Encoder) -> PretrainConfig:
    """The recipe around an encoder's backbone.

    Backbone and the mean and std of its input come from the encoder; picture size, crops,
    projector, method and optimiser stay the recipe's. The stem is written out, so that it is the
    encoder's at any picture size.
    """
    own = encoder.config
    backbone = own.backbone
    if not backbone.name.startswith(TIMM_PREFIX):
        backbone = replace(backbone, stem=resolve_stem(backbone, own.preprocess.size))
    preprocess = replace(config.preprocess, mean=own.preprocess.mean, std=own.preprocess.std)
    return replace(config, backbone=backbone, preprocess=preprocess)


def keeps_projector(config: PretrainConfig, encoder: Encoder) -> bool:
    """Whether the encoder's projector is of the recipe's shape, and so is trained further."""
    return encoder.config.projector == config.projector and config.projector.num_layers > 0


def load_start(
    config: PretrainConfig, encoder: Encoder, backbone: Backbone, projector: nn.Module
) -> None:
    """Copy an encoder's weights into fresh modules that were built from `starting_config`.

    The projector's are copied when `keeps_projector`; otherwise it stays as it was initialised.

    Raises:
        ValueError: the backbone has another architecture, or works at one picture size alone.
    """
    own, there = backbone.state_dict(), encoder.backbone.state_dict()
    differing = [
        name for name in own.keys() | there.keys() if _shape(own, name) != _shape(there, name)
    ]
    if differing:
        raise ValueError(
            f"encoder {encoder.encoder_id[:12]} ({encoder.config.backbone.name}, pictures of "
            f"{encoder.config.preprocess.size} px): its tensor {min(differing)} does not fit "
            f"{config.backbone.name} for {config.preprocess.size} px. Train with its architecture; "
            "a network that works at one size alone also needs preprocess.size, view_a.crop_size "
            f"and view_b.crop_size of {encoder.config.preprocess.size}."
        )
    backbone.load_state_dict(there)
    if keeps_projector(config, encoder):
        projector.load_state_dict(encoder.projector.state_dict())


def _shape(state: dict[str, object], name: str) -> object:
    return getattr(state.get(name), "shape", None)
