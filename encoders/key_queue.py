"""MoCo's dictionary: a ring of the most recent keys with the ids of their pictures.

Shapes: K rows of the ring, B keys of one global batch, D dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["NO_PICTURE", "KeyQueue"]

# Id of a ring row that holds no key yet; real ids are not negative.
NO_PICTURE = -1


class KeyQueue(nn.Module):
    """The last K keys in enqueue order, the same on every rank, kept in the checkpoint.

    Any batch size is fine: writing wraps around the ring, and of more than K keys the last K stay.
    Rows not yet filled carry the id `NO_PICTURE`; losses mask them.

    Args:
        num_keys: K, at least 1.
        dim: D.

    Source: He et al. 2020 (MoCo), section 3.2. Deviation: starts empty instead of with random keys,
    so the first steps have few negatives rather than meaningless ones.
    """

    keys: Tensor
    ids: Tensor
    num_enqueued: Tensor

    def __init__(self, num_keys: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(num_keys, dim))
        self.register_buffer("ids", torch.full((num_keys,), NO_PICTURE))
        self.register_buffer("num_enqueued", torch.zeros((), dtype=torch.int64))

    @property
    def num_filled(self) -> Tensor:
        """How many rows hold a key: int64 scalar in 0..K, left on the device."""
        return self.num_enqueued.clamp(max=len(self.ids))

    @torch.no_grad()
    def enqueue(self, keys_BD: Tensor, ids_B: Tensor) -> None:
        """Append a global batch. Call it after the loss: a key must not be its own negative.

        Args:
            keys_BD: unit rows of the *whole* global batch in global order, the same on all ranks.
            ids_B: int64 ids of their pictures.
        """
        capacity = len(self.ids)
        total = self.num_enqueued + len(ids_B)
        keys_BD, ids_B = keys_BD[-capacity:], ids_B[-capacity:]
        first = total - len(ids_B)
        rows_B = (first + torch.arange(len(ids_B), device=ids_B.device)) % capacity
        self.keys[rows_B] = keys_BD.to(self.keys.dtype)
        self.ids[rows_B] = ids_B
        self.num_enqueued.copy_(total)
