import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from encoders.backbone import build_backbone, resolve_stem
from encoders.losses import byol_loss, info_nce, nt_xent, sup_con, unit_rows
from encoders.optim import learning_rate
from encoders.recipes import RECIPES, tiny
from encoders.recipes_auto import AUTO_RECIPES, BUDGETS
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
def test_every_recipe_says_where_it_comes_from_what_it_costs_and_what_it_gave(name):
    text = RECIPES[name].__doc__
    assert "Source:" in text
    assert "Cost:" in text
    assert "Result:" in text
    if not name.endswith("-small"):
        assert "Deviation" in text


def test_every_method_has_a_recipe_for_every_data_set():
    methods = ("simclr", "moco", "byol", "supcon")
    for data in ("small", "cifar10", "imagenet100", "imagenet"):
        assert {f"{method}-{data}" for method in methods} <= set(RECIPES)


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


# Per recipe, as its source states it: batch, epochs, learning rate at that batch, weight decay, and
# how many times larger our loss is than the source's (docs/methods.md).
PUBLISHED = {
    "simclr-cifar10": (512, 1000, 0.06, 5e-4, 1),
    "moco-cifar10": (512, 200, 0.06, 5e-4, 1),
    "byol-cifar10": (128, 200, 0.06, 5e-4, 4),
    "supcon-cifar10": (1024, 1000, 0.5, 1e-4, 0.07 / 0.1),
    "byol-imagenette": (256, 1000, 2.0, 1e-6, 1),
    "simclr-imagenet100": (256, 400, 0.3, 1e-4, 1),
    "moco-imagenet100": (256, 400, 0.3, 1e-4, 1),
    "byol-imagenet100": (256, 400, 0.5, 1e-6, 1),
    "supcon-imagenet100": (256, 400, 0.5, 1e-5, 1),
    "simclr-imagenet": (4096, 100, 4.8, 1e-4, 1 / 2),
    "moco-imagenet": (256, 200, 0.03, 1e-4, 1),
    "byol-imagenet": (4096, 1000, 3.2, 1.5e-6, 1),
    "supcon-imagenet": (6144, 350, 9.6, 1e-3, 1 / 0.1),
}


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.endswith("-small")])
def test_published_figures_are_those_of_their_sources(name):
    """SGD with a loss s times as large makes the same steps at lr / s and decay * s.

    LARS does at decay * s alone: it divides by the norm of what the loss and the decay ask for.
    """
    batch, epochs, lr, decay, scale = PUBLISHED[name]
    config = RECIPES[name]()
    assert (config.batch_size, config.epochs) == (batch, epochs)
    optim = replace(config.optim, warmup_share=0.0)
    rate = learning_rate(optim, 0, 1000, batch)
    assert rate == pytest.approx(lr if optim.name == "lars" else lr / scale)
    assert config.optim.weight_decay == pytest.approx(decay * scale)


@pytest.mark.parametrize("name", [name for name in RECIPES if "imagenet" in name])
def test_the_imagenet_networks_see_crops_of_their_sources_size(name):
    config = RECIPES[name]()
    crop = 128 if name.endswith("ette") else 224
    assert config.view_a.crop_size == config.view_b.crop_size == crop
    assert config.backbone.name == ("resnet50" if name.endswith("imagenet") else "resnet18")
    assert resolve_stem(config.backbone, config.preprocess.size) == "imagenet"
    assert config.view_a.crop_scale[0] == (0.2 if name == "moco-imagenet" else 0.08)


def test_the_cifar_networks_keep_their_resolution_until_the_first_stage():
    config = RECIPES["simclr-cifar10"]()
    net = build_backbone(config.backbone, config.preprocess.size).net
    stem = torch.nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
    assert stem(torch.zeros(2, 3, 32, 32)).shape == (2, 64, 32, 32)


PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")


def rows_of(heading: str) -> dict[str, list[str]]:
    """A section's last table: first cell to the others."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    return {first.strip("`"): rest for first, *rest in cells[2:]}


def test_the_page_of_methods_has_every_recipe_with_its_size_and_result():
    rows = rows_of("Recipes")
    assert set(rows) == set(RECIPES)
    for name, (network, length, *_, reproduced) in rows.items():
        config = RECIPES[name]()
        assert length == f"{config.epochs} x {config.batch_size}"
        assert network.lower().replace("-", "").split(",")[0] == config.backbone.name
        assert network.endswith(f" {config.view_a.crop_size}")
        assert reproduced.startswith(("yes", "no"))
    # The results that the docstrings state are those of the page.
    for name, row in rows.items():
        for figure in re.findall(r"\b\d\d\.\d+\b", row[4]):
            assert figure in RECIPES[name].__doc__, name


def test_the_page_of_methods_states_what_automatic_recipes_choose():
    section = PAGE.split("## Automatic settings")[1]
    assert [name for name in AUTO_RECIPES if name.removesuffix("-gpu") not in section] == []
    for budget in BUDGETS.values():
        for value in (budget.num_steps, budget.num_pictures, budget.max_queue, budget.max_batch):
            assert f"{value:,}" in section
        assert f"{budget.epochs[0]} to {budget.epochs[1]}" in section


N, K, D, TAU, CLASSES = 48, 96, 256, 0.2, 4


def embeddings(kind: str, positives: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both views; with ideal ones, pictures of the same ``positives`` are equal."""
    if kind == "all equal":
        return torch.ones(N, D), torch.ones(N, D)
    if kind == "ideal":
        return torch.eye(D)[positives], torch.eye(D)[positives]
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, N, D, generator=generator)
    return first, second


@pytest.mark.parametrize("kind", ["all equal", "random", "ideal"])
def test_losses_at_chance_and_at_their_best_are_what_the_page_says(kind):
    pictures, classes = torch.arange(N), torch.arange(N) % CLASSES
    a, b = embeddings(kind, pictures)
    queue = unit_rows(torch.randn(K, D, generator=torch.Generator().manual_seed(1)))
    if kind != "random":
        queue = torch.eye(D)[N : N + K] if kind == "ideal" else unit_rows(torch.ones(K, D))
    by_class = embeddings(kind, classes)
    found = [
        nt_xent(a, b, pictures, temperature=TAU),
        info_nce(a, b, pictures, queue, torch.arange(K) + N, temperature=TAU),
        byol_loss(a, b) + byol_loss(b, a),
        sup_con(*by_class, classes, temperature=TAU),
    ]
    values = {"N": N, "K": K, "d": D, "tau": TAU, "P": 2 * N // CLASSES - 1}
    names = {"log": math.log, "exp": math.exp} | values
    expected = [eval(cell.strip("`"), names) for cell in rows_of("Loss bands")[kind]]
    tolerance = {"abs": 0.1} if kind == "random" else {"rel": 1e-4, "abs": 1e-5}
    assert [float(loss) for loss in found] == pytest.approx(expected, **tolerance)
