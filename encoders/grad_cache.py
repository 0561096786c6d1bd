"""Gradient caching: a batch whose activations do not fit is encoded in chunks.

A first pass without graph gives all embeddings; the loss of the whole batch gives the gradient of
each; a second pass encodes chunk by chunk again, now with a graph, through which those gradients
flow. Only one chunk has activations at a time, and the sum of all chunks' gradients is exactly that
of one pass which normalises by chunks.

BatchNorm sees a chunk at a time: a range of the *global* batch, of which each rank holds its share,
so statistics are those of batch_size / batch_chunks pictures whatever the number of ranks ("ghost"
batch norm). Running statistics move in the first pass alone.

Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
section 3.2. Deviation: the losses of other ranks reach the cache through the backward of their
gather.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from encoders.batchnorm import paused_statistics
from encoders.method import Batch, Method, MethodOutput

__all__ = ["forward_backward"]

Autocast = Callable[[], AbstractContextManager[object]]


def forward_backward(
    method: Method,
    batch: Batch,
    autocast: Autocast,
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> MethodOutput:
    """Add the gradients of a batch's loss to its method's parameters, chunk by chunk.

    Args:
        method: in training mode.
        batch: ``num_chunks`` says into how many it is cut.
        autocast: makes the context that networks and loss run in.
        scale: of the loss before it goes backward.

    Returns:
        What ``method(batch)`` gives; its loss has no graph that leads to the parameters.

    Cost: one more forward pass of the trained networks.
    """
    chunks = batch.chunks()
    encoded, targets, states = [], [], []
    with torch.no_grad(), autocast():
        for chunk in chunks:
            states.append(_random_state(chunk.ids.device))
            encoded.append(method.encode(chunk))
            targets.append(method.encode_targets(chunk))
    online = [torch.cat(rows).requires_grad_() for rows in zip(*encoded, strict=True)]
    with autocast():
        output = method.compare(online, [torch.cat(r) for r in zip(*targets, strict=True)], batch)
    scale(output.loss).backward()  # type: ignore[no-untyped-call]
    # None for what the loss does not look at, such as the projections beside BYOL's predictions.
    cached = [rows.grad for rows in online]
    start = 0
    with paused_statistics(method):
        for chunk, state in zip(chunks, states, strict=True):
            with _replayed(state, chunk.ids.device), autocast():
                rows = method.encode(chunk)
            here = slice(start, start + len(chunk.ids))
            _send_back(rows, [None if grad is None else grad[here] for grad in cached])
            start = here.stop
    return output


def _send_back(rows: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    pairs = zip(rows, gradients, strict=True)
    seen = [(x, gradient) for x, gradient in pairs if gradient is not None]
    torch.autograd.backward([x for x, _ in seen], [gradient for _, gradient in seen])


def _random_state(device: torch.device) -> list[Tensor]:
    """Of the generators that modules such as dropout draw from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


@contextmanager
def _replayed(states: Sequence[Tensor], device: torch.device) -> Iterator[None]:
    """Draw again what was drawn from these states on; afterwards nothing has been drawn."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_rng_state(states[0])
        for state in states[1:]:
            torch.cuda.set_rng_state(state, device)
        yield
