from dataclasses import replace

import numpy as np
import pytest
import torch

from encoders.collective import world_size
from encoders.health import HealthConfig, NonFiniteError
from encoders.held_out import ExaminedPictures, evaluating
from encoders.losses import unit_rows
from encoders.recipes import byol_small, moco_small, simclr_small, supcon_small, tiny
from encoders.training import Pretraining

METHODS = {
    "simclr": simclr_small,
    "moco": moco_small,
    "byol": byol_small,
    "supcon": supcon_small,
}
NUM_PICTURES = 96


def config_of(name: str, every: int = 1):
    health = HealthConfig(every=every, grace_steps=10**6)
    return replace(tiny(METHODS[name]()), health=health, epochs=1)


def corpus():
    generator = np.random.default_rng(3)
    pixels = generator.integers(0, 256, (NUM_PICTURES, 16, 16, 3), dtype=np.uint8)
    return pixels, np.arange(NUM_PICTURES) * 5, np.arange(NUM_PICTURES) % 3


def examined_of(config, num=64, **changes):
    pixels, ids, labels = corpus()
    return ExaminedPictures(pixels[:num], ids[:num], labels[:num], config=config, **changes)


def train(name: str, num_steps: int, *, every: int = 1, is_examined: bool = True):
    config = config_of(name, every)
    examined = examined_of(config) if is_examined else None
    training = Pretraining(config, NUM_PICTURES, examined=examined)
    pixels, ids, labels = corpus()
    metrics = []
    for _ in range(num_steps):
        rows = training.next_rows()
        metrics.append(training.train_step(pixels[rows], ids[rows], labels[rows]))
    return training, metrics


def weights_of(training) -> dict[str, np.ndarray]:
    return {name: x.numpy().copy() for name, x in training._method.state_dict().items()}


@pytest.mark.parametrize("name", METHODS)
def test_the_doctor_changes_nothing_that_training_computes(name):
    before = torch.get_rng_state()
    watched, metrics = train(name, 4)
    assert torch.equal(torch.get_rng_state(), before), "no generator moves"
    alone, plain = train(name, 4, every=10**6, is_examined=False)
    expected, found = weights_of(alone), weights_of(watched)
    assert all(np.array_equal(found[key], expected[key]) for key in expected)
    assert [line["loss"] for line in metrics] == [line["loss"] for line in plain]
    assert "discrimination" in metrics[0]
    assert "discrimination" not in plain[0]


def test_the_embeddings_are_those_of_the_eval_mode_and_the_same_each_time():
    training, _ = train("byol", 3)
    method, config = training._method, training.config
    first = examined_of(config).encode(method, training._autocast)
    again = examined_of(config).encode(method, training._autocast)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    pieces = examined_of(config)._pieces
    encoder = training.encoder()
    for number, piece in enumerate(pieces):
        rows = unit_rows(encoder.projector(encoder.backbone(piece)))
        for view, expected in zip(first, rows.chunk(2), strict=True):
            assert torch.allclose(view[32 * number :][:32], expected, atol=1e-6)


def test_the_two_views_differ_from_each_other_and_from_those_of_training():
    config = config_of("simclr")
    (piece,) = examined_of(config, num=32)._pieces
    assert not torch.allclose(piece[:32], piece[32:])
    pixels, ids, _ = corpus()
    training = Pretraining(replace(config, batch_size=32), NUM_PICTURES)
    batch = training._batch(pixels[:32], ids[:32], None)
    assert not torch.allclose(piece[:32], batch.view_a)


def test_modules_return_to_the_mode_they_were_in():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).train()
    network[1].eval()
    with evaluating(network):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network.modules()] == [True, True, False]


def figures_of_three_steps(name: str, num: int):
    """Embeddings of examined pictures with first weights, and the figures of three steps."""
    config = config_of(name)
    training = Pretraining(config, NUM_PICTURES, examined=examined_of(config, num))
    encoded = examined_of(config, num).encode(training._method, training._autocast)
    pixels, ids, labels = corpus()
    metrics = []
    for _ in range(3):
        rows = training.next_rows()
        metrics.append(training.train_step(pixels[rows], ids[rows], labels[rows]))
    assert len(ids[rows]) * world_size() == config.batch_size
    return [view.numpy() for view in encoded], metrics


@pytest.mark.parametrize(("name", "num"), [("simclr", 96), ("moco", 64), ("supcon", 32)])
def test_two_ranks_find_what_one_finds(ranks, name, num):
    expected, metrics = figures_of_three_steps(name, num)
    for found, found_metrics in ranks(figures_of_three_steps, name, num):
        for view, wanted in zip(found, expected, strict=True):
            assert np.array_equal(view, wanted)
        for line, wanted_line in zip(found_metrics, metrics, strict=True):
            assert line.keys() == wanted_line.keys()
            for key in line:
                assert line[key] == pytest.approx(wanted_line[key], rel=2e-3, abs=2e-3), key


def test_running_statistics_that_are_not_finite_are_refused_though_the_loss_is():
    config = config_of("simclr")
    training = Pretraining(config, NUM_PICTURES, examined=examined_of(config))
    pixels, ids, _ = corpus()
    norm = next(m for m in training._method.backbone.modules() if hasattr(m, "running_var"))
    norm.running_var.fill_(float("nan"))
    rows = training.next_rows()
    with pytest.raises(NonFiniteError, match=r"step 0: .*examined.*BatchNorm.*optim\.lr"):
        training.train_step(pixels[rows], ids[rows])


def test_a_resumed_run_gives_the_same_figures_and_the_same_warnings():
    straight, metrics = train("moco", 6)
    first, _ = train("moco", 3)
    config = config_of("moco")
    second = Pretraining(config, NUM_PICTURES, examined=examined_of(config))
    second.load_state_dict(first.state_dict())
    pixels, ids, labels = corpus()
    for expected in metrics[3:]:
        rows = second.next_rows()
        assert second.train_step(pixels[rows], ids[rows], labels[rows]) == expected
    assert second.findings == straight.findings
