"""How many pixels a process decodes at once, so that memory does not grow with its threads.

A picture just below the limit of pixels takes up to 0.8 GB while it is decoded, however small its
file is; in sixteen threads at once, that ends the process, and no picture is to blame.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

__all__ = ["DecodeRoom"]

PIXELS_AT_ONCE = 200_000_000
SMALL_PIXELS = 4_000_000


class DecodeRoom:
    """Pictures go in as long as their pixels fit; one that is larger than all of it goes in alone.

    Small ones neither wait nor count. A thread must not go in twice: it would wait for itself.

    Args:
        pixels: that may be inside at once.
        small: pictures of fewer pixels are small.
    """

    def __init__(self, pixels: int = PIXELS_AT_ONCE, small: int = SMALL_PIXELS) -> None:
        self._pixels, self._small = pixels, small
        self._inside = 0
        self._changed = threading.Condition()
        # Whoever waits for room keeps the next ones out, else these might pass it by for ever.
        self._next = threading.Lock()

    @contextlib.contextmanager
    def held(self, pixels: int) -> Iterator[None]:
        """Around the decoding of a picture of so many pixels."""
        if pixels < self._small:
            yield
            return
        with self._next, self._changed:
            self._changed.wait_for(
                lambda: not self._inside or self._inside + pixels <= self._pixels
            )
            self._inside += pixels
        try:
            yield
        finally:
            with self._changed:
                self._inside -= pixels
                self._changed.notify_all()
