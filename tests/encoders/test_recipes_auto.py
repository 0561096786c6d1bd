import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.backbone import resolve_stem
from encoders.recipes import RECIPES, moco_small, simclr_small, tiny
from encoders.recipes_auto import AUTO_RECIPES, auto_config
from encoders.training import Pretraining

METHODS = ("simclr", "moco", "byol", "supcon")


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(METHODS),
    st.integers(2, 10**7),
    st.integers(1, 5000),
    st.sampled_from(["cpu", "gpu"]),
)
def test_every_corpus_gets_settings_that_it_can_be_trained_with(method, num, edge, hardware):
    config = auto_config(method, num, edge, hardware).config
    config.check_share(num, 1)
    assert type(config.method).__name__.lower() == f"{method}config"
    assert config.batch_size <= max(num // 4, min(num, 8))
    assert config.view_a.crop_size <= max(edge, 32)
    assert config.preprocess.size <= max(edge, 32)
    assert 10 <= config.epochs <= 1000
    assert config.num_steps(num) >= 100
    if method == "moco":
        assert config.method.queue_size <= num
        assert config.batch_size // config.method.key_groups >= min(4, config.batch_size)


def test_openmojis_settings_are_those_that_were_tuned_on_it():
    for make in (simclr_small, moco_small):
        method = make.__name__.removesuffix("_small")
        config = auto_config(method, 2460, 128, "cpu").config
        assert config.differences(make().settings()) == []


def test_the_learning_rate_follows_the_batch():
    """The square root on a CPU, where steps are few; linear on a GPU, as published there."""
    small = auto_config("simclr", 300, 64, "cpu").config
    assert small.batch_size == 64
    assert small.optim.lr == pytest.approx(0.1 * math.sqrt(64 / 128), rel=1e-2)
    large = auto_config("simclr", 50_000, 32, "gpu").config
    assert (large.batch_size, large.optim.lr) == (256, pytest.approx(0.03))


@pytest.mark.parametrize(
    ("num", "edge", "hardware", "backbone", "stem", "sizes"),
    [
        (2_000, 8, "cpu", "narrow", "small", (16, 16)),
        (2_000, 40, "cpu", "narrow", "stride2", (32, 40)),
        (50_000, 32, "gpu", "resnet18", "small", (32, 32)),
        (9_469, 160, "gpu", "resnet18", "imagenet", (128, 146)),
        (1_281_167, 375, "gpu", "resnet50", "imagenet", (224, 256)),
        (1_281_167, 32, "gpu", "resnet18", "small", (32, 32)),
    ],
)
def test_network_stem_and_pixels_suit_the_pictures(num, edge, hardware, backbone, stem, sizes):
    config = auto_config("simclr", num, edge, hardware).config
    assert config.backbone.name == backbone
    assert resolve_stem(config.backbone, config.preprocess.size) == stem
    assert (config.view_a.crop_size, config.preprocess.size) == sizes
    assert config.precision == ("fp32" if hardware == "cpu" else "bf16")


def test_larger_corpora_get_more_steps_but_fewer_epochs():
    configs = [auto_config("byol", num, 96, "cpu").config for num in (1_000, 10_000, 100_000)]
    steps = [
        config.num_steps(num) for config, num in zip(configs, (1_000, 10_000, 100_000), strict=True)
    ]
    assert steps == sorted(steps)
    assert [config.epochs for config in configs] == sorted(
        (c.epochs for c in configs), reverse=True
    )
    starts = [config.method.momentum.start for config in configs]
    assert starts == sorted(starts)
    assert starts[0] < starts[-1]


@pytest.mark.parametrize("name", AUTO_RECIPES)
def test_every_choice_is_said_aloud_with_its_value(name):
    automatic = auto_config(AUTO_RECIPES[name][0], 3_000, 100, AUTO_RECIPES[name][1])
    said, config = " ".join(automatic.reasons), automatic.config
    values = [
        f"{config.view_a.crop_size} px",
        f"kept at {config.preprocess.size} px",
        f"Backbone {config.backbone.name}",
        f"Batch {config.batch_size}",
        f"learning rate {config.optim.lr:g}",
        f"{config.epochs} epochs",
    ]
    if name.startswith("moco"):
        values.append(f"Queue of {config.method.queue_size:,}")
    if name.startswith("byol"):
        values.append(f"from {config.method.momentum.start} to 1")
    assert [value for value in values if value not in said] == []
    assert all(reason.endswith(".") for reason in automatic.reasons)


@pytest.mark.parametrize("name", AUTO_RECIPES)
def test_chosen_settings_train_in_their_tiny_form(name):
    automatic = auto_config(AUTO_RECIPES[name][0], 20, 16, AUTO_RECIPES[name][1])
    config = replace(tiny(automatic.config), precision="fp32")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    training = Pretraining(config, 20)
    for _ in range(2):
        rows = training.next_rows()
        assert math.isfinite(training.train_step(pixels[rows], rows, rows % 3)["loss"])


def test_names_do_not_hide_published_recipes():
    assert not set(AUTO_RECIPES) & set(RECIPES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dino", 100, 64, "cpu"), "'dino' on 'cpu'.*simclr, moco, byol, supcon"),
        (("simclr", 100, 64, "tpu"), "'tpu'.*cpu or gpu"),
        (("simclr", 1, 64, "cpu"), "1 pictures of 64 px.*2 pictures or more"),
        (("simclr", 100, 0, "cpu"), "100 pictures of 0 px"),
    ],
)
def test_what_cannot_be_chosen_for_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        auto_config(*arguments)
