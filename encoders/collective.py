"""Collectives over the training ranks, differentiable where a loss looks through them.

Every function is the identity when ``torch.distributed`` is not initialised, so one code path
serves one process and many; `first_ranks` leaves some out. Gradients follow one rule: backward sums
over the ranks. With the mean of parameter gradients over the ranks (`average`), W ranks then give
exactly the gradient of the mean of their losses, whatever crosses between them.

Shapes: N local rows, W ranks, G chunks; without chunks the global rows W*N are in rank order, which
is the sampler's global order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["average", "first_ranks", "gather_rows", "group", "rank", "world_size"]

# The last is in force. No context variable: backward runs in threads of torch's own.
_groups: list[Any] = [None]


def group() -> Any:
    """The process group that trains together, for torch's own collectives; None means all."""
    return _groups[-1]


@contextmanager
def first_ranks(num_ranks: int, timeout_s: float = 300) -> Iterator[bool]:
    """While it lasts, the first ``num_ranks`` ranks train together, without the others.

    Every rank has to enter. The others build no method and call no collective before they leave.

    Args:
        num_ranks: 1 or more.
        timeout_s: how long a collective may take.

    Yields:
        Whether this rank is one of them.
    """
    if num_ranks >= world_size():
        yield True
        return
    is_one = rank() < num_ranks
    timeout = timedelta(seconds=timeout_s)
    _groups.append(dist.new_group(list(range(num_ranks)), timeout=timeout))
    try:
        yield is_one
    finally:
        # Destroying it could wait for a rank that died; that comes with the end of the process.
        _groups.pop()


def world_size() -> int:
    """Number of ranks that train together; 1 without ``torch.distributed``."""
    return dist.get_world_size(group()) if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's place among the ranks; 0 without ``torch.distributed``."""
    return dist.get_rank(group()) if dist.is_available() and dist.is_initialized() else 0


def gather_rows(rows: Tensor, num_chunks: int = 1) -> Tensor:
    """Concatenate the rows of all ranks in rank order; backward sums their gradients.

    Args:
        rows: [N, ...] of any dtype; N and the other sizes must be the same on every rank.
        num_chunks: G, a divisor of N. The rows are this rank's share of each of so many chunks of
            the global batch, and come back chunk by chunk: in the sampler's global order.

    Returns:
        [W * N, ...], the same values on every rank.
    """
    if world_size() == 1:
        return rows
    gathered: Tensor = _GatherRows.apply(rows)
    if num_chunks == 1:
        return gathered
    by_rank = gathered.view(world_size(), num_chunks, -1, *rows.shape[1:])
    return by_rank.transpose(0, 1).flatten(0, 2)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.num_rows = rows.shape[0]
        gathered = rows.new_empty((world_size() * rows.shape[0], *rows.shape[1:]))
        dist.all_gather_into_tensor(gathered, rows.contiguous(), group=group())
        return gathered

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # Another rank's loss reaches our rows too: without this sum their share is lost in silence.
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group())
        return total.narrow(0, rank() * ctx.num_rows, ctx.num_rows)


def average(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over the ranks, in place, with one collective.

    Used instead of DistributedDataParallel: the layout of the reduced buffer never changes, so a
    resumed run adds in the same order as one that was never interrupted. Deviation: the exchange
    does not overlap with backward; it moves the gradients once, 45 MB for a ResNet-18.

    Args:
        tensors: of one dtype and device, with the same shapes in the same order on every rank.
    """
    if world_size() == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat, group=group())
    flat /= world_size()
    start = 0
    for tensor in tensors:
        tensor.copy_(flat[start : start + tensor.numel()].view(tensor.shape))
        start += tensor.numel()
