"""An encoder as files for other programs: ONNX, TorchScript, safetensors, or a folder of timm's.

ONNX and TorchScript hold the whole way from the pixels of a square to its unit vector. The other
two hold weights for a network that torchvision or timm builds; `encoders.export_card` writes the
lines around it.
Shapes: N pictures, S edge of the square, D embedding.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from encoders.backbone import RESNETS, TIMM_PREFIX, resolve_stem, timm_options
from encoders.card import encoder_body, tensor_bytes
from encoders.encoder import EPSILON, Encoder, Layer

__all__ = [
    "BACKBONE_FILE",
    "METADATA_KEY",
    "ONNX_FILE",
    "PROJECTOR_FILE",
    "TORCHSCRIPT_FILE",
    "ExportFormat",
    "PictureToVector",
    "export_files",
    "timm_architecture",
]

ExportFormat = Literal["onnx", "torchscript", "safetensors", "timm"]

ONNX_FILE = "encoder.onnx"
TORCHSCRIPT_FILE = "encoder.pt"
BACKBONE_FILE = "model.safetensors"
PROJECTOR_FILE = "projector.safetensors"
TIMM_CONFIG_FILE = "config.json"
METADATA_KEY = "lookalike"
"""Key of a safetensors file's metadata under which the encoder's own card lies, as JSON."""

OPSET = 18
"""The first that torch's exporter writes without converting; onnxruntime reads it since 1.14."""
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONNX_MAX_BYTES = 2**31 - 2**20
"""A protobuf message ends at 2 GiB; a MiB is left for the graph."""


class PictureToVector(nn.Module):
    """What `Encoder.embed` does, as one module: uint8 ``[N, S, S, 3]`` to float32 ``[N, D]``.

    Args:
        encoder: is copied, to the CPU.
        layer: whose unit vectors come out.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder, layer: Layer) -> None:
        super().__init__()
        preprocess = encoder.config.preprocess
        self.backbone = copy.deepcopy(encoder.network()).cpu()
        with_projector = layer == "projector"
        self.projector = copy.deepcopy(encoder.projector).cpu() if with_projector else nn.Identity()
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocess.std).view(3, 1, 1))
        self.eval()

    def forward(self, pixels_NSS3: Tensor) -> Tensor:
        """Unit vectors of squares as ``to_square`` makes them."""
        images_N3SS = pixels_NSS3.permute(0, 3, 1, 2).float() / 255
        features_ND: Tensor = self.projector(self.backbone((images_N3SS - self.mean) / self.std))
        norms_N1 = torch.linalg.vector_norm(features_ND, dim=1, keepdim=True)
        units_ND: Tensor = features_ND / norms_N1.clamp_min(EPSILON)
        return units_ND


def export_files(encoder: Encoder, to: ExportFormat, layer: Layer = "backbone") -> dict[str, bytes]:
    """Content of the export's files by name, its card apart.

    Raises:
        ValueError: the format or the layer is unknown, the format cannot hold this encoder or this
            layer, or it needs a package that is not installed.
    """
    if to not in _WRITERS:
        raise ValueError(
            f"export to {to!r}: this format is unknown. Choose one of {', '.join(_WRITERS)}."
        )
    encoder.dim(layer)  # refuses a layer that the encoder lacks
    return _WRITERS[to](encoder, layer)


def timm_architecture(encoder: Encoder) -> str:
    """The name by which timm builds this backbone.

    Raises:
        ValueError: timm has no such network, or is not installed.
    """
    config = encoder.config.backbone
    if config.name.startswith(TIMM_PREFIX):
        return config.name.removeprefix(TIMM_PREFIX).partition(".")[0]
    stem = resolve_stem(config, encoder.config.preprocess.size)
    if config.name not in RESNETS or stem != "imagenet":
        raise ValueError(
            f"export to timm: a {config.name} backbone with the {stem} stem does not exist there. "
            f"It takes {TIMM_PREFIX}NAME backbones, and {', '.join(RESNETS)} with the imagenet "
            "stem. Export --to onnx, torchscript or safetensors, which take every encoder."
        )
    return config.name


def _example(encoder: Encoder) -> Tensor:
    """Two squares to follow through the network: of one, a tracer would make a constant."""
    size = encoder.config.preprocess.size
    return torch.zeros(2, size, size, 3, dtype=torch.uint8)


def _onnx(encoder: Encoder, layer: Layer) -> dict[str, bytes]:
    _require("onnx", ONNX_PACKAGES, extra="export", others="torchscript or safetensors")
    module = PictureToVector(encoder, layer)
    size_bytes = sum(tensor.nbytes for tensor in module.state_dict().values())
    if size_bytes > ONNX_MAX_BYTES:
        raise ValueError(
            f"export to onnx: the weights are {size_bytes:,} bytes, one ONNX file holds "
            f"{ONNX_MAX_BYTES:,}. Export --to torchscript or safetensors."
        )
    program = torch.onnx.export(
        module,
        (_example(encoder),),
        dynamo=True,
        opset_version=OPSET,
        input_names=["pixels"],
        output_names=["vectors"],
        dynamic_shapes={"pixels_NSS3": {0: torch.export.Dim("N")}},
        verbose=False,
    )
    assert program is not None, "the exporter that is not legacy returns a program"
    model = program.model_proto
    for part in (model.graph, *model.graph.node):
        del part.metadata_props[:]  # names of source files on this machine
    for key, value in _about(encoder, layer).items():
        model.metadata_props.add(key=key, value=value)
    return {ONNX_FILE: model.SerializeToString()}


def _torchscript(encoder: Encoder, layer: Layer) -> dict[str, bytes]:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        # torch calls TorchScript deprecated, and any look at a shape suspicious; the result is
        # compared with the encoder, at another number of pictures.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            PictureToVector(encoder, layer), (_example(encoder),)
        )
        torch.jit.save(traced, buffer, _extra_files=_about(encoder, layer))
    return {TORCHSCRIPT_FILE: buffer.getvalue()}


def _safetensors(encoder: Encoder, layer: Layer) -> dict[str, bytes]:
    metadata = {"format": "pt", METADATA_KEY: json.dumps(encoder_body(encoder))}
    files = {BACKBONE_FILE: tensor_bytes(encoder.backbone.net, metadata)}
    if layer == "projector":
        files[PROJECTOR_FILE] = tensor_bytes(encoder.projector, metadata)
    return files


def _timm(encoder: Encoder, layer: Layer) -> dict[str, bytes]:
    architecture = timm_architecture(encoder)
    if layer != "backbone":
        raise ValueError(
            f"export to timm: its models have no {layer}, only the backbone. "
            "Export --to onnx, torchscript or safetensors, or --layer backbone."
        )
    _require("timm", ("timm",), extra="timm", others="onnx, torchscript or safetensors")
    preprocess = encoder.config.preprocess
    config = {
        "architecture": architecture,
        "model_args": timm_options(architecture, preprocess.size),
        "num_classes": 0,
        "num_features": encoder.dim("backbone"),
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, preprocess.size, preprocess.size],
            "mean": preprocess.mean,
            "std": preprocess.std,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": {"crop": "center", "pad": "border"}[preprocess.fit],
            "num_classes": 0,
        },
    }
    return {
        TIMM_CONFIG_FILE: (json.dumps(config, indent=2) + "\n").encode(),
        BACKBONE_FILE: _safetensors(encoder, layer)[BACKBONE_FILE],
    }


_WRITERS: dict[str, Callable[[Encoder, Layer], dict[str, bytes]]] = {
    "onnx": _onnx,
    "torchscript": _torchscript,
    "safetensors": _safetensors,
    "timm": _timm,
}


def _about(encoder: Encoder, layer: Layer) -> dict[str, str]:
    """What a file says of itself to a program that knows lookalike."""
    return {METADATA_KEY: json.dumps({**encoder_body(encoder), "layer": layer})}


def _require(to: str, packages: tuple[str, ...], *, extra: str, others: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"export to {to}: needs {', '.join(missing)}, not installed here. "
            f"Install the extra (pip install '.[{extra}]'), or export --to {others}."
        )
