import math

import numpy as np
import pytest
import torch

from encoders.backbone import build_backbone
from encoders.optim import learning_rate
from encoders.recipes import RECIPES, tiny
from encoders.supcon import SupConConfig
from encoders.training import Pretraining


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_in_its_tiny_form(name):
    config = tiny(RECIPES[name]())
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    training = Pretraining(config, 20)
    while training.step_index < training.num_steps:
        rows = training.next_rows()
        metrics = training.train_step(pixels[rows], rows, rows % 3)
        assert all(math.isfinite(value) for value in metrics.values())
    vectors = training.encoder().embed(pixels)
    assert np.isfinite(vectors).all()


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_says_where_it_comes_from_and_what_it_costs(name):
    text = RECIPES[name].__doc__
    assert "Source:" in text
    assert "Cost:" in text
    if not name.endswith("-small"):
        assert "Deviation" in text


def test_a_recipe_is_named_after_its_method():
    for name, make in RECIPES.items():
        assert type(make().method).__name__.lower() == f"{name.split('-')[0]}config"
        assert make.__name__ == name.replace("-", "_")


def test_tiny_keeps_the_method_and_the_optimiser():
    for make in RECIPES.values():
        config = make()
        small = tiny(config)
        assert small.optim == config.optim
        assert type(small.method) is type(config.method)
        assert small.method != SupConConfig() or small.method == config.method


def test_published_rates_are_those_of_their_sources():
    """The rate that the source states, times what its loss is scaled by against ours."""
    peaks = {"simclr-cifar10": 0.06, "moco-cifar10": 0.06, "byol-cifar10": 0.06 / 4}
    for name, peak in peaks.items():
        config = RECIPES[name]()
        assert learning_rate(config.optim, 0, 1000, config.batch_size) == pytest.approx(peak)


def test_the_cifar_networks_keep_their_resolution_until_the_first_stage():
    config = RECIPES["simclr-cifar10"]()
    net = build_backbone(config.backbone, config.preprocess.size).net
    stem = torch.nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
    assert stem(torch.zeros(2, 3, 32, 32)).shape == (2, 64, 32, 32)
