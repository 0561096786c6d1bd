"""Whole training steps with chunks and local views, by one rank and by several."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from encoders.augment import AugmentConfig, augment
from encoders.backbone import BackboneConfig
from encoders.encoder import normalise
from encoders.moco import MoCoConfig
from encoders.preprocess import PreprocessConfig
from encoders.recipes import (
    byol_small,
    moco_small,
    simclr_imagenet100,
    simclr_small,
    supcon_small,
    tiny,
)
from encoders.training import PretrainConfig, Pretraining

NUM_PICTURES = 50
METHODS = {
    "simclr": simclr_small,
    "moco": moco_small,
    "byol": byol_small,
    "supcon": supcon_small,
}
CHUNKS = {"batch_chunks": 2}
LOCAL = {"local_views": 2, "view_local": AugmentConfig(crop_size=8, crop_scale=(0.1, 0.3))}
SETTINGS = {"chunks": CHUNKS, "both": CHUNKS | LOCAL}


def config_of(name: str, **changes: Any) -> PretrainConfig:
    """Sixteen pictures a step, at a rate that keeps so small a network from chaos."""
    config = tiny(METHODS[name]())
    if isinstance(config.method, MoCoConfig):
        groups = replace(config.method, queue_size=40, key_groups=4)
        config = replace(config, method=groups, batch_size=16)
    optim = replace(config.optim, lr=config.optim.lr / 10)
    return replace(config, **{"optim": optim, "batch_size": 16} | changes)


def corpus() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # With seed 5 a value of MoCo's lies on an edge: a 1e-7 in the pixels moved a weight by 2e-6.
    generator = np.random.default_rng(6)
    pixels = generator.integers(0, 256, (NUM_PICTURES, 16, 16, 3), dtype=np.uint8)
    return pixels, np.arange(NUM_PICTURES) * 7 + 3, np.arange(NUM_PICTURES) % 4 - 1


def train(training: Pretraining, num_steps: int) -> list[dict[str, float]]:
    pixels, ids, labels = corpus()
    metrics = []
    for _ in range(num_steps):
        rows = training.next_rows()
        metrics.append(training.train_step(pixels[rows], ids[rows], labels[rows]))
    return metrics


def tensors(training: Pretraining) -> dict[str, np.ndarray]:
    state = training.state_dict()["method"]
    return {name: value.detach().numpy().copy() for name, value in state.items()}


def four_steps(name: str, changes: dict[str, Any]) -> tuple[dict[str, np.ndarray], list]:
    training = Pretraining(config_of(name, **changes), NUM_PICTURES)
    metrics = train(training, 4)
    return tensors(training), metrics


def continued(name: str, changes: dict[str, Any], saved: bytes) -> dict[str, np.ndarray]:
    training = Pretraining(config_of(name, **changes), NUM_PICTURES)
    training.load_state_dict(torch.load(io.BytesIO(saved), weights_only=True))
    train(training, 2)
    return tensors(training)


def save(training: Pretraining) -> bytes:
    buffer = io.BytesIO()
    torch.save(training.state_dict(), buffer)
    return buffer.getvalue()


def assert_near(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value.dtype.kind == "i":  # ids and order of the queue, counters
            np.testing.assert_array_equal(found[name], value, err_msg=name)
            continue
        distance = np.linalg.norm(found[name] - value)
        # A bias before BatchNorm has no gradient but rounding.
        assert distance <= 1e-5 * np.linalg.norm(value) + 1e-7, name


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_train_the_weights_and_queue_of_one(ranks, name, changes):
    expected, metrics = four_steps(name, changes)
    answers = ranks(four_steps, name, changes)
    for found, found_metrics in answers:
        assert_near(found, expected)
        for got, wanted in zip(found_metrics, metrics, strict=True):
            assert got == pytest.approx(wanted, rel=1e-3, abs=1e-5)
    (first, first_metrics), (second, second_metrics) = answers
    assert all(np.array_equal(first[key], second[key]) for key in first)
    assert first_metrics == second_metrics


@pytest.mark.slow
def test_four_ranks_train_the_weights_and_queue_of_one(four_ranks):
    for name in METHODS:
        expected, _ = four_steps(name, CHUNKS | LOCAL)
        for found, _ in four_ranks(four_steps, name, CHUNKS | LOCAL):
            assert_near(found, expected)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_in_chunks_resumes_to_the_bit_and_on_other_ranks_to_rounding(ranks, name):
    changes = CHUNKS | LOCAL
    straight = Pretraining(config_of(name, **changes), NUM_PICTURES)
    train(straight, 2)
    saved = save(straight)
    train(straight, 2)
    expected = tensors(straight)
    found = continued(name, changes, saved)
    assert all(np.array_equal(found[key], value) for key, value in expected.items())
    for other in ranks(continued, name, changes, saved):
        assert_near(other, expected)


def test_the_queue_holds_keys_in_the_order_of_the_global_batch():
    training = Pretraining(config_of("moco", **CHUNKS), NUM_PICTURES)
    ids = corpus()[1]
    expected = np.concatenate([ids[training.rows_at(step)] for step in range(2)])
    train(training, 2)
    np.testing.assert_array_equal(training._method.queue.ids[:32], expected)


def test_chunks_train_other_weights_than_one_pass_because_batchnorm_sees_fewer():
    whole, chunked = (four_steps("simclr", changes)[0] for changes in ({}, CHUNKS))
    name = "backbone.net.conv1.weight"
    assert np.linalg.norm(whole[name] - chunked[name]) > 1e-4 * np.linalg.norm(whole[name])


def views_of(changes: dict[str, Any]):
    pixels, ids, _ = corpus()
    training = Pretraining(config_of("simclr", **changes), NUM_PICTURES)
    return training._batch(pixels[:16], ids[:16], None), training.config


def test_local_views_leave_the_others_as_they_are_and_have_draws_of_their_own():
    plain, _ = views_of({})
    batch, config = views_of(LOCAL)
    assert plain.local_views == ()
    assert torch.equal(batch.view_a, plain.view_a)
    assert torch.equal(batch.view_b, plain.view_b)
    pixels = torch.from_numpy(corpus()[0][:16]).permute(0, 3, 1, 2)
    for number, view in enumerate(batch.local_views, start=2):
        drawn = augment(
            pixels, batch.ids, config=config.view_local, seed=config.seed, epoch=0, view=number
        )
        assert view.shape == (16, 3, 8, 8)
        assert torch.equal(view, normalise(drawn, config.preprocess))
    first, second = batch.local_views
    assert not torch.equal(first, second)


def test_the_tiny_twin_of_a_recipe_with_local_views_has_them_and_trains():
    local = AugmentConfig(crop_size=96, crop_scale=(0.05, 0.14))
    recipe = replace(simclr_imagenet100(), local_views=6, view_local=local)
    twin = tiny(recipe)
    assert (twin.local_views, twin.view_local) == (6, replace(local, crop_size=8))
    assert math.isfinite(train(Pretraining(twin, NUM_PICTURES), 1)[0]["loss"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_chunks": 0}, "batch_chunks is 0"),
        ({"batch_chunks": 3}, "batch_chunks is 3 and batch_size 16.*divisor"),
        ({"batch_chunks": 16}, "batch_chunks is 16.*at least 2"),
        ({"batch_chunks": 4, "method": MoCoConfig(key_groups=8)}, "global batch 4.*batch_chunks"),
        ({"local_views": -1}, "local_views is -1"),
        ({"view_local": AugmentConfig(crop_size=8)}, "view_local is set and local_views is 0"),
        (LOCAL | {"view_local": AugmentConfig(crop_size=17)}, "17 px, the others of 16 px"),
        (LOCAL | {"backbone": BackboneConfig(widths=(4, 4, 4, 4, 4))}, "16 px or more"),
        ({"preprocess": PreprocessConfig(size=15)}, "pictures of 15 px"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config_of("simclr", **changes)


def test_chunks_that_do_not_divide_among_the_workers_are_refused_before_anything_runs():
    config = config_of("simclr", batch_chunks=4)
    config.check_share(NUM_PICTURES, 4)
    with pytest.raises(ValueError, match=r"16, in 4 chunks, .* 8 workers.*32 divides, fewer"):
        config.check_share(NUM_PICTURES, 8)
    groups = replace(config_of("moco"), batch_chunks=2)
    with pytest.raises(ValueError, match="key_groups is 4 and there are 8 workers"):
        groups.check_share(NUM_PICTURES, 8)
    with pytest.raises(ValueError, match="12 pictures, the global batch 16"):
        config.check_share(12, 1)
    with pytest.raises(ValueError, match="Scan more pictures"):
        config.check_share(1, 1)
