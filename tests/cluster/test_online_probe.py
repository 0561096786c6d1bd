"""kNN and linear probe while training: apart from it, beside baselines, honest about labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cluster.online_probe import MAX_BANK, OnlineProbe, ProbeSplit, split_labels
from cluster.run_labels import hold_out
from encoders.encoder import Encoder
from encoders.recipes import simclr_small, supcon_small, tiny
from encoders.training import Pretraining

NUM, SIZE = 240, 16


class Pixels:
    """Noise with a quarter of a colour, both by class, as `PixelCache` hands pictures out."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.classes = np.arange(NUM) % 4
        self.pixels = rng.integers(0, 160, (NUM, SIZE, SIZE, 3), dtype=np.uint8)
        half = SIZE // 2
        colours = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 250]], np.uint8)
        for picture, quarter in zip(self.pixels, self.classes, strict=True):
            row, column = half * (quarter // 2), half * (quarter % 2)
            picture[row : row + half, column : column + half] = colours[quarter]
        self.ids = np.arange(NUM)

    def read(self, positions: np.ndarray) -> np.ndarray:
        return self.pixels[positions].copy()


@pytest.fixture(scope="module")
def pixels() -> Any:
    torch.set_num_threads(1)
    return Pixels()


def split_of(codes: np.ndarray, share: float = 0.25) -> ProbeSplit:
    split = split_labels(codes, hold_out(codes, np.zeros(len(codes), bool), share))
    assert split is not None
    return split


def encoder_of(seed: int = 3) -> Encoder:
    return Encoder.initialise(tiny(simclr_small()).encoder, seed)


def test_bank_and_test_are_apart_and_the_same_each_time() -> None:
    codes = np.arange(300) % 7
    codes[::5] = -1
    first, second = split_of(codes), split_of(codes)
    np.testing.assert_array_equal(first.test, second.test)
    np.testing.assert_array_equal(first.bank, second.bank)
    assert not np.intersect1d(first.bank, first.test).size
    assert (codes[np.concatenate([first.bank, first.test])] >= 0).all()
    np.testing.assert_array_equal(first.bank_codes, codes[first.bank])


def test_the_bank_of_many_labels_is_a_sample_of_the_classes_that_are_tested() -> None:
    codes = np.arange(50_000) % 500
    split = split_of(codes)
    assert len(split.bank) == MAX_BANK
    assert set(split.bank_codes) <= set(split.test_codes)


@pytest.mark.parametrize("codes", [[-1] * 6, [0] * 6, [0, 1, -1, -1, -1, -1]], ids=str)
def test_too_few_labels_are_not_measured(codes: list[int]) -> None:
    known = np.array(codes)
    assert split_labels(known, hold_out(known, np.zeros(6, bool), 0.5)) is None


def test_figures_stand_beside_their_baselines_and_say_how_they_were_measured(pixels: Any) -> None:
    split = split_of(pixels.classes)
    start = encoder_of(7)
    probe = OnlineProbe(pixels, split, seed=3, start=start)
    figures = probe.measure(encoder_of(3))
    kinds = ("", "_random", "_pixels", "_start")
    names = {f"{figure}{kind}" for figure in ("knn", "probe") for kind in kinds}
    assert set(figures) == names | {"knn_k", "knn_temperature", "num_bank", "num_test"}
    # The untrained network of the run's seed is measured as itself.
    assert (figures["knn"], figures["probe"]) == (figures["knn_random"], figures["probe_random"])
    assert figures["probe_pixels"] > 0.9
    assert (figures["num_bank"], figures["num_test"]) == (180, 60)
    again = probe.measure(start)
    assert (again["knn"], again["probe"]) == (figures["knn_start"], figures["probe_start"])


def test_what_tells_classes_is_found_and_shuffled_labels_fall_to_chance(
    pixels: Any,
) -> None:
    encoder = encoder_of()
    true = OnlineProbe(pixels, split_of(pixels.classes), seed=0).measure(encoder)
    assert min(true["probe"], true["knn_pixels"], true["probe_pixels"]) > 0.8
    assert true["knn"] > 0.5
    shuffled = np.random.default_rng(1).permutation(pixels.classes)
    chance = OnlineProbe(pixels, split_of(shuffled), seed=0).measure(encoder)
    for name in ("knn", "probe", "knn_random", "probe_random", "knn_pixels", "probe_pixels"):
        assert chance[name] == pytest.approx(0.25, abs=0.17), name


def test_classes_that_one_side_lacks_count_as_wrong_and_stop_nothing(pixels: Any) -> None:
    split = split_of(pixels.classes)
    kept = split.bank_codes < 2
    poor = replace(split, bank=split.bank[kept], bank_codes=split.bank_codes[kept])
    figures = OnlineProbe(pixels, poor, seed=0).measure(encoder_of())
    share = float((split.test_codes < 2).mean())
    assert 0.9 * share <= figures["probe_pixels"] <= share
    assert 0.9 * share <= figures["knn_pixels"] <= share


def test_two_labels_a_class_are_enough(pixels: Any) -> None:
    codes = np.full(NUM, -1)
    codes[:8] = pixels.classes[:8]
    figures = OnlineProbe(pixels, split_of(codes), seed=0).measure(encoder_of())
    assert (figures["num_bank"], figures["num_test"], figures["knn_k"]) == (4, 4, 4)
    assert figures["probe_pixels"] >= 0.75


def test_an_encoder_that_gives_nan_is_wrong_and_stops_nothing(pixels: Any) -> None:
    encoder = encoder_of()
    with torch.no_grad():
        for parameter in encoder.backbone.parameters():
            parameter.fill_(float("nan"))
    figures = OnlineProbe(pixels, split_of(pixels.classes), seed=0).measure(encoder)
    assert figures["knn"] <= 0.5
    assert figures["knn_pixels"] > 0.9


@pytest.mark.parametrize("recipe", [simclr_small, supcon_small])
def test_training_is_the_same_to_the_bit_with_and_without(pixels: Any, recipe: Any) -> None:
    def train(probe: OnlineProbe | None) -> tuple[dict[str, Any], np.ndarray, torch.Tensor]:
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002 - the generator that measuring must not touch
        training = Pretraining(tiny(recipe()), num_pictures=NUM)
        for _ in range(6):
            rows = training.next_rows()
            training.train_step(pixels.read(rows), pixels.ids[rows], pixels.classes[rows])
            if probe is not None:
                probe.measure(training.encoder())
        state = training.state_dict()
        return state["method"], np.random.rand(3), torch.rand(3)  # noqa: NPY002

    without = train(None)
    split = split_of(pixels.classes)
    beside = train(OnlineProbe(pixels, split, seed=0, start=encoder_of()))
    for name, tensor in without[0].items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(tensor, beside[0][name]), name
    np.testing.assert_array_equal(without[1], beside[1])
    assert torch.equal(without[2], beside[2])


def test_ranks_but_the_first_only_keep_step(pixels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: dict[int, int] = {}
    for rank in (0, 1):
        waits[rank] = 0

        def wait(device: torch.device, rank: int = rank) -> None:
            waits[rank] += 1

        monkeypatch.setattr("cluster.online_probe._wait_for_rank_0", wait)
        monkeypatch.setattr("cluster.online_probe.rank", lambda rank=rank: rank)
        found = OnlineProbe(pixels, split_of(pixels.classes), seed=0).measure(encoder_of())
        assert bool(found) == (rank == 0)
    assert waits[0] == waits[1] > 0
