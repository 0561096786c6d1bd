"""The encoder: the one function from pictures to unit vectors, and its identity.

Shapes: N pictures, S edge of the square, D embedding.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from encoders.backbone import TIMM_PREFIX, Backbone, BackboneConfig, build_backbone
from encoders.heads import ProjectorConfig, build_projector
from encoders.picture import Box, open_picture, to_square
from encoders.preprocess import PREPROCESS_RULE, PreprocessConfig

__all__ = [
    "Encoder",
    "EncoderConfig",
    "Layer",
    "embed_picture",
    "fresh_modules",
    "normalise",
    "preferred_device",
]

Layer = Literal["backbone", "projector"]

EPSILON = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """What an encoder is made of: enough to rebuild it around its weights."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The network that turns pixels into features."""
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    """The head that training adds; num_layers 0 leaves it out."""
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    """How a picture becomes the encoder's input; its size also chooses the stem."""

    def facts(self) -> dict[str, Any]:
        """The fields, for an identity and a card; see `PreprocessConfig.facts`."""
        return {**asdict(self), "preprocess": self.preprocess.facts()}


class Encoder:
    """A frozen backbone and projector in eval mode, with the preprocessing that belongs to them.

    Args:
        config: its architecture and preprocessing.
        backbone: trained or fresh, matching ``config``. Its weights are copied into a module of the
            encoder's own, so that training can go on.
        projector: likewise; empty when ``config.projector`` has 0 layers.
    """

    def __init__(self, config: EncoderConfig, backbone: Backbone, projector: nn.Module) -> None:
        self.config = config
        self.backbone, self.projector = fresh_modules(config, seed=0)
        self.backbone.load_state_dict(backbone.state_dict())
        self.projector.load_state_dict(projector.state_dict())
        for module in (self.backbone, self.projector):
            module.eval().requires_grad_(False)
        self._folded: tuple[list[int], nn.Module] | None = None
        self.to(next(backbone.parameters()).device)
        self._encoder_id: str | None = None

    @classmethod
    def initialise(cls, config: EncoderConfig, seed: int) -> Encoder:
        """An untrained encoder whose weights only the seed decides."""
        return cls(config, *fresh_modules(config, seed))

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers that can be embedded."""
        return get_args(Layer) if self.config.projector.num_layers else ("backbone",)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.backbone.parameters()).device

    def to(self, device: torch.device | str) -> Encoder:
        """Move the weights; returns itself. The identity does not change."""
        self.backbone.to(device)
        self.projector.to(device)
        self._folded = None
        return self

    def dim(self, layer: Layer = "backbone") -> int:
        """Dimension of a layer's vectors."""
        self._check_layer(layer)
        return (
            self.backbone.feature_dim if layer == "backbone" else self.config.projector.output_dim
        )

    @property
    def encoder_id(self) -> str:
        """Hex sha256 over weights and buffers, architecture and preprocessing; computed once.

        Each tensor enters by name, dtype, shape and little-endian bytes, in order of name. The
        projector counts, since it is one of the layers that can be indexed.
        """
        if self._encoder_id is None:
            hasher = hashlib.sha256()
            identity = {"config": self.config.facts(), "preprocess_rule": PREPROCESS_RULE}
            hasher.update(json.dumps(identity, sort_keys=True).encode())
            for prefix, module in (("backbone", self.backbone.net), ("projector", self.projector)):
                for name, tensor in sorted(module.state_dict().items()):
                    array = tensor.cpu().numpy()
                    hasher.update(f"|{prefix}.{name}|{array.dtype}|{array.shape}|".encode())
                    hasher.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
            self._encoder_id = hasher.hexdigest()
        return self._encoder_id

    @torch.inference_mode()
    def embed(
        self, pixels: NDArray[np.uint8], layer: Layer = "backbone", *, batch_size: int = 256
    ) -> NDArray[np.float32]:
        """Unit vectors of square pictures.

        A row does not depend on its neighbours, except that another batch size may reorder float
        additions, which moves an element by less than 1e-5 (1e-3 on a GPU, whose convolutions round
        to TF32). Nothing is hidden: features with NaN or infinity come out as NaN and zero features
        as zeros, which a caller reports ``non_finite``.

        Args:
            pixels: uint8 ``[N, S, S, 3]`` as `to_square` makes them.
            layer: ``backbone`` for search and transfer, ``projector`` for the space of the loss.
            batch_size: pictures at a time; bounds memory and changes nothing else.

        Returns:
            float32 ``[N, D]``.

        Raises:
            ValueError: pixels of another shape or dtype, or a layer that this encoder lacks.
        """
        self._check_layer(layer)
        size = self.config.preprocess.size
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (size, size, 3):
            raise ValueError(
                f"pixels are {pixels.dtype} {list(pixels.shape)}, this encoder embeds "
                f"uint8 [N, {size}, {size}, 3]. Make them with to_square and its preprocessing."
            )
        network = self.network()
        vectors_ND = np.empty((len(pixels), self.dim(layer)), np.float32)
        for start in range(0, len(pixels), batch_size):
            # Torch wraps neither read-only arrays, as Ray hands them out, nor mirrored ones.
            part = np.require(pixels[start : start + batch_size], requirements=["C", "W"])
            batch = torch.from_numpy(part).to(self.device)
            images = normalise(batch.permute(0, 3, 1, 2).float().div_(255), self.config.preprocess)
            features_ND: Tensor = network(images)
            if layer == "projector":
                features_ND = self.projector(features_ND)
            norms_N1 = torch.linalg.vector_norm(features_ND, dim=1, keepdim=True)
            units_ND = features_ND / norms_N1.clamp_min(EPSILON)
            vectors_ND[start : start + batch_size] = units_ND.cpu().numpy()
        return vectors_ND

    def network(self) -> nn.Module:
        """The backbone as it computes now: its BatchNorms folded where that is sure to be the same.

        Float32 ``[N, 3, S, S]``, normalised, to ``[N, D]``. Not to be changed: the weights are
        those of ``backbone``, as long as they stay as they are.
        """
        own = [*self.backbone.parameters(), *self.backbone.buffers()]
        if self.config.backbone.name.startswith(TIMM_PREFIX) or any(t.is_inference() for t in own):
            return self.backbone.net
        # In training, weights are copied into an encoder that is there already.
        version = [tensor._version for tensor in own]
        if self._folded is None or self._folded[0] != version:
            with torch.inference_mode(False), torch.no_grad():
                self._folded = (version, _fold(self.backbone.net))
        return self._folded[1]

    def _check_layer(self, layer: str) -> None:
        if layer not in self.layers:
            raise ValueError(
                f"layer {layer!r} is not in this encoder, which has {', '.join(self.layers)}. "
                "Embed one of those, or train an encoder with a projector."
            )


def _fold(net: nn.Module) -> nn.Module:
    """A copy whose convolutions do what their BatchNorms did: a sixth less time on a CPU.

    In the ResNets here a BatchNorm stands behind the convolution whose output it takes, which other
    libraries do not promise. Features move by float rounding, 1e-7 of unit vectors.
    """
    folded = copy.deepcopy(net)
    for module in folded.modules():
        for (name, first), (next_name, second) in pairwise(list(module.named_children())):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(first, second))
                setattr(module, next_name, nn.Identity())
    return folded.to(memory_format=torch.channels_last)


def preferred_device() -> torch.device:
    """The GPU that this process may use, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fresh_modules(config: EncoderConfig, seed: int) -> tuple[Backbone, nn.Sequential]:
    """Backbone and projector with initial weights that only the seed decides, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would set the generators of GPUs as well, which nothing puts back.
        torch.default_generator.manual_seed(seed)
        backbone = build_backbone(config.backbone, config.preprocess.size)
        projector = build_projector(config.projector, backbone.feature_dim)
    return backbone, projector


def normalise(images_N3SS: Tensor, config: PreprocessConfig) -> Tensor:
    """Float pictures in [0, 1] to what the backbone expects, in channels_last layout.

    `encoders.view_render` does the same while it paints views; a test holds them equal to the bit.
    """
    mean = images_N3SS.new_tensor(config.mean).view(3, 1, 1)
    std = images_N3SS.new_tensor(config.std).view(3, 1, 1)
    return (images_N3SS - mean).div_(std).contiguous(memory_format=torch.channels_last)


def embed_picture(
    encoder: Encoder, data: bytes, layer: Layer = "backbone", *, box: Box | None = None
) -> NDArray[np.float32]:
    """The unit vector, float32 ``[D]``, of one file's bytes: the path that the corpus takes too.

    Args:
        encoder: what embeds it.
        data: the whole file.
        layer: the encoder's output to take.
        box: the part of the picture to embed as if it were all; see `open_picture`.

    Raises:
        PictureError: the bytes hold no picture that can be decoded.
        ValueError: a box that does not lie in the picture.
    """
    preprocess = encoder.config.preprocess
    image = open_picture(data, box=box, decode_edge=preprocess.least_edge)
    pixels = to_square(image, preprocess)
    vectors_ND = encoder.embed(pixels[None], layer)
    vector_D: NDArray[np.float32] = vectors_ND[0]
    return vector_D
