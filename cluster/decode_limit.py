"""A limit to the time that a decoder may take: an endless loop ends its process.

A decoder that loops inside C code may hold Python's lock for ever, and then no thread of the
process can notice. So the limit is a timer of the kernel's, whose signal nobody handles: it ends
the process from outside, as a crash would, and what finds pictures that crash their decoder
(`cluster.fatal_pictures`) finds this one.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

__all__ = ["DECODE_LIMIT_S", "DecodeLimit", "check_decode_limit"]

DECODE_LIMIT_S = 120.0
"""A hundred times what the largest JPEG that is allowed takes on an idle core, about a second."""


def check_decode_limit(seconds: float) -> None:
    """``ValueError`` unless it is a time that a decoder may take."""
    if not 1 <= seconds <= 86_400:
        raise ValueError(
            f"decode_limit_s is {seconds}; it has to be 1 to 86,400 seconds. 120 leaves the "
            "largest pictures time on a busy machine, and costs as long for one that never ends."
        )


class DecodeLimit:
    """Ends this process when no decoder in it begins or ends a picture for so long.

    Wall time, and of decoding alone: a disk or a bucket that does not answer is waited for. Threads
    share the limit, so one that hangs is noticed once the others run out of pictures.

    Args:
        seconds: how long.
    """

    def __init__(self, seconds: float = DECODE_LIMIT_S) -> None:
        check_decode_limit(seconds)
        self.seconds = seconds
        self._lock = threading.Lock()
        self._inside = 0
        self._before = (0.0, 0.0)

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Around the decoding of one picture."""
        with self._lock:
            before = signal.setitimer(signal.ITIMER_REAL, self.seconds)
            if not self._inside:
                self._before = before
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                rest = (self.seconds, 0.0) if self._inside else self._before
                signal.setitimer(signal.ITIMER_REAL, *rest)
