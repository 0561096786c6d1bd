"""Encoders from elsewhere: torchvision's and timm's weights, and safetensors files.

They come without a projector. Preprocessing keeps lookalike's one rule for making the square; size,
mean and deviation are those that the weights were trained with.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from encoders.backbone import (
    RESNETS,
    TIMM_PREFIX,
    Backbone,
    BackboneConfig,
    Stem,
    build_backbone,
    resolve_stem,
    timm_facts,
    timm_options,
)
from encoders.card import config_of
from encoders.encoder import Encoder, EncoderConfig, fresh_modules
from encoders.export import METADATA_KEY
from encoders.heads import ProjectorConfig
from encoders.preprocess import DECODE_EDGE, PreprocessConfig

__all__ = ["UNTRAINED", "Foreign", "foreign_encoder", "from_file", "from_timm", "from_torchvision"]

UNTRAINED = "random"
"""Stands for no weights at all: the network as it is initialised."""
NO_WEIGHTS = {"weights": "none, untrained"}
USUAL_SIZE = 224

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Foreign:
    """A network from elsewhere, before it is an encoder.

    Args:
        name: what it was asked for by, for messages.
        backbone: its architecture.
        weights: by the names of its library; None for an untrained one.
        preprocess: what it was trained with.
        origin: where it comes from, in words.
    """

    name: str
    backbone: BackboneConfig
    weights: State | None
    preprocess: PreprocessConfig = field(default_factory=lambda: PreprocessConfig(size=USUAL_SIZE))
    origin: Mapping[str, str] = field(default_factory=dict)


def foreign_encoder(foreign: Foreign, preprocess: PreprocessConfig) -> Encoder:
    """The encoder of these weights, tried on one blank picture.

    Raises:
        ValueError: the weights are not those of the architecture or not finite, or the network
            takes no pictures of this size.
    """
    config = EncoderConfig(
        backbone=foreign.backbone,
        projector=ProjectorConfig(num_layers=0),
        preprocess=preprocess,
    )
    backbone, projector = fresh_modules(config, seed=0)
    if foreign.weights is not None:
        _load(backbone, foreign)
    encoder = Encoder(config, backbone, projector)
    size = preprocess.size
    try:
        encoder.embed(np.zeros((1, size, size, 3), np.uint8))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{foreign.name}: takes no pictures of {size} px ({error or type(error).__name__}). "
            f"Choose another --size; {foreign.preprocess.size} is usual for it."
        ) from error
    return encoder


def from_torchvision(name: str, weights: str = "DEFAULT") -> Foreign:
    """A ResNet of torchvision with published weights, fetched once into torch's own cache.

    Args:
        name: resnet18, resnet34 or resnet50.
        weights: as torchvision calls them, such as ``IMAGENET1K_V1``, or ``random``.

    Raises:
        ValueError: a name that is not known here, or weights that cannot be fetched.
    """
    asked = f"torchvision:{name}:{weights}"
    if name not in RESNETS:
        raise ValueError(
            f"{asked}: of torchvision's networks {', '.join(RESNETS)} can be encoders. "
            "timm has most of the others: --from timm:NAME"
        )
    backbone = BackboneConfig(name=name, stem="imagenet")
    if weights == UNTRAINED:
        return Foreign(name=asked, backbone=backbone, weights=None, origin=NO_WEIGHTS)
    from torchvision.models import get_model_weights

    published = get_model_weights(name)
    if weights not in published.__members__:
        known = ", ".join([*published.__members__, UNTRAINED])
        raise ValueError(f"{asked}: torchvision has no such weights. Choose one of {known}.")
    found = published[weights]
    try:
        state = found.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:
        cache = f"{torch.hub.get_dir()}/checkpoints"
        raise _unreachable(
            asked, error, f"Try again, or put the file of {found.url} into {cache}."
        ) from error
    trained_with = found.transforms()
    return Foreign(
        name=asked,
        backbone=backbone,
        weights=_without_head(state, "fc"),
        preprocess=PreprocessConfig(
            size=trained_with.crop_size[0],
            mean=tuple(trained_with.mean),
            std=tuple(trained_with.std),
        ),
        origin={"weights": str(found), "url": found.url},
    )


def from_timm(name: str, weights: str = "", *, size: int | None = None) -> Foreign:
    """Any model of timm without its classifier, its weights fetched once into the hub's cache.

    Args:
        name: as timm calls it, with or without a tag of weights: ``resnet18.a1_in1k``.
        weights: ``random`` for none.
        size: edge of the pictures; the model's own when None, if that is not too large.

    Raises:
        ValueError: timm is not installed, has no such model, or cannot fetch the weights.
    """
    asked = f"{TIMM_PREFIX}{name}"
    if weights not in ("", UNTRAINED):
        raise ValueError(
            f"{asked}:{weights}: timm names weights by a tag, as in timm:resnet18.a1_in1k; "
            f"only :{UNTRAINED} may follow the name."
        )
    foreign = _timm_untrained(name, size)
    if weights == UNTRAINED:
        return foreign
    import timm

    options = timm_options(name, foreign.preprocess.size)
    try:
        net: Any = timm.create_model(name, pretrained=True, num_classes=0, **options)
    except Exception as error:
        raise _unreachable(
            asked, error, "Try again; timm.list_pretrained() names the weights that there are."
        ) from error
    stated = {"weights": "hf_hub_id", "url": "url", "license": "license"}
    found = {key: net.pretrained_cfg.get(fact) for key, fact in stated.items()}
    origin = {key: str(value) for key, value in found.items() if value}
    return replace(foreign, weights=dict(net.state_dict()), origin=origin)


def from_file(
    data: bytes, name: str, *, architecture: str | None = None, size: int | None = None
) -> Foreign:
    """Weights of a safetensors file: one that `export` wrote, a ResNet's, or a timm model's.

    Args:
        data: the whole file.
        name: of the file, for messages.
        architecture: ``resnet18`` ... or ``timm:NAME``; None to find it out, which works for what
            `export` wrote and for ResNets of torchvision's names.
        size: edge of the pictures; what the weights state, else 224, when None.

    Raises:
        ValueError: the file is no safetensors file, or its architecture cannot be found out.
    """
    try:
        state = load(data)
    except SafetensorError as error:
        raise ValueError(
            f"{name}: {len(data):,} bytes that are no safetensors file ({error}). Fetch it again, "
            "or write it with safetensors.torch.save_file."
        ) from error
    origin = {"sha256": hashlib.sha256(data).hexdigest()}
    card = _metadata(data).get(METADATA_KEY)
    if card is not None and architecture is None:
        return _exported(name, state, json.loads(card), origin, size)
    if architecture is not None and architecture.startswith(TIMM_PREFIX):
        foreign = _timm_untrained(architecture.removeprefix(TIMM_PREFIX), size)
        return replace(foreign, name=name, weights=state, origin=origin)
    state = _without_head(state, "fc")
    backbone = _resnet_of(state, architecture, name)
    return Foreign(name=name, backbone=backbone, weights=state, origin=origin)


def _exported(
    name: str, state: State, card: Mapping[str, Any], origin: dict[str, str], size: int | None
) -> Foreign:
    """What `export` wrote: its card says all, and at another size the stem stays what it was."""
    config = config_of(card)
    backbone, preprocess = config.backbone, config.preprocess
    if size not in (None, preprocess.size) and not backbone.name.startswith(TIMM_PREFIX):
        backbone = replace(backbone, stem=resolve_stem(backbone, preprocess.size))
    origin = {**origin, "encoder_id": str(card.get("id"))}
    return Foreign(
        name=name, backbone=backbone, weights=state, preprocess=preprocess, origin=origin
    )


def _timm_untrained(name: str, size: int | None) -> Foreign:
    """A model of timm and its preprocessing, before any weights."""
    facts = timm_facts(name)
    own = facts.input_size[-1]
    return Foreign(
        name=f"{TIMM_PREFIX}{name}:{UNTRAINED}",
        backbone=BackboneConfig(name=f"{TIMM_PREFIX}{name}"),
        weights=None,
        origin=NO_WEIGHTS,
        preprocess=PreprocessConfig(
            size=size or (own if own <= DECODE_EDGE else USUAL_SIZE),
            mean=tuple(facts.mean),
            std=tuple(facts.std),
        ),
    )


def _resnet_of(state: State, architecture: str | None, name: str) -> BackboneConfig:
    """The ResNet whose tensors have these names and shapes."""
    shapes = _shapes(state)
    for known, stem in itertools.product(RESNETS, ("imagenet", "small", "stride2")):
        config = BackboneConfig(name=known, stem=cast(Stem, stem))
        with torch.device("meta"):
            fresh = build_backbone(config, USUAL_SIZE).net
        if shapes == _shapes(fresh.state_dict()) and architecture in (None, known):
            return config
    wanted = architecture or "any of " + ", ".join(RESNETS)
    raise ValueError(
        f"{name}: its {len(state)} tensors ({', '.join(sorted(state)[:3])}, ...) are not those of "
        f"{wanted} as torchvision names them. Rename them, or say --architecture timm:NAME for a "
        "model of timm."
    )


def _load(backbone: Backbone, foreign: Foreign) -> None:
    assert foreign.weights is not None
    head = getattr(backbone.net, "pretrained_cfg", {}).get("classifier") or ()
    weights = _without_head(foreign.weights, *([head] if isinstance(head, str) else head))
    broken = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(
            f"{foreign.name}: {broken[0]} holds NaN or infinity, as do {len(broken) - 1} other "
            "tensors. Weights have to be finite: use an earlier checkpoint."
        )
    try:
        backbone.net.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(" ".join(str(error).splitlines()[1:3]).split())
        raise ValueError(
            f"{foreign.name}: holds other tensors than {foreign.backbone.name} has ({reason}). "
            "Name the architecture that the weights were trained in, and its --size."
        ) from error


def _without_head(state: State, *heads: str) -> State:
    """The weights but for those of a classifier."""
    starts = tuple(f"{head}." for head in heads)
    return {name: tensor for name, tensor in state.items() if not name.startswith(starts)}


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes by name, BatchNorm's counters apart, which many files leave out."""
    return {
        name: tuple(tensor.shape)
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }


def _metadata(data: bytes) -> dict[str, str]:
    """What a safetensors file says of itself; its header is JSON behind its own length."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return dict(header.get("__metadata__", {}))


def _unreachable(asked: str, error: Exception, remedy: str) -> ValueError:
    reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
    return ValueError(
        f"{asked}: the weights cannot be fetched ({reason[0]}). {remedy} A file that is here "
        "already can be given as --from FILE.safetensors."
    )
