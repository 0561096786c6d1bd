import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.sampler import GlobalOrder, permutation


@settings(deadline=None, max_examples=50)
@given(
    batches=st.integers(1, 5),
    share=st.integers(1, 6),
    world_size=st.sampled_from([1, 2, 3, 4]),
    tail=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
def test_an_epoch_shows_each_picture_at_most_once_whatever_the_ranks(
    batches, share, world_size, tail, epoch
):
    batch_size = share * world_size
    num_pictures = batches * batch_size + min(tail, batch_size - 1)
    order = GlobalOrder(num_pictures=num_pictures, batch_size=batch_size, seed=3)
    assert order.steps_per_epoch == batches
    steps = range(epoch * batches, (epoch + 1) * batches)
    seen = []
    for step in steps:
        parts = [order.rows(step, rank=r, world_size=world_size) for r in range(world_size)]
        assert {len(part) for part in parts} == {share}
        np.testing.assert_array_equal(np.concatenate(parts), order.rows(step))
        seen += np.concatenate(parts).tolist()
        assert order.epoch(step) == epoch
    assert len(set(seen)) == len(seen) == batches * batch_size
    assert set(seen) <= set(range(num_pictures))


@settings(deadline=None, max_examples=50)
@given(
    num_chunks=st.integers(1, 4),
    slice_size=st.integers(1, 3),
    world_size=st.sampled_from([1, 2, 3, 4]),
    step=st.integers(0, 3),
)
def test_every_rank_holds_its_slice_of_every_chunk(num_chunks, slice_size, world_size, step):
    batch_size = num_chunks * slice_size * world_size
    sizes = {"num_pictures": 2 * batch_size + 1, "batch_size": batch_size, "seed": 5}
    whole = GlobalOrder(**sizes).rows(step)
    order = GlobalOrder(**sizes, num_chunks=num_chunks)
    shares = [order.rows(step, rank=r, world_size=world_size) for r in range(world_size)]
    for chunk in range(num_chunks):
        rows = slice(chunk * slice_size, (chunk + 1) * slice_size)
        start = chunk * slice_size * world_size
        expected = whole[start : start + slice_size * world_size]
        np.testing.assert_array_equal(np.concatenate([s[rows] for s in shares]), expected)


def test_the_order_is_written_down_here_so_that_no_release_changes_old_runs():
    assert GlobalOrder(num_pictures=8, batch_size=4, seed=0).rows(0).tolist() == [0, 3, 7, 5]


def test_a_key_of_up_to_four_words_may_end_in_zeros_that_change_nothing():
    """So that MoCo's chunk 0 is shuffled as a whole batch always was."""
    plain = permutation(30, 1, 2**32 - 1, 7)
    np.testing.assert_array_equal(permutation(30, 1, 2**32 - 1, 7, 0), plain)
    assert not np.array_equal(permutation(30, 1, 2**32 - 1, 7, 1), plain)


def test_epochs_and_seeds_have_orders_of_their_own():
    first = GlobalOrder(num_pictures=50, batch_size=50, seed=0)
    other = GlobalOrder(num_pictures=50, batch_size=50, seed=1)
    orders = {tuple(rows) for rows in (first.rows(0), first.rows(1), other.rows(0), other.rows(1))}
    assert len(orders) == 4


def test_every_position_is_equally_likely():
    counts = np.zeros((5, 5))
    for seed in range(2000):
        counts[np.arange(5), permutation(5, seed)] += 1
    chi_square = ((counts - 400) ** 2 / 400).sum()
    assert chi_square < 45  # 16 degrees of freedom: one in 7000 fair orders exceeds it


def test_writing_into_a_batch_does_not_change_the_next():
    order = GlobalOrder(num_pictures=8, batch_size=4, seed=0)
    order.rows(0)[:] = -1
    assert order.rows(0).min() >= 0


def test_a_batch_larger_than_the_corpus_is_refused():
    with pytest.raises(ValueError, match=r"100 pictures.*batch 128.*batch_size to 100"):
        GlobalOrder(num_pictures=100, batch_size=128, seed=0)


@pytest.mark.parametrize("num_pictures", [0, 1])
def test_a_corpus_without_a_pair_is_not_advised_to_shrink_the_batch(num_pictures):
    with pytest.raises(ValueError, match=rf"{num_pictures} pictures, .*Scan more") as error:
        GlobalOrder(num_pictures=num_pictures, batch_size=8, seed=0)
    assert "batch_size to" not in str(error.value)


def test_chunks_that_do_not_divide_among_the_workers_are_refused():
    order = GlobalOrder(num_pictures=12, batch_size=12, seed=0, num_chunks=3)
    order.rows(0, rank=0, world_size=2)
    with pytest.raises(ValueError, match=r"12, in 3 chunks, .* 3 workers.*9 divides, fewer batch"):
        order.rows(0, rank=0, world_size=3)


def test_a_batch_that_does_not_divide_among_the_workers_is_refused():
    with pytest.raises(ValueError, match=r"batch of 8 does not divide among 3 workers.*3 divides"):
        GlobalOrder(num_pictures=8, batch_size=8, seed=0).rows(0, rank=0, world_size=3)
