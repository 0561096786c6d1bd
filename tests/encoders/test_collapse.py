"""Sabotaged runs are stopped and healthy ones are not, on small pictures of handwritten digits."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from torch import nn

from encoders.backbone import BackboneConfig
from encoders.health import CollapseError, HealthConfig
from encoders.pretrain_config import PretrainConfig
from encoders.recipes import byol_small, moco_small, simclr_small, supcon_small, tiny
from encoders.training import Pretraining

RECIPES: dict[str, Callable[[], PretrainConfig]] = {
    "simclr": simclr_small,
    "moco": moco_small,
    "byol": byol_small,
    "supcon": supcon_small,
}
NUM_PICTURES = 640
NUM_STEPS = 80


def train(name: str, *, faster: float = 1.0, sabotage: Any = None) -> None:
    """A tiny recipe in enough dimensions for the rank to say something."""
    config = tiny(RECIPES[name]())
    config = replace(
        config,
        backbone=BackboneConfig(widths=(8, 16)),
        projector=replace(config.projector, hidden_dim=64, output_dim=64),
        optim=replace(config.optim, lr=faster * config.optim.lr),
        health=HealthConfig(every=4, grace_steps=40),
        batch_size=64,
        epochs=8,
    )
    training = Pretraining(config, NUM_PICTURES)
    if sabotage is not None:
        sabotage(training._method)
    bunch = load_digits()
    gray = (bunch.images[:NUM_PICTURES, :, :, None] * 15.9).astype(np.uint8)
    pixels = gray.repeat(2, axis=1).repeat(2, axis=2).repeat(3, axis=3)
    labels = bunch.target.astype(np.int64)
    while training.step_index < NUM_STEPS:
        rows = training.next_rows()
        training.train_step(pixels[rows], rows, labels[rows])


def without_predictor(method: Any) -> None:
    method.predictor = nn.Identity()


@pytest.mark.parametrize("name", RECIPES)
def test_a_healthy_run_raises_no_alarm(name: str) -> None:
    train(name)


@pytest.mark.parametrize("name", ["simclr", "moco"])
def test_a_rate_300_times_too_high_is_stopped(name: str) -> None:
    with pytest.raises(CollapseError, match=r"few directions.* Divide optim\.lr by 3"):
        train(name, faster=300.0)


def test_byol_without_its_predictor_is_stopped() -> None:
    with pytest.raises(CollapseError, match=r"since step .* BYOL"):
        train("byol", sabotage=without_predictor)
