"""Ctrl-C and SIGTERM: the first asks a job to end well, the second ends it at once."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

__all__ = ["until_interrupted"]

LOOK_S = 0.2
AGAIN_S = 1.0
T = TypeVar("T")


def until_interrupted(work: Callable[[], T], ask: Callable[[], None]) -> T:
    """Do the work in a thread of its own while this one listens for signals.

    In the main thread Ray Train would take Ctrl-C for itself and abort.

    Args:
        work: what to do; its result comes back, or its exception is raised.
        ask: called once, at the first signal; the work is then expected to end by itself.

    Raises:
        KeyboardInterrupt: at a signal a second or more after the first; the work is left to the
            end of the process. What comes sooner is the same wish: ``timeout`` and some process
            managers signal a process and then its group.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, name="job", daemon=True)
    with _timed_signals() as signals:
        thread.start()
        asked = False
        while thread.is_alive():
            thread.join(LOOK_S)
            if signals and not asked:
                asked = True
                ask()
            if signals and signals[-1] - signals[0] >= AGAIN_S:
                raise KeyboardInterrupt
    if errors:
        raise errors[0]
    return results[0]


@contextlib.contextmanager
def _timed_signals() -> Iterator[list[float]]:
    """When SIGINT and SIGTERM came, in seconds; in a thread, where none arrive, it stays empty."""
    received: list[float] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before: dict[signal.Signals, Any] = {
        number: signal.signal(number, lambda *_: received.append(time.monotonic()))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
