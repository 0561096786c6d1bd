"""Can the loss be lowered without looking at the pictures? Two short cuts of queues of keys.

A key that BatchNorm normalised together with its query's batch carries that batch's statistics, by
which the query can find it. A key that stands among its own negatives can be found by nothing.

Shapes: N pictures of this rank, K rows of the queue, D embedding.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from encoders.batchnorm import paused_statistics
from encoders.collective import average, gather_rows, rank
from encoders.losses import unit_rows
from encoders.method import Batch, Method

__all__ = ["keys_in_queue", "shared_statistics"]

# Cosine from which two keys are copies of each other; views of one picture are far below it.
COPY = 1 - 1e-5
# How far a row has to move to be said to depend on another; rounding is far below it.
MOVED = 1e-4


@torch.no_grad()
def shared_statistics(method: Method, batch: Batch) -> float:
    """What part of the pictures normalised with a query its key is normalised with as well.

    One picture of the batch is changed: which queries and which keys of *other* pictures move is
    which pictures share its BatchNorm statistics. 0 without BatchNorm, 1 / key_groups for MoCo as
    it should be, 1 when keys see what their queries see.

    Cost: two forward passes of the batch through each network; no running statistics move.
    """
    probe = replace(batch, view_a=_changed(batch.view_a), view_b=_changed(batch.view_b))
    devices = [batch.ids.device] if batch.ids.is_cuda else []
    with paused_statistics(method), torch.random.fork_rng(devices=devices):
        before, after = _rows_of(method, batch), _rows_of(method, probe)
    moved_Q, moved_K = (
        (gather_rows(now) - gather_rows(then)).norm(dim=1) > MOVED
        for now, then in zip(after, before, strict=True)
    )
    # The changed picture itself, row 0 of rank 0, says nothing.
    both, either = (moved_Q & moved_K)[1:].sum(), (moved_Q | moved_K)[1:].sum()
    return float(both / either.clamp(min=1))


def _changed(view: Tensor) -> Tensor:
    changed = view.clone()
    if rank() == 0:
        changed[0] = 10 * (1 - changed[0])
    return changed


def _rows_of(method: Method, batch: Batch) -> tuple[Tensor, Tensor]:
    """Unit queries [N, D] and keys [N, D] of one chunk, with the same random draws each time."""
    torch.manual_seed(0)
    return unit_rows(method.encode(batch)[0]), unit_rows(method.encode_targets(batch)[0])


@torch.no_grad()
def keys_in_queue(keys_ND: Tensor, queue_KD: Tensor, ids_K: Tensor) -> float:
    """Share of keys, over all ranks, that stood in the queue when their query was compared with it.

    Args:
        keys_ND: unit rows: the positives of this rank's queries.
        queue_KD: unit rows that the loss compared with.
        ids_K: int64 ids of the queue's rows, below 0 where there is none.
    """
    copies_NK = (keys_ND @ queue_KD.to(keys_ND.dtype).T > COPY) & (ids_K >= 0)
    share = copies_NK.any(dim=1).float().mean()
    average([share])
    return float(share)
