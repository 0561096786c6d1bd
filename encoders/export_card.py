"""The card of an export: what the files are, and the Python that uses them without lookalike.

The lines in the card are the ones that the export is checked with.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from encoders.backbone import RESNETS, TIMM_PREFIX, BasicBlock, timm_options
from encoders.encoder import Encoder, Layer
from encoders.export import (
    BACKBONE_FILE,
    ONNX_FILE,
    PROJECTOR_FILE,
    TORCHSCRIPT_FILE,
    ExportFormat,
)
from encoders.preprocess import PreprocessConfig

__all__ = ["CARD_FILE", "CardNotes", "export_card", "usage"]

CARD_FILE = "README.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class CardNotes:
    """What a card says beyond the encoder itself.

    Args:
        name: of the encoder in its workspace.
        checked: a sentence on the pictures that the export was compared on, and how it agreed.
        origin: where the weights come from, by what they are called there.
    """

    name: str
    checked: str
    origin: Mapping[str, str]


def export_card(encoder: Encoder, to: ExportFormat, layer: Layer, notes: CardNotes) -> str:
    """The card in Markdown."""
    preprocess, dim = encoder.config.preprocess, encoder.dim(layer)
    size, code = preprocess.size, usage(encoder, to, layer)
    packages = dict.fromkeys(
        re.findall(r"^(?:import|from) (?!collections)(\w+)", code, re.MULTILINE)
    )
    origin = "\n".join(f"| {key} | {value} |" for key, value in notes.origin.items())
    return f"""# {notes.name}: a picture to a vector of {dim} numbers

Two pictures are as alike as the inner product of their vectors, which have unit length. Exported by
lookalike to {to}. To use it takes {", ".join(f"`{name}`" for name in packages)}, and Pillow to open
pictures.

| | |
|---|---|
| input | uint8 `[N, {size}, {size}, 3]`: N pictures, rows, columns, RGB |
| output | float32 `[N, {dim}]`, of unit length |
| encoder_id | `{encoder.encoder_id}` |
| layer | {layer} |
| backbone | {encoder.config.backbone.name} |
{origin}

## From pixels to vectors

In this folder:

```python
{code}```

`embed` normalises the pixels and gives vectors of unit length. {notes.checked}

## From a picture to pixels

Upright as its EXIF says, in RGB,
{_square_rule(preprocess)} (bicubic, antialiased):

```python
{_to_square(preprocess)}```

Besides, lookalike puts transparent pictures on white, scales 16-bit grey to 8 bit, and decodes
large JPEGs at 1/2, 1/4 or 1/8 scale while no edge falls below {preprocess.least_edge} pixels:
there, pixels differ a little.
"""


def usage(encoder: Encoder, to: ExportFormat, layer: Layer) -> str:
    """Python that defines ``embed(pixels)`` from the files in the current folder."""
    if to == "onnx":
        return f"""import onnxruntime

session = onnxruntime.InferenceSession("{ONNX_FILE}")

def embed(pixels):
    return session.run(["vectors"], {{"pixels": pixels}})[0]
"""
    if to == "torchscript":
        return f"""import torch

encoder = torch.jit.load("{TORCHSCRIPT_FILE}", map_location="cpu")

def embed(pixels):
    with torch.inference_mode():
        return encoder(torch.from_numpy(pixels)).numpy()
"""
    build = _TIMM if to == "timm" else _network(encoder, layer)
    preprocess = encoder.config.preprocess
    return f"""{build}
mean = torch.tensor({list(preprocess.mean)}).view(3, 1, 1)
std = torch.tensor({list(preprocess.std)}).view(3, 1, 1)

def embed(pixels):
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        return nn.functional.normalize(net(images)).numpy()
"""


_TIMM = """import timm
import torch
from torch import nn

net = timm.create_model("local-dir:.", pretrained=True).eval()
"""


def _network(encoder: Encoder, layer: Layer) -> str:
    """Lines that build the network from its library's parts and load its weights."""
    name, net = encoder.config.backbone.name, encoder.backbone.net
    if name.startswith(TIMM_PREFIX):
        imports = "import timm\nimport torch"
        name = name.removeprefix(TIMM_PREFIX)
        options = {"num_classes": 0, **timm_options(name, encoder.config.preprocess.size)}
        build = f"net = timm.create_model({name!r}, **{options})\n"
    elif name in RESNETS:
        imports = "import torch\nimport torchvision"
        parts = ("conv1", "maxpool", "fc")
        changed = (f"net.{part} = {_construct(getattr(net, part))}\n" for part in parts)
        build = f"net = torchvision.models.{name}()\n{''.join(changed)}"
    else:
        imports = "from collections import OrderedDict\n\nimport torch"
        build = f"{_BLOCK}net = {_construct(net)}\n"
    build += f'net.load_state_dict(load_file("{BACKBONE_FILE}"))\n'
    if layer == "projector":
        build += f"""projector = {_construct(encoder.projector)}
projector.load_state_dict(load_file("{PROJECTOR_FILE}"))
net = nn.Sequential(net, projector)
"""
    parts_of_torch = "from torch import nn"
    if name == "narrow":
        parts_of_torch += "\nfrom torchvision.models.resnet import BasicBlock"
    return f"""{imports}
from safetensors.torch import load_file
{parts_of_torch}

{build}net.eval()
"""


_BLOCK = """def block(before, after, stride):
    if stride == 1 and before == after:
        return BasicBlock(before, after)
    shortcut = nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
    return BasicBlock(before, after, stride, nn.Sequential(*shortcut))

"""


def _construct(module: nn.Module, indent: str = "") -> str:
    """Python that makes the module anew, with other weights: modules print as they are made.

    >>> print(_construct(nn.Sequential(nn.Flatten(1), nn.Identity())))
    nn.Sequential(
        nn.Flatten(start_dim=1, end_dim=-1),
        nn.Identity(),
    )
    """
    if isinstance(module, BasicBlock):
        first = module.conv1
        return f"block({first.in_channels}, {first.out_channels}, {first.stride[0]})"
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        # Newer torch prints arguments that older ones do not take.
        affine = "" if module.affine else ", affine=False"
        return f"nn.{type(module).__name__}({module.num_features}{affine})"
    if not isinstance(module, nn.Sequential):
        return f"nn.{module!r}"
    inner = indent + "    "
    children = dict(module.named_children())
    numbered = all(name.isdigit() for name in children)
    lines = "".join(
        f"{inner}{'' if numbered else f'{name}='}{_construct(child, inner)},\n"
        for name, child in children.items()
    )
    return (
        f"nn.Sequential(\n{lines}{indent})"
        if numbered
        else (f"nn.Sequential(OrderedDict(\n{lines}{indent}))")
    )


def _square_rule(preprocess: PreprocessConfig) -> str:
    """In words, what `to_square` does."""
    size = preprocess.size
    if preprocess.fit == "crop":
        return f"the largest square in its middle, resampled to {size} x {size} pixels"
    return f"resampled until its longer edge has {size} pixels, and centred on a white square"


def _to_square(preprocess: PreprocessConfig) -> str:
    """Python that does what `to_square` does, to the bit."""
    size = preprocess.size
    if preprocess.fit == "crop":
        lines = f"""edge = min(image.size)
left, top = (image.width - edge) / 2, (image.height - edge) / 2
box = (left, top, left + edge, top + edge)
return np.array(image.resize(({size}, {size}), Image.Resampling.BICUBIC, box=box))
"""
    else:
        lines = f"""scale = {size} / max(image.size)
width, height = (max(1, round(edge * scale)) for edge in image.size)
square = Image.new("RGB", ({size}, {size}), "white")
corner = (({size} - width) // 2, ({size} - height) // 2)
square.paste(image.resize((width, height), Image.Resampling.BICUBIC), corner)
return np.array(square)
"""
    return f"""import numpy as np
from PIL import Image, ImageOps

def to_square(image):
    image = ImageOps.exif_transpose(image).convert("RGB")
{textwrap.indent(lines, "    ")}
pixels = np.stack([to_square(Image.open(file)) for file in ("one.jpg", "another.png")])
vectors = embed(pixels)
"""
