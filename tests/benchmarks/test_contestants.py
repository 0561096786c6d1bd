"""What makes the comparison fair: one network, one plan, one judge."""

from __future__ import annotations

import argparse
import doctest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import benchmarks.accuracy_equal_time as equal_time
import benchmarks.own_training
from benchmarks import measuring
from benchmarks.accuracy_equal_time import CONTESTANTS, GRAY, WIDTHS, run_name, sweep_name
from benchmarks.judging import NUM_DRAWS, few_labels, judge
from benchmarks.losses import whole_nt_xent
from benchmarks.own_training import METHODS, configuration, lengths
from benchmarks.peers import narrow_resnet
from benchmarks.product_steps import configuration as steps_configuration
from encoders.encoder import Encoder
from encoders.losses import nt_xent


def asked(method: str) -> argparse.Namespace:
    return argparse.Namespace(
        method=method,
        lr=0.05,
        temperature=0.3,
        momentum=0.9,
        batch=32,
        seed=1,
        widths=WIDTHS,
        gray=GRAY,
    )


@pytest.mark.parametrize("method", [*METHODS, "end to end"])
def test_the_peers_network_is_ours_tensor_by_tensor(method: str) -> None:
    if method == "end to end":
        config = steps_configuration(batch=8, epochs=1, seed=0)
    else:
        config = configuration(asked(method), epochs=1)
    ours = Encoder.initialise(config.encoder, seed=0)
    widths = config.backbone.widths
    backbone, projector = narrow_resnet.backbone(widths), narrow_resnet.projector(widths[-1])
    backbone.load_state_dict(ours.backbone.net.state_dict())
    projector.load_state_dict(ours.projector.state_dict())
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        theirs = projector.eval()(backbone.eval()(images))
        torch.testing.assert_close(ours.projector(ours.backbone(images)), theirs)
    parameters = [p.numel() for part in (ours.backbone, ours.projector) for p in part.parameters()]
    assert narrow_resnet.num_parameters(backbone, projector) == sum(parameters)


def test_the_peers_network_starts_as_ours_does() -> None:
    torch.manual_seed(0)
    spread = {
        name: float(tensor.std())
        for name, tensor in narrow_resnet.backbone(WIDTHS).state_dict().items()
        if tensor.ndim == 4
    }
    ours = Encoder.initialise(configuration(asked("simclr"), epochs=1).encoder, seed=0)
    for name, tensor in ours.backbone.net.state_dict().items():
        if tensor.ndim == 4:
            assert spread[name] == pytest.approx(float(tensor.std()), rel=0.1)
        if name.endswith("bn2.weight"):
            assert (tensor == 0).all()
            assert (narrow_resnet.backbone(WIDTHS).state_dict()[name] == 0).all()


@pytest.mark.parametrize("steps", [1, 5, 468, 469, 700, 5_999])
def test_a_plan_makes_no_more_steps_than_there_is_time_for_and_few_less(steps: int) -> None:
    epochs, pictures = lengths(steps, 60_000, 128)
    made = epochs * (pictures // 128)
    assert pictures <= 60_000
    assert steps - epochs < made <= steps


def test_settings_of_the_sweep_reach_the_configuration() -> None:
    assert doctest.testmod(benchmarks.own_training).failed == 0
    simclr, byol = (configuration(asked(method), epochs=3) for method in ("simclr", "byol"))
    assert simclr.method.temperature == 0.3
    assert byol.method.momentum.start == 0.9
    for config in (simclr, byol):
        assert (config.optim.lr, config.batch_size, config.epochs, config.seed) == (0.05, 32, 3, 1)
    assert byol.view_b.solarise_probability == 0.2
    assert byol.view_a == simclr.view_a == simclr.view_b


def test_every_run_has_a_file_of_its_own() -> None:
    names = [
        run_name(who, budget, seed)
        for who in CONTESTANTS
        for budget in (60, 600)
        for seed in (0, 1)
    ]
    names += [sweep_name(who) for who in CONTESTANTS]
    assert len(set(names)) == len(names)


def separable(num: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % 4
    vectors = np.eye(4, 8)[labels] + noise * rng.standard_normal((num, 8))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


def test_clear_classes_are_judged_perfect_and_noise_is_chance() -> None:
    bank, queries = separable(200, 0.01, 0), separable(100, 0.01, 1)
    found = judge(*bank, *queries)
    assert found["knn20"] == 1
    assert found["labels_1"] == [1.0] * NUM_DRAWS
    rng = np.random.default_rng(0)
    shuffled = judge(bank[0], rng.permutation(bank[1]), queries[0], queries[1])
    assert np.mean(shuffled["labels_10"]) < 0.5


def test_draws_are_the_same_for_everyone_and_more_labels_help() -> None:
    bank, queries = separable(400, 0.6, 0), separable(400, 0.6, 1)
    again = few_labels(*bank, *queries, 5)
    assert again == few_labels(*bank, *queries, 5)
    assert len(set(again)) > 1, "draws differ"
    assert np.mean(few_labels(*bank, *queries, 1)) < np.mean(again)


def test_the_whole_matrix_gives_the_loss_that_tiles_give() -> None:
    views = [torch.randn(12, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    ids = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 3, 3])
    whole, tiles = (form(*views, ids, temperature=0.2) for form in (whole_nt_xent, nt_xent))
    torch.testing.assert_close(whole, tiles)


def test_a_sweep_goes_beyond_its_ends_and_on_where_it_was_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried: list[tuple[float, float]] = []
    stop_after = 4

    def trained(*asked: Any) -> tuple[dict[str, Any], list[np.ndarray]]:
        if len(tried) == stop_after:
            raise KeyboardInterrupt
        tried.append((asked[2]["lr"], asked[2]["temperature"]))
        return {}, [np.array([asked[2]["lr"]]), np.array([])]

    monkeypatch.setattr(measuring, "CHECKOUT", tmp_path)
    monkeypatch.setattr(measuring, "RESULTS", tmp_path)
    monkeypatch.setattr(equal_time, "trained", trained)
    monkeypatch.setattr(equal_time, "steps_in", lambda *asked: asked[-1])
    monkeypatch.setattr(equal_time, "SWEEP_TRAIN", 1)
    monkeypatch.setattr(equal_time, "knn20", lambda bank, *_: float(bank[0]))  # fast is best
    np.save(tmp_path / "labels.npy", np.zeros(2))
    who = next(each for each in CONTESTANTS if each.name == "lookalike-simclr")
    options = argparse.Namespace(sweep_budget_s=1.0, threads=1)
    with pytest.raises(KeyboardInterrupt):
        equal_time.sweep(who, options, tmp_path)
    with pytest.raises(SystemExit, match="no whole sweep"):
        equal_time.best_settings(who)
    stop_after = 99
    equal_time.sweep(who, options, tmp_path)
    equal_time.sweep(who, options, tmp_path)
    assert tried == [(0.3, 0.2), (1.0, 0.2), (3.0, 0.2), (10.0, 0.2), (10.0, 0.1), (10.0, 0.5)]
    assert equal_time.best_settings(who)["lr"] == 10.0
