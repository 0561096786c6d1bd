"""One look at a training step: figures on its batch, its weights and the examined pictures.

It begins before the step and ends after it, reads and moves nothing that training reads, and gives
the same figures on all ranks.

Shapes: N pictures of this rank, B of the global batch, S edge, D embedding.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoders.checkup import CHANCE
from encoders.collective import average, gather_rows
from encoders.health import class_discrimination, health_metrics
from encoders.leak import keys_in_queue
from encoders.losses import NO_LABEL
from encoders.method import Batch, Method, MethodOutput
from encoders.moco import MoCo
from encoders.motion import Motion

__all__ = ["Examination", "labelled_figures"]

MIN_VARIANCE = 1e-12


class Examination:
    """Begin it before the step's forward pass.

    Args:
        method: its networks.
        batch: this rank's share of the step's batch.
        pixels: uint8 [N, S, S, 3] that its views were made from.
    """

    def __init__(self, method: Method, batch: Batch, pixels: NDArray[np.uint8]) -> None:
        self._method = method
        self._batch = batch
        self._pixels = pixels
        self._motion = Motion(method)
        self.figures: dict[str, float] = {}
        self.num_pictures = 0
        self.dim = 0

    def compared(self, output: MethodOutput) -> None:
        """Look at what the forward pass gave, before weights move and queues take keys.

        Adds to ``figures``: those of `health_metrics` on the batch; ``batch_rank`` and
        ``batch_discrimination``, two of them under names that stay; ``distinct_pictures`` of the
        batch; ``view_distance``, how far the two views of a picture are apart in pixels (root mean
        square), over how far two pictures at random are; ``input_scale``, the root mean square of
        the network's input; for MoCo ``keys_in_queue``; with labels ``class_discrimination``.
        """
        batch = self._batch
        own = output.embeddings_a, output.embeddings_b
        views = [gather_rows(rows, batch.num_chunks) for rows in own]
        self.num_pictures, self.dim = views[0].shape
        if all(bool(torch.isfinite(view).all()) for view in views):
            self.figures = health_metrics(*views)
            self.figures["batch_rank"] = self.figures["effective_rank"]
            self.figures["batch_discrimination"] = self.figures["discrimination"]
            if self._method.needs_labels and batch.labels is not None:
                labels_B = gather_rows(batch.labels, batch.num_chunks)
                self.figures |= labelled_figures(views[0], views[1], labels_B)
        self.figures |= self._input_figures()
        if isinstance(self._method, MoCo):
            queue = self._method.queue
            self.figures["keys_in_queue"] = keys_in_queue(own[1], queue.keys, queue.ids)

    def moved(self) -> dict[str, float]:
        """Figures of `Motion`, once the step is made."""
        figures = self._motion.figures()
        values = torch.stack([value.float() for value in figures.values()]).tolist()
        return dict(zip(figures, values, strict=True))

    @torch.no_grad()
    def _input_figures(self) -> dict[str, float]:
        view_a, view_b = self._batch.view_a.float(), self._batch.view_b.float()
        apart = (view_a - view_b).square().mean()
        square_a, square_b = view_a.square().mean(), view_b.square().mean()
        mean_3SS = (view_a.mean(0) + view_b.mean(0)) / 2
        sums = torch.stack([apart, square_a, square_b])
        average([sums, mean_3SS])
        prints = gather_rows(torch.tensor(_fingerprints(self._pixels)).to(view_a.device))
        # Two pictures at random are apart, squared, by twice the variance of a pixel.
        variance = sums[1:].mean() - mean_3SS.square().mean()
        apart_square, square, _, variance_mean = torch.cat([sums, variance[None]]).tolist()
        return {
            "distinct_pictures": float(len(torch.unique(prints))),
            "view_distance": (
                math.sqrt(apart_square / (2 * variance_mean))
                if variance_mean > MIN_VARIANCE
                else 1.0
            ),
            "input_scale": math.sqrt(square),
        }


def labelled_figures(view_a_ND: Tensor, view_b_ND: Tensor, labels_N: Tensor) -> dict[str, float]:
    """``class_discrimination`` of the rows with a label: chance when all are of one class."""
    rows = labels_N != NO_LABEL
    num_classes = len(torch.unique(labels_N[rows]))
    if num_classes < 2:
        return {"class_discrimination": CHANCE} if num_classes else {}
    found = class_discrimination(view_a_ND[rows], view_b_ND[rows], labels_N[rows])
    return {"class_discrimination": float(found)}


def _fingerprints(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """int64 [N], equal for equal pictures and hardly ever otherwise."""
    digests = [hashlib.blake2b(picture.tobytes(), digest_size=8).digest() for picture in pixels]
    return np.frombuffer(b"".join(digests), dtype=np.int64).copy()
