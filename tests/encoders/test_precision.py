import io
import math
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from encoders.health import NonFiniteError
from encoders.pretrain_config import PretrainConfig
from encoders.recipes import byol_small, moco_small, simclr_small, supcon_small, tiny
from encoders.training import Pretraining

HALF = replace(tiny(simclr_small()), precision="fp16")
SCALES: dict[Any, float | None] = {"fp16": 2.0**8, "bf16": None}


def training_of(config: PretrainConfig, scale: float | None = None) -> Pretraining:
    training = Pretraining(config, num_pictures=24)
    if scale is not None:
        training._scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return training


def step(training: Pretraining) -> dict[str, float]:
    pixels = np.random.default_rng(1).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    rows = training.next_rows()
    return training.train_step(pixels[rows], rows, rows % 3)


def weights(training: Pretraining) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in training._method.named_parameters()}


@pytest.mark.parametrize("recipe", [simclr_small, moco_small, byol_small, supcon_small])
def test_a_step_in_16_bits_is_nearly_that_in_32(recipe: object) -> None:
    assert callable(recipe)
    config: PretrainConfig = tiny(recipe())
    expected = step(training_of(config))
    for precision in SCALES:
        found = step(training_of(replace(config, precision=precision), scale=SCALES[precision]))
        assert found["loss"] == pytest.approx(expected["loss"], abs=0.05)
        assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=0.1, abs=1e-3)


def test_a_step_that_overflows_moves_no_weight_and_halves_the_scale() -> None:
    training = training_of(HALF, scale=2.0**60)
    before = weights(training)
    metrics = step(training)
    assert "grad_norm" not in metrics
    assert metrics["loss_scale"] == 2.0**59
    assert math.isfinite(metrics["loss"])
    assert training.step_index == 1
    for name, value in weights(training).items():
        assert torch.equal(value, before[name]), name


def test_training_goes_on_once_the_scale_fits() -> None:
    training = training_of(replace(HALF, epochs=10), scale=2.0**24)
    found = [step(training) for _ in range(20)]
    assert "grad_norm" not in found[0]
    assert "grad_norm" in found[-1]


def test_gradients_that_no_scale_mends_stop_the_run() -> None:
    training = training_of(HALF, scale=1.0)
    weight: Any = training._method.get_parameter("backbone.net.conv1.weight")
    weight.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(NonFiniteError, match="use precision fp32"):
        step(training)


def test_the_scale_is_restored_to_the_bit() -> None:
    whole, first = training_of(HALF, scale=2.0**28), training_of(HALF, scale=2.0**28)
    for _ in range(4):
        expected = step(whole)
    step(first)
    step(first)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    resumed = training_of(HALF)
    resumed.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    step(resumed)
    assert step(resumed) == expected


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.slow
# torch.compile looks at it and hides what that says, but not from a filter that raises.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_networks_compute_the_same() -> None:
    config = tiny(simclr_small())
    plain, compiled = training_of(config), training_of(replace(config, compile=True))
    for _ in range(3):
        expected, found = step(plain), step(compiled)
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert compiled.state_dict()["method"].keys() == plain.state_dict()["method"].keys()


def test_compiling_without_a_compiler_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"no-such-compiler none is here.* leave --compile out"):
        training_of(replace(HALF, compile=True))
