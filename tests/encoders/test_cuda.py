"""What a GPU computes, held against the CPU: needs a CUDA device, and skips itself without one."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from encoders.augment import AugmentConfig, augment
from encoders.moco import MoCoConfig
from encoders.pretrain_config import PretrainConfig
from encoders.recipes import byol_small, moco_small, simclr_small, supcon_small, tiny
from encoders.training import Pretraining

pytestmark = pytest.mark.gpu

NUM_PICTURES = 48
METHODS = {"simclr": simclr_small, "moco": moco_small, "byol": byol_small, "supcon": supcon_small}


@pytest.fixture(autouse=True)
def full_float32() -> Iterator[None]:
    """Without TF32, whose 10 bits in convolutions would hide what is compared here."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def config_of(name: str, **changes: Any) -> PretrainConfig:
    config = replace(tiny(METHODS[name]()), batch_size=16, epochs=8)
    backbone = replace(config.backbone, zero_init_residual=False)
    if name == "moco":
        changes = {"method": MoCoConfig(queue_size=32, key_groups=4)} | changes
    return replace(config, **{"backbone": backbone} | changes)


def train(training: Pretraining, num_steps: int) -> list[dict[str, float]]:
    pixels = np.random.default_rng(5).integers(0, 256, (NUM_PICTURES, 16, 16, 3), dtype=np.uint8)
    found = []
    for _ in range(num_steps):
        rows = training.next_rows()
        found.append(training.train_step(pixels[rows], rows, rows % 4))
    return found


def flat(training: Pretraining) -> np.ndarray:
    state = training.state_dict()["method"]
    floats = [state[name] for name in sorted(state) if state[name].is_floating_point()]
    return torch.cat([tensor.detach().cpu().double().flatten() for tensor in floats]).numpy()


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("method", METHODS)
def test_steps_on_a_gpu_are_those_on_the_cpu(method: str) -> None:
    config = config_of(method)
    there, here = (Pretraining(config, NUM_PICTURES, device) for device in ("cuda", "cpu"))
    for found, expected in zip(train(there, 3), train(here, 3), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3, abs=1e-4)
    assert distance(flat(there), flat(here)) < 1e-3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_step_in_16_bits_on_a_gpu_is_nearly_that_in_32(method: str, precision: Any) -> None:
    (expected,) = train(Pretraining(config_of(method), NUM_PICTURES, "cuda"), 1)
    halved = Pretraining(config_of(method, precision=precision), NUM_PICTURES, "cuda")
    # The first step alone: float16 may skip its update, to find the scale of the loss.
    (found,) = train(halved, 1)
    assert found["loss"] == pytest.approx(expected["loss"], abs=0.1)


@pytest.mark.parametrize("chunks", [1, 4])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_resumed_on_a_gpu_is_the_uninterrupted_one(method: str, chunks: int) -> None:
    key_groups = {"method": MoCoConfig(queue_size=32, key_groups=2)} if method == "moco" else {}
    config = config_of(method, batch_chunks=chunks, **key_groups)
    straight, first, second = (Pretraining(config, NUM_PICTURES, "cuda") for _ in range(3))
    train(straight, 6)
    train(first, 3)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, map_location="cpu", weights_only=True))
    train(second, 3)
    # Sums of gradients have no fixed order in some CUDA kernels, hence not to the bit.
    assert distance(flat(second), flat(straight)) < 1e-4


@pytest.mark.parametrize(
    "config",
    [AugmentConfig.simclr(96), AugmentConfig.byol(96, view=1), AugmentConfig.moco_v2(32)],
    ids=["simclr", "byol", "moco"],
)
def test_views_on_a_gpu_are_those_on_the_cpu(config: AugmentConfig) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (64, 3, 96, 96), dtype=torch.uint8, generator=generator)
    ids = torch.arange(64)
    here = augment(pixels, ids, config=config, seed=0, epoch=1, view=0)
    there = augment(pixels.cuda(), ids.cuda(), config=config, seed=0, epoch=1, view=0)
    assert there.is_cuda
    # Solarising a value at its threshold may fall either way.
    apart = (there.cpu() - here).abs() > 1e-4
    assert apart.float().mean() < 1e-4


def trained_on_one_gpu(method: str) -> np.ndarray:
    """On every rank; gloo lets several share a GPU, which NCCL refuses."""
    torch.backends.cudnn.allow_tf32 = False
    training = Pretraining(config_of(method), NUM_PICTURES, "cuda")
    train(training, 3)
    return flat(training)


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_on_a_gpu_reach_the_weights_of_one(ranks: Any, method: str) -> None:
    expected = trained_on_one_gpu(method)
    first, second = ranks(trained_on_one_gpu, method)
    assert np.array_equal(first, second)
    assert distance(first, expected) < 1e-3


@pytest.mark.slow
def test_compiled_networks_compute_the_same_on_a_gpu() -> None:
    config = config_of("simclr")
    plain = Pretraining(config, NUM_PICTURES, "cuda")
    compiled = Pretraining(replace(config, compile=True), NUM_PICTURES, "cuda")
    for found, expected in zip(train(compiled, 3), train(plain, 3), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-2)
