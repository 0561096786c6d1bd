"""Threads of compiled loops: every item once, the same threads as torch's, errors come out."""

import threading

import numpy as np
import pytest
import torch

from encoders import compiled
from encoders.compiled import in_threads


@pytest.fixture(params=["team", "pool"])
def threads(request, monkeypatch):
    """Torch's own threads, and ours where torch brings no OpenMP that can be asked."""
    if request.param == "pool":
        monkeypatch.setattr(compiled, "_openmp", lambda: None)
    elif compiled._openmp() is None:
        pytest.skip("this torch brings no OpenMP of GNU's kind")


@pytest.mark.parametrize("num", [1, 2, 5, 64])
@pytest.mark.parametrize("num_threads", [1, 2, 3, 8])
def test_every_item_is_done_once(threads, num, num_threads):
    done = np.zeros(num, int)

    def work(first, end):
        done[first:end] += 1

    for _ in range(20):
        in_threads(work, num, num_threads)
    assert (done == 20).all()


def test_several_threads_work(threads):
    both = threading.Barrier(2, timeout=30)
    in_threads(lambda *_: both.wait(), 2, 2)


def test_an_error_in_any_thread_comes_out(threads):
    def fail(first, _):
        if first:
            raise ValueError("item 1")

    with pytest.raises(ValueError, match="item 1"):
        in_threads(fail, 2, 2)


def test_callers_in_several_threads_do_not_meet(threads):
    answers = []

    def call(number):
        done = []
        in_threads(lambda first, end: done.extend(range(first, end)), 40, 2)
        answers.append((number, sorted(done)))

    callers = [threading.Thread(target=call, args=(number,)) for number in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert sorted(answers) == [(number, list(range(40))) for number in range(6)]


def test_torch_goes_on_in_the_same_threads(threads):
    """One more than it had would compete with them for the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    rows = torch.randn(400, 400)
    try:
        for _ in range(5):
            in_threads(lambda *_: None, 2, 2)
            torch.testing.assert_close(rows @ rows, rows.mm(rows))
    finally:
        torch.set_num_threads(before)
    assert torch.get_num_threads() == before
