import numpy as np
import pytest

from encoders.recipes import simclr_small
from encoders.split import split_rows


def split(num: int, **changes: int | float):
    settings = {"most": 128, "share": 0.05, "batch_size": 64, "seed": 0} | changes
    return split_rows(num, **settings)


@pytest.mark.parametrize(
    ("num", "held_out"),
    [(639, 0), (640, 32), (1279, 32), (1280, 64), (2560, 128), (10**6, 128)],
)
def test_so_many_are_held_out(num, held_out):
    found = split(num)
    assert len(found.trained) == num - held_out
    assert found.is_held_out is (held_out > 0)
    if held_out:
        assert len(found.examined) == held_out


def test_every_row_is_trained_on_or_held_out_and_none_is_both():
    found = split(2000)
    assert sorted([*found.trained, *found.examined]) == list(range(2000))
    assert (np.diff(found.trained) > 0).all()
    assert found.examined.max() > 1500, "drawn from the whole corpus"
    assert found.examined.min() < 500


def test_seed_decides_and_nothing_else():
    assert (split(2000).examined == split(2000).examined).all()
    assert (split(2000).examined != split(2000, seed=1).examined).any()
    assert split(2000).examined.tolist()[:4] == [9, 16, 90, 91], "the same in every version"


def test_a_corpus_too_small_is_examined_on_what_it_trains_on():
    found = split(100)
    assert not found.is_held_out
    assert len(found.trained) == 100
    assert len(found.examined) == 96
    assert set(found.examined) <= set(found.trained)
    assert len(split(31).examined) == 0


@pytest.mark.parametrize("changes", [{"most": 0}, {"share": 0.0}, {"batch_size": 1990}])
def test_what_nobody_asked_for_or_the_batch_needs_is_not_held_out(changes):
    found = split(2000, **changes)
    assert len(found.trained) == 2000
    assert not found.is_held_out
    assert len(found.examined) == (0 if changes.get("most") == 0 else 128)


def test_a_configuration_counts_what_it_trains_on():
    config = simclr_small()
    assert config.num_trained(2560) == 2464
    assert config.num_trained(600) == 600
