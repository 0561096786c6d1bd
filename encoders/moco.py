"""MoCo: queries find their key among a queue of keys that a slowly following encoder made.

Source: He et al. 2020, "Momentum Contrast for Unsupervised Visual Representation Learning",
algorithm 1 and section 3.3; Chen et al. 2020 (MoCo v2) for the MLP head; Caron et al. 2020 (SwAV),
section 3.3, for local views. Deviations: BatchNorm of queries runs over the global batch, that of
keys over shuffled groups whose number is part of the recipe and not of the machine; the queue
starts empty; keys of the query's own picture are masked; local views are further queries.

Shapes: N pictures of this rank, B of the global batch or of one chunk of it, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from encoders.batchnorm import split_batchnorm
from encoders.collective import gather_rows, rank, world_size
from encoders.key_queue import KeyQueue
from encoders.losses import check_temperature, info_nce, unit_rows
from encoders.method import Batch, Method, MethodOutput, Parts
from encoders.momentum import MomentumConfig, follow, make_target
from encoders.sampler import permutation

__all__ = ["MoCo", "MoCoConfig"]

# First word of the shuffle's key; the sampler's permutations start with another.
SHUFFLE_FAMILY = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class MoCoConfig:
    """MoCo v2: contrast with a queue of keys, so that small batches have many negatives."""

    temperature: float = 0.2
    """Cosines are divided by it: small values weigh the nearest negatives most."""
    queue_size: int = 4096
    """Keys kept as negatives; up to about the number of pictures."""
    momentum: MomentumConfig = field(
        default_factory=lambda: MomentumConfig(start=0.99, schedule="constant")
    )
    """How the key encoder follows; fast changes make the queue inconsistent."""
    key_groups: int = 8
    """Groups of the shuffled batch, or chunk of it, that BatchNorm of keys sees apart, so that it
    leaks no pairs."""

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        if self.queue_size < 1 or self.key_groups < 1:
            raise ValueError(
                f"moco queue_size is {self.queue_size} and key_groups {self.key_groups}; "
                "both must be 1 or more. 4096 and 8 are the defaults."
            )

    def check_batch(self, batch_size: int, world_size: int) -> None:
        """Groups of two rows or more, whole ones on every rank."""
        if batch_size % self.key_groups or batch_size < 2 * self.key_groups:
            raise ValueError(
                f"moco key_groups is {self.key_groups} and the global batch {batch_size} (or each "
                "of its batch_chunks); each group must have the same number of pictures, at least "
                "2. Change batch_size to a larger multiple of key_groups (times batch_chunks), or "
                "key_groups to a divisor."
            )
        if self.key_groups % world_size:
            raise ValueError(
                f"moco key_groups is {self.key_groups} and there are {world_size} workers; every "
                "worker encodes whole groups, so the workers must divide the groups. "
                "Use a number of workers that divides key_groups."
            )

    def build(self, parts: Parts) -> MoCo:
        """The method around these parts."""
        return MoCo(self, parts)


class MoCo(Method):
    """First views are queries, second views are keys."""

    collapse_advice = (
        "Usual causes with MoCo are a learning rate that is too high or a key encoder that follows "
        "too fast. Divide optim.lr by 3, or raise method.momentum.start towards 0.999."
    )

    def __init__(self, config: MoCoConfig, parts: Parts) -> None:
        super().__init__(parts)
        self._config = config
        self._seed = parts.seed
        groups_here = config.key_groups // world_size()
        self.key_backbone = split_batchnorm(make_target(parts.backbone), groups_here)
        self.key_projector = split_batchnorm(make_target(parts.projector), groups_here)
        self.queue = KeyQueue(config.queue_size, parts.embedding_dim)

    def encode(self, batch: Batch) -> tuple[Tensor, ...]:
        """Queries: of the first views, then of the local ones."""
        return (*self.project(batch.view_a), *self.project(*batch.local_views))

    def encode_targets(self, batch: Batch) -> tuple[Tensor, ...]:
        """Keys of the second views."""
        return (self._encode_keys(batch.view_b, batch.step, batch.chunk),)

    @torch.no_grad()
    def _encode_keys(self, view: Tensor, step: int, chunk: int) -> Tensor:
        """Unit keys of this rank's pictures; BatchNorm sees them in groups drawn anew each step."""
        pictures = gather_rows(view)
        num_local, num_global = len(view), len(pictures)
        # A key that ends in 0 is the one without it: chunk 0 is shuffled like a whole batch.
        key = (SHUFFLE_FAMILY, self._seed, step, chunk)
        order_B = torch.from_numpy(permutation(num_global, *key)).to(view.device, non_blocking=True)
        mine = slice(rank() * num_local, (rank() + 1) * num_local)
        shuffled = pictures[order_B[mine]].contiguous(memory_format=torch.channels_last)
        shuffled_keys_BD = gather_rows(unit_rows(self.key_projector(self.key_backbone(shuffled))))
        keys_BD = torch.empty_like(shuffled_keys_BD)
        keys_BD[order_B] = shuffled_keys_BD
        return keys_BD[mine]

    def compare(
        self, online: Sequence[Tensor], targets: Sequence[Tensor], batch: Batch
    ) -> MethodOutput:
        """InfoNCE of the queries against their keys and the queue as it was before this batch.

        Those of local views count as much as those of the first.
        """
        (keys_ND,) = targets
        loss = info_nce(
            torch.cat(list(online)),
            keys_ND.repeat(len(online), 1),
            batch.ids.repeat(len(online)),
            self.queue.keys,
            self.queue.ids,
            temperature=self._config.temperature,
        )
        return MethodOutput(
            loss=loss,
            embeddings_a=unit_rows(online[0].detach()),
            embeddings_b=keys_ND,
            num_candidates=self.queue.num_filled + 1,
        )

    def after_step(self, batch: Batch, output: MethodOutput, num_steps: int) -> None:
        """Let the key encoder follow, and append the batch's keys to the queue."""
        momentum = self._config.momentum.at(batch.step, num_steps)
        follow(self.key_backbone, self.backbone, momentum)
        follow(self.key_projector, self.projector, momentum)
        chunks = batch.num_chunks
        keys_BD = gather_rows(output.embeddings_b, chunks)
        self.queue.enqueue(keys_BD, gather_rows(batch.ids, chunks))
