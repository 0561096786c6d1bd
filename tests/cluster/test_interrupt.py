"""Ctrl-C and SIGTERM while a job works."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from cluster.interrupt import AGAIN_S, until_interrupted


class Job:
    """Works until it is asked to stop, or for ever."""

    def __init__(self, *, hears: bool, pause_s: float = AGAIN_S) -> None:
        self.hears = hears
        self.pause_s = pause_s
        self.asked = threading.Event()
        self.num_asked = 0
        self.released = threading.Event()

    def work(self) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        heard = self.asked.wait(10)
        if not self.hears:
            time.sleep(self.pause_s)
            os.kill(os.getpid(), signal.SIGTERM)
            self.released.wait(10)
        return "well" if heard else "deaf"

    def ask(self) -> None:
        self.num_asked += 1
        self.asked.set()


def test_the_first_signal_asks_once_and_the_work_s_result_comes_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    job = Job(hears=True)
    assert until_interrupted(job.work, job.ask) == "well"
    assert job.num_asked == 1
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_the_second_signal_ends_the_wait_at_once() -> None:
    job = Job(hears=False)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        until_interrupted(job.work, job.ask)
    assert time.monotonic() - started < 5
    assert job.num_asked == 1
    job.released.set()


def test_a_signal_that_follows_at_once_is_the_same_wish() -> None:
    job = Job(hears=False, pause_s=0)
    threading.Timer(2 * AGAIN_S, job.released.set).start()
    assert until_interrupted(job.work, job.ask) == "well"
    assert job.num_asked == 1


def test_an_error_of_the_work_comes_out_as_itself() -> None:
    with pytest.raises(ZeroDivisionError):
        until_interrupted(lambda: 1 // 0, lambda: None)


def test_in_a_thread_where_no_signal_arrives_the_work_is_simply_done() -> None:
    results: list[int] = []
    thread = threading.Thread(
        target=lambda: results.append(until_interrupted(lambda: 7, lambda: None))
    )
    thread.start()
    thread.join(10)
    assert results == [7]
