"""The narrow ResNet and projector that every contestant trains, written with torchvision alone.

A test in the project holds it equal to the project's own, tensor by tensor.
Shapes: N pictures, S edge, D features.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn
from torchvision.models import resnet

WIDTHS = (32, 64, 128)
HIDDEN_DIM, OUTPUT_DIM = 256, 128


def backbone(widths: Sequence[int] = WIDTHS) -> nn.Sequential:
    """Float pictures [N, 3, S, S] to features [N, D]; the first convolution has stride 2.

    Args:
        widths: channels, one a stage; D is the last.
    """
    width = widths[0]
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, width, 5, stride=2, padding=2, bias=False),
        bn1=nn.BatchNorm2d(width),
        relu=nn.ReLU(inplace=True),
        pool1=nn.Identity(),
    )
    for stage, next_width in enumerate(widths):
        stride = 1 if stage == 0 else 2
        layers[f"stage{stage + 1}"] = nn.Sequential(_block(width, next_width, stride))
        width = next_width
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    net = nn.Sequential(layers)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, resnet.BasicBlock):
            nn.init.zeros_(module.bn2.weight)
    return net


def _block(width_in: int, width_out: int, stride: int) -> nn.Module:
    shortcut = None
    if stride != 1 or width_in != width_out:
        shortcut = nn.Sequential(
            nn.Conv2d(width_in, width_out, 1, stride=stride, bias=False), nn.BatchNorm2d(width_out)
        )
    return resnet.BasicBlock(width_in, width_out, stride, shortcut)


def projector(feature_dim: int = WIDTHS[-1]) -> nn.Sequential:
    """Features [N, D] to [N, 128] through a hidden layer of 256."""
    return nn.Sequential(
        nn.Linear(feature_dim, HIDDEN_DIM, bias=False),
        nn.BatchNorm1d(HIDDEN_DIM),
        nn.ReLU(inplace=True),
        nn.Linear(HIDDEN_DIM, OUTPUT_DIM),
    )


def num_parameters(*modules: nn.Module) -> int:
    """Trainable numbers in all of them."""
    return sum(p.numel() for module in modules for p in module.parameters())


def pin_threads(num_threads: int) -> None:
    """Compute in so many threads."""
    torch.set_num_threads(num_threads)
