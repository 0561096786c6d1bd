"""How well a run's encoder tells classes apart while it trains, beside what it has to beat.

kNN and logistic regression on frozen vectors of an encoder in eval mode: nothing of training sees
them, and no loss does. The pictures that are tested and those whose labels are known are apart and
the same for the whole run. Beside each figure stands that of untrained networks and raw pixels.

Shapes: B pictures with known labels (the bank), Q pictures that are tested, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.pixels_job import PixelCache
from encoders.baseline import raw_pixel_vectors
from encoders.collective import average, rank
from encoders.encoder import Encoder
from encoders.losses import NO_LABEL
from encoders.probe import knn_accuracy
from index.accuracy import held_out_accuracy

__all__ = ["OnlineProbe", "ProbeSplit", "split_labels"]

Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]
Embed = Callable[[NDArray[np.uint8]], Vectors]

MAX_BANK = 1536
BANK_SEED = 0
KNN_K = 5
TEMPERATURE = 0.1
PICTURES_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ProbeSplit:
    """Which pictures serve as what; apart, and fixed for the run.

    Args:
        bank: positions in the pixel cache, int64 [B]: the labels that are known.
        test: likewise, int64 [Q]: the pictures that are tested.
        bank_codes: classes int64 [B].
        test_codes: classes int64 [Q].
    """

    bank: Ids
    test: Ids
    bank_codes: Ids
    test_codes: Ids


def split_labels(codes_N: Ids, held_out_N: NDArray[np.bool_]) -> ProbeSplit | None:
    """What is held out is tested, the rest is the bank, a sample of it where there are many.

    Args:
        codes_N: int64 classes of the pixel cache's pictures, -1 for none.
        held_out_N: bool, those whose label no method learns.

    Returns:
        None when the bank has fewer than two classes or nothing is held out.
    """
    test = np.flatnonzero(held_out_N)
    known_N = (codes_N != NO_LABEL) & ~held_out_N
    tested = np.unique(codes_N[test])
    if len(np.unique(codes_N[known_N])) > len(tested) and known_N.sum() > MAX_BANK:
        # More classes than are tested: the others would crowd the bank.
        known_N &= np.isin(codes_N, tested)
    bank = np.random.default_rng(BANK_SEED).permutation(np.flatnonzero(known_N))[:MAX_BANK]
    bank.sort()
    if not len(test) or len(np.unique(codes_N[bank])) < 2:
        return None
    return ProbeSplit(bank=bank, test=test, bank_codes=codes_N[bank], test_codes=codes_N[test])


class OnlineProbe:
    """Measures encoders on one split; every rank measures in step, and rank 0 does the work.

    Args:
        cache: the run's pixels.
        split: from `split_labels`.
        start: the encoder that training started from, if it did not start anew.
        seed: of the run, and so of the untrained network.
    """

    def __init__(
        self, cache: PixelCache, split: ProbeSplit, *, seed: int, start: Encoder | None = None
    ) -> None:
        self._cache = cache
        self._split = split
        self._seed = seed
        self._start = start
        self._beside: dict[str, float] | None = None

    def measure(self, encoder: Encoder) -> dict[str, float]:
        """Figures of an encoder, and of what it has to beat.

        Returns:
            On rank 0 ``knn`` and ``probe``, accuracies in [0, 1]; each again with ``_random``, the
            same network untrained, ``_pixels``, and ``_start`` if training started from an
            encoder; ``knn_k`` and ``knn_temperature``; ``num_bank`` and ``num_test``, the labels
            known and tested. On other ranks nothing.

        Cost: a pass over at most 2,048 pictures; three or four at the first call.
        """
        if self._beside is None:
            beside: dict[str, float] = {}
            for name, embed in self._rivals(encoder):
                beside |= self._accuracies(embed, encoder.device, suffix=f"_{name}")
            self._beside = beside
        own = self._accuracies(encoder.embed, encoder.device)
        if rank() != 0:
            return {}
        split = self._split
        return {
            **own,
            **self._beside,
            "knn_k": min(KNN_K, len(split.bank)),
            "knn_temperature": TEMPERATURE,
            "num_bank": len(split.bank),
            "num_test": len(split.test),
        }

    def _rivals(self, encoder: Encoder) -> Iterator[tuple[str, Embed]]:
        yield "random", Encoder.initialise(encoder.config, self._seed).to(encoder.device).embed
        yield "pixels", raw_pixel_vectors
        if self._start is not None:
            # At the size that is trained for: the network of step 0.
            config = replace(encoder.config, projector=self._start.config.projector)
            start = Encoder(config, self._start.backbone, self._start.projector)
            yield "start", start.to(encoder.device).embed

    def _accuracies(self, embed: Embed, device: torch.device, suffix: str = "") -> dict[str, float]:
        split = self._split
        bank_BD = self._vectors(embed, split.bank, device)
        test_QD = self._vectors(embed, split.test, device)
        found: dict[str, float] = {}
        if rank() == 0:
            k = min(KNN_K, len(split.bank))
            found[f"knn{suffix}"] = knn_accuracy(
                bank_BD, split.bank_codes, test_QD, split.test_codes, k=k, temperature=TEMPERATURE
            )
            right = held_out_accuracy(bank_BD, split.bank_codes, test_QD, split.test_codes)
            found[f"probe{suffix}"] = right.mean
        _wait_for_rank_0(device)
        return found

    def _vectors(self, embed: Embed, rows: Ids, device: torch.device) -> Vectors:
        """Float32 [rows, D] on rank 0, on others nothing; not finite ones are zero, like nothing.

        Ranks meet after each piece: no wait is so long that a collective would time out.
        """
        pieces = []
        for start in range(0, len(rows), PICTURES_AT_ONCE):
            if rank() == 0:
                pieces.append(embed(self._cache.read(rows[start : start + PICTURES_AT_ONCE])))
            _wait_for_rank_0(device)
        if rank() != 0:
            return np.zeros((0, 0), np.float32)
        vectors = np.concatenate(pieces)
        vectors[~np.isfinite(vectors).all(axis=1)] = 0
        return vectors


def _wait_for_rank_0(device: torch.device) -> None:
    tick = torch.zeros(1, device=device)
    average([tick])
    tick.item()  # a GPU's collective has only begun until somebody asks for its result
