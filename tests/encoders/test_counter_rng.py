import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.counter_rng import philox_4x32, uniform_NK, uniform_VNK

# From kat_vectors of Random123 1.14: counter, key, output of philox4x32 with 10 rounds.
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_known_answers(counter, key, expected):
    assert tuple(philox_4x32(torch.tensor(counter), key).tolist()) == expected


def naive_draw(seed: int, epoch: int, sample: int, view: int, draw: int) -> float:
    c = [sample % 2**32, sample >> 32, epoch, (view << 16) + draw // 4]
    k = [seed % 2**32, seed >> 32]
    for _ in range(10):
        p, q = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(q >> 32) ^ c[1] ^ k[0], q % 2**32, (p >> 32) ^ c[3] ^ k[1], p % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return (c[draw % 4] >> 8) / 2**24


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**32 - 1),
    sample=st.integers(0, 2**63 - 1),
    view=st.integers(0, 2**16 - 1),
    draw=st.integers(0, 40),
)
def test_every_draw_equals_a_plain_integer_implementation(seed, epoch, sample, view, draw):
    drawn = uniform_NK(seed, epoch, torch.tensor([sample]), view, draw + 1)
    assert drawn[0, draw].item() == naive_draw(seed, epoch, sample, view, draw)


def test_a_sample_draws_the_same_in_any_batch_and_any_order():
    ids = torch.tensor([7, 3, 2**40, 11])
    together = uniform_NK(5, 2, ids, 1, 9)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(uniform_NK(5, 2, ids[order], 1, 9), together[order])
    assert torch.equal(uniform_NK(5, 2, ids[2:3], 1, 9)[0], together[2])


def test_more_draws_leave_the_first_ones_alone():
    ids = torch.arange(3)
    assert torch.equal(uniform_NK(0, 0, ids, 0, 17)[:, :5], uniform_NK(0, 0, ids, 0, 5))


def test_seed_epoch_sample_view_and_draw_all_change_the_value():
    ids = torch.arange(20)
    seen = {
        value
        for seed in (0, 1, 2**32)
        for epoch in (0, 1)
        for view in (0, 1)
        for value in uniform_NK(seed, epoch, ids, view, 8).flatten().tolist()
    }
    # 1,920 draws of 24 bits: 0.1 collisions are expected.
    assert len(seen) >= 1917


def test_draws_are_uniform_and_uncorrelated():
    draws = uniform_NK(3, 0, torch.arange(20000), 0, 4)
    assert draws.dtype == torch.float32
    assert 0 <= draws.min() < 1e-3
    assert 0.999 < draws.max() < 1
    counts = torch.histc(draws, bins=50, min=0, max=1)
    expected = draws.numel() / 50
    # Chi square with 49 degrees of freedom: 99.99 % are below 97.
    assert ((counts - expected) ** 2 / expected).sum() < 97
    correlation = torch.corrcoef(torch.cat([draws, draws.roll(1, 0)], dim=1).T)
    assert (correlation - torch.eye(8)).abs().max() < 0.035


@pytest.mark.parametrize(
    ("seed", "epoch", "view"), [(-1, 0, 0), (2**64, 0, 0), (0, -1, 0), (0, 2**32, 0), (0, 0, 2**16)]
)
def test_keys_out_of_range_are_refused_with_the_range(seed, epoch, view):
    with pytest.raises(ValueError, match="must be 0 or more"):
        uniform_NK(seed, epoch, torch.arange(2), view, 1)


def test_several_views_at_once_draw_what_each_draws_alone():
    ids, views = torch.tensor([4, 2**40, 0]), [3, 0, 65535]
    drawn = uniform_VNK(9, 1, ids, views, 6)
    assert drawn.shape == (3, 3, 6)
    for place, view in enumerate(views):
        assert torch.equal(drawn[place], uniform_NK(9, 1, ids, view, 6))
