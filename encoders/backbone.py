"""Backbones: pictures to pooled features, without a classifier.

Torchvision's ResNets with a stem that suits the crop, a narrow CIFAR-style ResNet that two CPU
cores can train, and, through the ``timm`` extra, any timm model. ResNets normalise with
``nn.BatchNorm2d``, which training across processes swaps for its own.
Shapes: N pictures, S crop edge, D features.
"""

from __future__ import annotations

import importlib.util
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

__all__ = [
    "RESNETS",
    "Backbone",
    "BackboneConfig",
    "BasicBlock",
    "Stem",
    "build_backbone",
    "check_crop",
    "resolve_stem",
    "timm_facts",
    "timm_options",
]

Stem = Literal["auto", "small", "stride2", "imagenet"]

TIMM_PREFIX = "timm:"
RESNETS = ("resnet18", "resnet34", "resnet50")
"""Of torchvision, which is imported for these alone: that takes as long as importing torch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneConfig:
    """Which network turns a crop into features."""

    name: str = "narrow"
    """narrow (trains on a CPU), resnet18, resnet34, resnet50, or timm:NAME with the timm extra."""
    stem: Stem = "auto"
    """First layers: small (3x3, stride 1), stride2 (5x5), imagenet (7x7, pool), auto by crop."""
    widths: tuple[int, ...] = (32, 64, 128)
    """Channels of each stage of narrow; the last is the feature dimension."""
    blocks_per_stage: int = 1
    """Residual blocks in each stage of narrow."""
    zero_init_residual: bool = True
    """Start each residual block as the identity: steadier at large learning rates (Goyal 2017)."""

    def __post_init__(self) -> None:
        known = ("narrow", *RESNETS)
        if self.name not in known and not self.name.startswith(TIMM_PREFIX):
            raise ValueError(
                f"backbone {self.name!r} is unknown: choose one of {', '.join(known)}, "
                f"or {TIMM_PREFIX}NAME for a model of the timm package."
            )
        if self.stem not in ("auto", "small", "stride2", "imagenet"):
            raise ValueError(
                f"backbone stem {self.stem!r} is unknown: choose auto, small, stride2 or imagenet."
            )
        if self.name.startswith(TIMM_PREFIX) and self.stem != "auto":
            raise ValueError(
                f"backbone stem {self.stem!r} does not apply to {self.name}: "
                "timm models bring their own stem. Leave the stem at auto."
            )
        if not self.widths or min(self.widths) < 1:
            raise ValueError(
                f"backbone widths {self.widths} must be positive channel counts, one a stage, "
                "such as (32, 64, 128)."
            )
        if self.blocks_per_stage < 1:
            raise ValueError(
                f"backbone blocks_per_stage is {self.blocks_per_stage}, it must be 1 or more."
            )


class Backbone(nn.Module):
    """A network without classifier that knows the dimension of its features.

    Args:
        net: maps float32 ``[N, 3, S, S]`` to ``[N, D]``; its state dict is what gets exported.
        feature_dim: D.
    """

    def __init__(self, net: nn.Module, feature_dim: int) -> None:
        super().__init__()
        self.net = net
        self.feature_dim = feature_dim

    def forward(self, images_N3SS: Tensor) -> Tensor:
        """Pooled features ``[N, D]`` of normalised float pictures ``[N, 3, S, S]``."""
        features_ND: Tensor = self.net(images_N3SS)
        return features_ND


def resolve_stem(config: BackboneConfig, crop_size: int) -> Stem:
    """The stem that ``auto`` stands for at this crop size; any other stem is returned as it is.

    An ImageNet stem shrinks a picture 4x before the first block, which costs small crops several
    points of accuracy. The narrow network halves crops from 32 px on: a CPU pays for every pixel.

    >>> resolve_stem(BackboneConfig(name="resnet18"), 32), resolve_stem(BackboneConfig(), 32)
    ('small', 'stride2')
    """
    if config.stem != "auto":
        return config.stem
    if config.name == "narrow":
        return "small" if crop_size < 32 else "stride2" if crop_size <= 96 else "imagenet"
    return "small" if crop_size <= 64 else "imagenet"


def check_crop(config: BackboneConfig, *, built_for: int, crop_size: int) -> None:
    """Raise ``ValueError`` unless a network built for one size takes crops of another.

    Args:
        config: of the network.
        built_for: edge in pixels that `build_backbone` was told.
        crop_size: edge of the crops, no larger.
    """
    if config.name.startswith(TIMM_PREFIX):
        facts = timm_facts(config.name.removeprefix(TIMM_PREFIX))
        if facts.fixed_input_size and crop_size != built_for:
            raise ValueError(
                f"crops of {crop_size} px for backbone {config.name}, which works at one size, "
                f"here {built_for} px. Use crops of {built_for} px, or a convolutional backbone."
            )
        least = facts.input_size[-1] // facts.pool_size[-1] if facts.pool_size else 1
    else:
        least = {"small": 1, "stride2": 2, "imagenet": 4}[resolve_stem(config, built_for)]
        least *= 2 ** (len(config.widths) - 1 if config.name == "narrow" else 3)
    if crop_size < least:
        raise ValueError(
            f"crops of {crop_size} px for backbone {config.name}, which shrinks pictures of "
            f"{built_for} px {least} times and would see nothing of them. "
            f"Use crops of {least} px or more, or a stem that shrinks less (backbone.stem)."
        )


def build_backbone(config: BackboneConfig, crop_size: int) -> Backbone:
    """A freshly initialised backbone for crops of ``crop_size`` pixels, in channels_last layout.

    Weights come from torch's global generator.

    Raises:
        ValueError: a timm model is asked for, and timm is missing, does not know it, or cannot
            build it for this size.
    """
    if config.name.startswith(TIMM_PREFIX):
        backbone = _timm_backbone(config.name.removeprefix(TIMM_PREFIX), crop_size)
    elif config.name == "narrow":
        backbone = _narrow_backbone(config, resolve_stem(config, crop_size))
    else:
        backbone = _torchvision_backbone(config, resolve_stem(config, crop_size))
    return backbone.to(memory_format=torch.channels_last)


def _stem_layers(stem: Stem, width: int) -> tuple[nn.Conv2d, nn.Module]:
    """First convolution and the pooling after it."""
    if stem == "small":
        return nn.Conv2d(3, width, 3, stride=1, padding=1, bias=False), nn.Identity()
    if stem == "stride2":
        return nn.Conv2d(3, width, 5, stride=2, padding=2, bias=False), nn.Identity()
    convolution = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
    return convolution, nn.MaxPool2d(3, stride=2, padding=1)


def _torchvision_backbone(config: BackboneConfig, stem: Stem) -> Backbone:
    from torchvision.models import get_model

    net = get_model(config.name, weights=None, zero_init_residual=config.zero_init_residual)
    feature_dim = int(net.fc.in_features)
    net.fc = nn.Identity()
    if stem != "imagenet":
        net.conv1, net.maxpool = _stem_layers(stem, net.conv1.out_channels)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    return Backbone(net, feature_dim)


def _narrow_backbone(config: BackboneConfig, stem: Stem) -> Backbone:
    """He et al. 2015 (section 4.2) for CIFAR, with free widths."""
    width = config.widths[0]
    convolution, pool = _stem_layers(stem, width)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=convolution, bn1=nn.BatchNorm2d(width), relu=nn.ReLU(inplace=True), pool1=pool
    )
    for stage, next_width in enumerate(config.widths):
        blocks = []
        for position in range(config.blocks_per_stage):
            stride = 2 if stage > 0 and position == 0 else 1
            blocks.append(BasicBlock(width, next_width, stride))
            width = next_width
        layers[f"stage{stage + 1}"] = nn.Sequential(*blocks)
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    net = nn.Sequential(layers)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, BasicBlock) and config.zero_init_residual:
            nn.init.zeros_(module.bn2.weight)
    return Backbone(net, width)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2015, figure 5, left).

    Tensors have the names that torchvision's block of this name gives them, so that one's weights
    are the other's.
    """

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        downsample = None
        if stride != 1 or width_in != width_out:
            convolution = nn.Conv2d(width_in, width_out, 1, stride=stride, bias=False)
            downsample = nn.Sequential(convolution, nn.BatchNorm2d(width_out))
        self.conv1 = nn.Conv2d(width_in, width_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width_out)
        self.downsample = downsample

    def forward(self, inputs_NCHW: Tensor) -> Tensor:
        """Features [N, width_out, H / stride, W / stride]."""
        shortcut = inputs_NCHW if self.downsample is None else self.downsample(inputs_NCHW)
        features: Tensor = self.relu(self.bn1(self.conv1(inputs_NCHW)))
        features = self.bn2(self.conv2(features))
        features += shortcut
        return cast(Tensor, self.relu(features))


def timm_facts(name: str) -> Any:
    """What timm says of a model: ``input_size``, ``mean``, ``std``, ``fixed_input_size``, ...

    Raises:
        ValueError: timm is missing or does not know the model.
    """
    if importlib.util.find_spec("timm") is None:
        raise ValueError(
            f"backbone {TIMM_PREFIX}{name} needs the timm package, which is not installed. "
            "Install the extra (pip install '.[timm]') or choose resnet18."
        )
    import timm

    try:
        return timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        raise ValueError(
            f"backbone {TIMM_PREFIX}{name}: timm {timm.__version__} knows no model of this name "
            f"({error}). timm.list_models() lists them."
        ) from error


def timm_options(name: str, crop_size: int) -> dict[str, Any]:
    """What timm has to be told beside the name, to build a model for crops of this size.

    Only models that work at one size, as most transformers do, have to know it.
    """
    facts = timm_facts(name)
    fixed = facts.fixed_input_size and facts.input_size[-1] != crop_size
    return {"img_size": crop_size} if fixed else {}


def _timm_backbone(name: str, crop_size: int) -> Backbone:
    options = timm_options(name, crop_size)
    import timm

    try:
        # Never the published weights: an encoder learns from the corpus; nothing is downloaded.
        net: Any = timm.create_model(name, pretrained=False, num_classes=0, **options)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"backbone {TIMM_PREFIX}{name}: timm cannot build it for pictures of {crop_size} px "
            f"({error or type(error).__name__}). Choose the size that it was made for, or another."
        ) from error
    # Not num_features: a MobileNet widens them once more before its classifier.
    return Backbone(net, int(net.head_hidden_size))
