"""A random generator without state: a draw depends on what it is for, not on what was drawn before.

Philox4x32-10 turns the counter (sample id, epoch, view, draw) under the key (seed) into random
words. So a picture is augmented alike whatever batch, rank or worker it falls to, after any resume.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3; constants
from the authors' Random123. Shapes: V views, N samples, K draws, B blocks of 4
draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["philox_4x32", "uniform_NK", "uniform_VNK"]

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF


def philox_4x32(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Ten Philox rounds on counters of four 32-bit words.

    Args:
        counter: int64 ``[..., 4]``, each in [0, 2^32).
        key: two 32-bit words.

    Returns:
        int64 ``[..., 4]``, each uniform in [0, 2^32); the same on every device.
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = _multiply(c0, MULTIPLIERS[0])
        high1, low1 = _multiply(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return torch.stack((c0, c1, c2, c3), dim=-1)


def uniform_NK(seed: int, epoch: int, ids_N: Tensor, view: int, num_draws: int) -> Tensor:  # noqa: N802
    """Uniform draws for one view of each sample: `uniform_VNK` of that view alone, ``[N, K]``."""
    return uniform_VNK(seed, epoch, ids_N, [view], num_draws)[0]


def uniform_VNK(  # noqa: N802
    seed: int, epoch: int, ids_N: Tensor, views: Sequence[int], num_draws: int
) -> Tensor:
    """Uniform draws for views of each sample, a pure function of its arguments.

    Draw j of a sample is the same whatever ``num_draws`` is and whichever samples and views stand
    beside it.

    Args:
        seed: 0 <= seed < 2^64.
        epoch: 0 <= epoch < 2^32.
        ids_N: int64 sample ids, on any device.
        views: each 0 <= view < 2^16; which copies of the sample the draws are for.
        num_draws: K, at most 2^18.

    Returns:
        float32 ``[V, N, K]`` in [0, 1), multiples of 2^-24, on the device of ``ids_N``.
    """
    extremes = min(views), max(views)
    if not (
        0 <= seed < 1 << 64 and 0 <= epoch <= WORD and 0 <= extremes[0] <= extremes[1] < 1 << 16
    ):
        raise ValueError(
            f"seed {seed}, epoch {epoch}, views {list(views)}: they must be 0 or more and below "
            "2^64, 2^32 and 2^16. Choose a smaller seed."
        )
    num_blocks = -(-num_draws // 4)
    if num_blocks > 1 << 16:
        raise ValueError(f"{num_draws} draws a sample, at most 2^18. Use several views.")
    shape = len(views), len(ids_N), num_blocks
    ids_N1 = ids_N.to(torch.int64)[:, None]
    view_V11 = torch.tensor(views, device=ids_N.device)[:, None, None]
    block_V1B = torch.arange(num_blocks, device=ids_N.device) | (view_V11 << 16)
    counter = (ids_N1 & WORD, (ids_N1 >> 32) & WORD, torch.full_like(ids_N1, epoch), block_V1B)
    counter_VNB4 = torch.stack([word.expand(shape) for word in counter], dim=-1)
    words_VNK = philox_4x32(counter_VNB4, (seed & WORD, seed >> 32)).flatten(2)[:, :, :num_draws]
    # The upper 24 bits, all that a float32 in [0, 1) holds without rounding up to 1.
    return (words_VNK >> 8).to(torch.float32) * 2.0**-24


def _multiply(words: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """High and low word of the product; int64 wraps like unsigned, the masks undo the sign."""
    product = words * constant
    return (product >> 32) & WORD, product & WORD
