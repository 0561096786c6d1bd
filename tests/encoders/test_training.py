import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from encoders.collective import rank, world_size
from encoders.encoder import Encoder
from encoders.health import CollapseError, HealthConfig, NonFiniteError
from encoders.moco import MoCoConfig
from encoders.optim import OptimConfig
from encoders.preprocess import PreprocessConfig
from encoders.recipes import byol_small, moco_small, simclr_small, supcon_small, tiny
from encoders.training import PretrainConfig, Pretraining

NUM_PICTURES = 37
METHODS = {
    "simclr": simclr_small,
    "moco": moco_small,
    "byol": byol_small,
    "supcon": supcon_small,
}


def config_of(name: str, **changes: Any) -> PretrainConfig:
    """Eight pictures a step; no residual block is the identity, so all weights have gradients."""
    config = tiny(METHODS[name]())
    backbone = replace(config.backbone, zero_init_residual=False)
    return replace(config, **{"backbone": backbone, "epochs": 3} | changes)


def corpus() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise that brings no ReLU within rounding of its kink, where ranks differ (docs/log.md)."""
    generator = np.random.default_rng(9)
    pixels = generator.integers(0, 256, (NUM_PICTURES, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(NUM_PICTURES) % 4 - 1
    return pixels, np.arange(NUM_PICTURES) * 7 + 3, labels


def train(training: Pretraining, num_steps: int) -> list[dict[str, float]]:
    pixels, ids, labels = corpus()
    metrics = []
    for _ in range(num_steps):
        rows = training.next_rows()
        metrics.append(training.train_step(pixels[rows], ids[rows], labels[rows]))
    return metrics


def arrays(state: dict[str, Any]) -> dict[str, np.ndarray]:
    """Every tensor of a training state by dotted name."""
    found = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, torch.Tensor):
            found[name] = value.detach().cpu().numpy().copy()
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{name}.{key}")

    walk({part: state[part] for part in ("method", "optimizer")}, "")
    return found


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], atol: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=atol, err_msg=name)


def gradients(name: str, changes: dict[str, Any]) -> dict[str, np.ndarray]:
    """Gradients of the second step (MoCo's first is 0), before any weight has moved."""
    optim = OptimConfig(lr=1e-12, weight_decay=0.0)
    training = Pretraining(config_of(name, optim=optim, **changes), NUM_PICTURES)
    train(training, 2)
    named = training._method.named_parameters()
    return {name: p.grad.numpy().copy() for name, p in named if p.requires_grad}


def three_steps(method: str) -> tuple[dict[str, np.ndarray], list[dict[str, float]]]:
    training = Pretraining(config_of(method), NUM_PICTURES)
    metrics = train(training, 3)
    return arrays(training.state_dict()), metrics


def continued(method: str, saved: bytes) -> dict[str, np.ndarray]:
    training = Pretraining(config_of(method), NUM_PICTURES)
    training.load_state_dict(torch.load(io.BytesIO(saved), weights_only=True))
    train(training, 2)
    return arrays(training.state_dict())


def save(training: Pretraining) -> bytes:
    buffer = io.BytesIO()
    torch.save(training.state_dict(), buffer)
    return buffer.getvalue()


def assert_same_gradients(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = np.abs(value).max()
        assert scale > 0, name
        assert np.abs(found[name] - value).max() <= 2e-4 * scale + 1e-6, name


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_compute_the_gradients_of_one(ranks, method):
    expected = gradients(method, {})
    for found in ranks(gradients, method, {}):
        assert_same_gradients(found, expected)


@pytest.mark.slow
def test_four_ranks_compute_the_gradients_of_one(four_ranks):
    for method in METHODS:
        changes: dict[str, Any] = {"batch_size": 16}
        if method == "moco":
            changes["method"] = MoCoConfig(queue_size=32, key_groups=4)
        expected = gradients(method, changes)
        for found in four_ranks(gradients, method, changes):
            assert_same_gradients(found, expected)


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_reach_the_weights_queues_and_targets_of_one(ranks, method):
    expected, metrics = three_steps(method)
    answers = ranks(three_steps, method)
    for found, found_metrics in answers:
        assert_same(found, expected, atol=2e-5)
        for got, wanted in zip(found_metrics, metrics, strict=True):
            assert got == pytest.approx(wanted, rel=5e-3, abs=1e-4)
    first, second = (found for found, _ in answers)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert answers[0][1] == answers[1][1]


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_equal_to_the_bit(method):
    straight = Pretraining(config_of(method), NUM_PICTURES)
    losses = [metrics["loss"] for metrics in train(straight, 6)]
    first = Pretraining(config_of(method), NUM_PICTURES)
    train(first, 3)
    second = Pretraining(config_of(method), NUM_PICTURES)
    second.load_state_dict(torch.load(io.BytesIO(save(first)), weights_only=True))
    assert second.step_index == 3
    assert [metrics["loss"] for metrics in train(second, 3)] == losses[3:]
    expected, found = arrays(straight.state_dict()), arrays(second.state_dict())
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert found.keys() == expected.keys()


@pytest.mark.parametrize("name", ["lars", "adamw"])
def test_the_other_optimisers_resume_to_the_bit_as_well(name):
    config = config_of("simclr", optim=OptimConfig(name=name, lr=0.01))
    straight, first, second = (Pretraining(config, NUM_PICTURES) for _ in range(3))
    train(straight, 4)
    train(first, 2)
    second.load_state_dict(torch.load(io.BytesIO(save(first)), weights_only=True))
    train(second, 2)
    expected, found = arrays(straight.state_dict()), arrays(second.state_dict())
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_a_run_can_resume_with_another_number_of_ranks(ranks):
    training = Pretraining(config_of("moco"), NUM_PICTURES)
    train(training, 3)
    saved = save(training)
    train(training, 2)
    expected = arrays(training.state_dict())
    flat = np.concatenate([expected[name].ravel() for name in sorted(expected)])
    for found in ranks(continued, "moco", saved):
        drift = np.concatenate([found[name].ravel() for name in sorted(expected)]) - flat
        assert np.linalg.norm(drift) < 1e-4 * np.linalg.norm(flat)


def test_loading_does_not_tie_two_runs_together():
    first, second = (Pretraining(config_of("simclr"), NUM_PICTURES) for _ in range(2))
    train(first, 2)
    second.load_state_dict(first.state_dict())
    before = arrays(second.state_dict())
    train(first, 1)
    after = arrays(second.state_dict())
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_checkpoint_of_another_configuration_is_refused_by_field():
    state = Pretraining(config_of("simclr"), NUM_PICTURES).state_dict()
    other = config_of("simclr", optim=OptimConfig(lr=0.5))
    with pytest.raises(ValueError, match=r"optim\.lr was 0\.1, is 0\.5"):
        Pretraining(other, NUM_PICTURES).load_state_dict(state)
    with pytest.raises(ValueError, match="num_pictures was 37, is 99"):
        Pretraining(config_of("simclr"), 99).load_state_dict(state)
    with pytest.raises(ValueError, match=r"method\.queue_size was None, is 32"):
        Pretraining(config_of("moco"), NUM_PICTURES).load_state_dict(state)


def test_training_starts_from_the_random_encoder_of_its_seed_and_leaves_generators_alone():
    config = config_of("byol", seed=11)
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    training = Pretraining(config, NUM_PICTURES)
    train(training, 0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert training.encoder().encoder_id == Encoder.initialise(config.encoder, 11).encoder_id
    train(training, 1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert training.encoder().encoder_id != Encoder.initialise(config.encoder, 11).encoder_id


def test_the_exported_encoder_is_a_copy_that_training_cannot_change():
    training = Pretraining(config_of("simclr"), NUM_PICTURES)
    train(training, 2)
    encoder = training.encoder()
    pixels = corpus()[0][:5]
    vectors = encoder.embed(pixels)
    train(training, 1)
    np.testing.assert_array_equal(encoder.embed(pixels), vectors)


def test_probing_between_steps_does_not_change_training():
    plain, probed = (Pretraining(config_of("byol"), NUM_PICTURES) for _ in range(2))
    for _ in range(3):
        train(plain, 1)
        train(probed, 1)
        probed.encoder().embed(corpus()[0])
    expected, found = arrays(plain.state_dict()), arrays(probed.state_dict())
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_falls_on_pictures_that_can_be_told_apart(precision):
    """Each picture has a colour of its own, and the augmentation keeps it."""
    colours = np.random.default_rng(0).integers(0, 256, (16, 1, 1, 3), dtype=np.uint8)
    pixels = np.broadcast_to(colours, (16, 16, 16, 3)).copy()
    config = config_of("simclr", precision=precision, epochs=30, batch_size=16)
    calm = replace(config.view_a, jitter_probability=0.0, gray_probability=0.0)
    config = replace(config, view_a=calm, view_b=calm)
    training = Pretraining(config, 16)
    losses = []
    while training.step_index < training.num_steps:
        rows = training.next_rows()
        losses.append(training.train_step(pixels[rows], rows)["loss"])
    assert losses[-1] < 0.5 * losses[0]
    assert losses[-1] < math.log(31) - 1


def test_the_figures_are_complete_and_finite():
    training = Pretraining(config_of("simclr", health=HealthConfig(every=2)), NUM_PICTURES)
    first, second = train(training, 2)
    assert set(first) == {"lr", "loss", "grad_norm", "mi_bound", "mi_ceiling"}
    health = "embedding_std effective_rank alignment uniformity margin discrimination batch_rank "
    health += "dead_dimensions batch_discrimination view_distance update_ratio head_update_ratio "
    assert set(second) == {*first, *health.split(), "weight_growth"}
    assert all(type(value) is float and math.isfinite(value) for value in second.values())
    assert first["mi_ceiling"] == pytest.approx(math.log(15))
    assert first["mi_bound"] == pytest.approx(math.log(15) - first["loss"])
    assert "mi_bound" not in train(Pretraining(config_of("byol"), NUM_PICTURES), 1)[0]


def test_the_gradient_norm_is_that_of_all_gradients_and_clipping_bounds_it():
    free = Pretraining(config_of("simclr"), NUM_PICTURES)
    bound = config_of("simclr", optim=replace(config_of("simclr").optim, clip_norm=0.5))
    clipped = Pretraining(bound, NUM_PICTURES)
    norms = train(free, 1)[0]["grad_norm"], train(clipped, 1)[0]["grad_norm"]
    assert norms[0] == norms[1] > 0.5
    for training, expected in ((free, norms[0]), (clipped, 0.5)):
        squares = [float(p.grad.square().sum()) for p in training._trained]
        assert math.sqrt(sum(squares)) == pytest.approx(expected, rel=1e-5)


def poison(training: Pretraining) -> None:
    with torch.no_grad():
        next(training._method.projector.parameters())[0, 0] = math.nan


def error_of_a_poisoned_step() -> str:
    """NaN in the weights of the last rank only: all must refuse the step together."""
    training = Pretraining(config_of("byol"), NUM_PICTURES)
    if rank() == world_size() - 1:
        poison(training)
    before = arrays(training.state_dict())
    with pytest.raises(NonFiniteError, match="loss is nan") as error:
        train(training, 1)
    after = arrays(training.state_dict())
    same = [
        np.array_equal(before[name], after[name], equal_nan=True)
        for name in before
        if "running" not in name and "num_batches" not in name
    ]
    assert all(same)
    return str(error.value)


def test_a_loss_that_is_not_finite_names_step_rate_and_pictures_and_moves_nothing(ranks):
    message = error_of_a_poisoned_step()
    assert "step 0" in message
    assert "learning rate 0.004" in message
    ids = corpus()[1][Pretraining(config_of("byol"), NUM_PICTURES).next_rows()]
    assert ", ".join(map(str, ids)) in message
    assert len(ranks(error_of_a_poisoned_step)) == 2


def test_a_collapsed_network_stops_the_run():
    health = HealthConfig(every=1, patience=2, grace_steps=0)
    standstill = OptimConfig(lr=1e-12)
    training = Pretraining(config_of("byol", health=health, optim=standstill), NUM_PICTURES)
    with torch.no_grad():
        last = training._method.projector[-1]
        last.weight.zero_()
        last.bias.fill_(1)
    with pytest.raises(CollapseError, match=r"since step 1 .* BYOL"):
        train(training, 3)


@pytest.mark.parametrize("method", METHODS)
def test_a_healthy_run_raises_no_alarm_even_without_grace(method):
    health = HealthConfig(every=1, patience=1, grace_steps=0)
    train(Pretraining(config_of(method, health=health), NUM_PICTURES), 6)


def test_supcon_refuses_a_corpus_without_labels():
    config = config_of("supcon")
    pixels, ids, _ = corpus()
    training = Pretraining(config, NUM_PICTURES)
    rows = training.next_rows()
    for labels in (None, np.full(5, -1)):
        with pytest.raises(ValueError, match="supcon learns from labels"):
            config.check_labels(labels)
    with pytest.raises(ValueError, match="supcon learns from labels"):
        training.train_step(pixels[rows], ids[rows])
    config.check_labels(np.array([-1, 0]))
    config_of("simclr").check_labels(None)


def test_read_only_pixels_of_a_memory_map_are_fine():
    training = Pretraining(config_of("simclr"), NUM_PICTURES)
    pixels, ids, _ = corpus()
    rows = training.next_rows()
    view = pixels[rows]
    view.setflags(write=False)
    assert math.isfinite(training.train_step(view, ids[rows])["loss"])


def test_steps_and_rows_can_be_told_ahead():
    config = config_of("simclr")
    training = Pretraining(config, NUM_PICTURES)
    assert training.steps_per_epoch == 4
    assert training.num_steps == config.num_steps(NUM_PICTURES) == 12
    ahead = training.rows_at(1)
    train(training, 1)
    np.testing.assert_array_equal(training.next_rows(), ahead)


def try_three_groups() -> str:
    method = MoCoConfig(queue_size=32, key_groups=1)
    with pytest.raises(ValueError, match="key_groups is 1 and there are 2 workers") as error:
        Pretraining(config_of("moco", method=method), NUM_PICTURES)
    return str(error.value)


def try_an_odd_batch() -> str:
    with pytest.raises(ValueError, match="batch of 9 does not divide among 2 workers") as error:
        Pretraining(config_of("simclr", batch_size=9), NUM_PICTURES)
    return str(error.value)


def test_what_the_ranks_cannot_share_is_refused_before_anything_runs(ranks):
    assert len(ranks(try_three_groups)) == len(ranks(try_an_odd_batch)) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 1}, "batch_size 1"),
        ({"seed": -1}, "seed is -1"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"preprocess": PreprocessConfig(size=12)}, "pictures of 12 px"),
        ({"method": MoCoConfig(key_groups=3)}, "key_groups is 3"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config_of("simclr", **changes)


def test_the_corpus_must_fill_a_batch():
    with pytest.raises(ValueError, match="7 pictures, the global batch 8"):
        Pretraining(config_of("simclr"), 7)


@pytest.mark.parametrize("method", METHODS)
def test_the_projector_can_be_left_out(method):
    config = config_of(method)
    headless = replace(config, projector=replace(config.projector, num_layers=0))
    assert math.isfinite(train(Pretraining(headless, NUM_PICTURES), 2)[1]["loss"])
