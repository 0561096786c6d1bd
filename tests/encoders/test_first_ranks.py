"""Ranks with which a batch does not divide wait; and all ranks stop at the same step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from encoders.batchnorm import convert_batchnorm
from encoders.collective import first_ranks, gather_rows, group, rank, world_size
from encoders.moco import MoCoConfig
from encoders.optim import OptimConfig
from encoders.pretrain_config import PretrainConfig
from encoders.recipes import byol_small, moco_small, simclr_small, supcon_small, tiny
from encoders.training import Pretraining

NUM_PICTURES = 40
RECIPES = {
    "simclr": simclr_small,
    "moco": moco_small,
    "byol": byol_small,
    "supcon": supcon_small,
}


def config_of(name: str) -> PretrainConfig:
    """Batches of 18 pictures, for MoCo in 6 groups: 3 ranks can share them, and 4 cannot.

    So slow a learning rate that a difference in the last bit does not grow.
    """
    config = replace(tiny(RECIPES[name]()), batch_size=18, optim=OptimConfig(lr=1e-3))
    if isinstance(config.method, MoCoConfig):
        config = replace(config, method=replace(config.method, key_groups=6, queue_size=36))
    return config


def weights(name: str, num_steps: int = 4) -> np.ndarray:
    training = Pretraining(config_of(name), NUM_PICTURES)
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_PICTURES, 16, 16, 3), dtype=np.uint8)
    ids = np.arange(NUM_PICTURES)
    for _ in range(num_steps):
        rows = training.next_rows()
        training.train_step(pixels[rows], ids[rows], ids[rows] % 4)
    state = training.state_dict()["method"]
    parts = [state[key].double().numpy().ravel() for key in sorted(state)]
    return np.concatenate(parts)


def weights_of_those_that_can_share() -> dict[str, np.ndarray] | None:
    num_ranks = config_of("moco").most_ranks(NUM_PICTURES, world_size())
    with first_ranks(num_ranks) as is_one:
        if not is_one:
            return None
        assert world_size() == 3
        return {name: weights(name) for name in RECIPES}


def test_three_of_four_ranks_reach_the_weights_of_one(four_ranks: Any) -> None:
    answers = four_ranks(weights_of_those_that_can_share)
    assert answers[3] is None
    for name in RECIPES:
        expected = weights(name)
        for found in answers[:3]:
            distance = np.linalg.norm(found[name] - expected) / np.linalg.norm(expected)
            assert distance < 1e-4, name


def sums_inside_and_after() -> list[Any]:
    found: list[Any] = []
    with first_ranks(1) as is_one:
        if is_one:
            found.append((world_size(), rank(), gather_rows(torch.tensor([5.0])).tolist()))
            norm = convert_batchnorm(torch.nn.BatchNorm1d(2), torch.device("cuda"))
            assert norm.process_group is group()
            assert dist.get_world_size(norm.process_group) == 1
    with first_ranks(2) as is_one:
        assert is_one
        assert group() is None
    found.append((world_size(), rank(), gather_rows(torch.tensor([float(rank())])).tolist()))
    return found


def test_outside_all_ranks_are_together_again(ranks: Any) -> None:
    first, second = ranks(sums_inside_and_after)
    assert first == [(1, 0, [5.0]), (2, 0, [0.0, 1.0])]
    assert second == [(2, 1, [0.0, 1.0])]


@pytest.mark.parametrize(
    ("name", "world", "most"),
    [("simclr", 4, 3), ("simclr", 5, 3), ("simclr", 6, 6), ("moco", 9, 6), ("byol", 1, 1)],
)
def test_as_many_ranks_train_as_can_share_the_batch(name: str, world: int, most: int) -> None:
    assert config_of(name).most_ranks(NUM_PICTURES, world) == most


def test_a_corpus_that_no_rank_can_train_on_is_refused() -> None:
    with pytest.raises(ValueError, match="17 pictures, the global batch 18"):
        config_of("simclr").most_ranks(17, 4)


def steps_until_the_stop() -> tuple[int, list[float]]:
    """Rank 1 alone asks, in the third step."""
    training = Pretraining(config_of("simclr"), NUM_PICTURES)
    pixels = np.zeros((NUM_PICTURES, 16, 16, 3), dtype=np.uint8)
    pixels += np.arange(NUM_PICTURES, dtype=np.uint8)[:, None, None, None]
    losses = []
    while training.step_index < 6 and not training.stop_agreed:
        rows = training.next_rows()
        stop = rank() == 1 and training.step_index == 2
        losses.append(training.train_step(pixels[rows], rows, stop=stop)["loss"])
    return training.step_index, losses


def test_all_ranks_stop_at_the_step_in_which_one_asked(ranks: Any) -> None:
    (first, losses), (second, others) = ranks(steps_until_the_stop)
    assert first == second == 3
    assert losses == others
