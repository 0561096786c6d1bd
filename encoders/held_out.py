"""Pictures that a run is examined on, and what its networks make of them.

Their two views are the same at each examination. In eval mode and in pieces of one size, of which
each rank encodes its share, their embeddings do not depend on the number of ranks. Nothing that
training reads is moved.

Shapes: E examined pictures, S edge in pixels, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from encoders.augment import augment_views
from encoders.collective import gather_rows, rank, world_size
from encoders.losses import unit_rows
from encoders.method import Method
from encoders.pretrain_config import PretrainConfig
from encoders.split import PIECE

__all__ = ["ExaminedPictures", "evaluating"]

# Views of an epoch that no run reaches, in case the pictures are trained on as well.
EPOCH = (1 << 32) - 1


class ExaminedPictures:
    """Fixed views of some pictures, and what a method's trained networks make of them.

    Args:
        pixels: uint8 [E, S, S, 3], E a multiple of 32; the same on every rank.
        ids: int64 [E] picture ids.
        labels: int64 [E] classes, -1 for none; None when the corpus has none.
        config: of the run: its augmentation, preprocessing and seed.
        device: where this rank computes.
    """

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        ids: NDArray[np.int64],
        labels: NDArray[np.int64] | None,
        config: PretrainConfig,
        device: torch.device | str = "cpu",
    ) -> None:
        assert len(pixels) == len(ids)
        assert len(ids) % PIECE == 0
        self.labels = None if labels is None else torch.tensor(labels).to(device)
        self.num_pictures = len(ids)
        self.num_distinct = len(np.unique(pixels.reshape(len(pixels), -1), axis=0))
        num_pieces = len(ids) // PIECE
        self._per_rank = -(-num_pieces // world_size())
        self._pieces = []
        for turn in range(self._per_rank):
            # A rank without a piece of its own encodes the last once more; nobody reads it.
            piece = min(turn * world_size() + rank(), num_pieces - 1)
            rows = slice(piece * PIECE, (piece + 1) * PIECE)
            pixels_N3SS = torch.tensor(pixels[rows]).to(device).permute(0, 3, 1, 2)
            both = augment_views(
                pixels_N3SS,
                torch.tensor(ids[rows]),
                views=(config.view_a, config.view_b),
                seed=config.seed,
                epoch=EPOCH,
                preprocess=config.preprocess,
            )
            self._pieces.append(torch.cat(both))

    @torch.no_grad()
    def encode(
        self, method: Method, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> tuple[Tensor, Tensor]:
        """Unit float32 embeddings [E, D] of both views, the same on every rank."""
        with evaluating(method.backbone, method.projector), autocast():
            encoded = [method.project(pictures)[0] for pictures in self._pieces]
        pairs = [torch.cat(unit_rows(rows).chunk(2), dim=1) for rows in encoded]
        both = gather_rows(torch.cat(pairs), self._per_rank)[: self.num_pictures]
        view_a_ED, view_b_ED = both.chunk(2, dim=1)
        return view_a_ED.contiguous(), view_b_ED.contiguous()


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """While it lasts, networks are in eval mode; afterwards each module is in the mode it was."""
    before = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode
