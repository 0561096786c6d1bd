"""Filters that were asked before, and the pictures that they select: bounded by what these take."""

from __future__ import annotations

import threading
from collections import OrderedDict

from index.selection import Selection

__all__ = ["KeptSelections"]

MAX_SELECTIONS = 16
MAX_BYTES = 1 << 28
"""Of rows and ids of all that are kept. Searches of a version in layers derive twice as much."""

Key = tuple[str, frozenset[str]]
"""A filter, and the columns that it may not use."""


class KeptSelections:
    """The selections used last, of one catalog and one index version. Thread-safe."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Key, Selection] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> Selection | None:
        """What was kept under a key; None if nothing is."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def keep(self, key: Key, selection: Selection) -> None:
        """Keep one. The newest is kept however large it is: it is in memory at any rate."""
        with self._lock:
            self._kept[key] = selection
            self._kept.move_to_end(key)
            num_bytes = sum(each.num_bytes for each in self._kept.values())
            while len(self._kept) > 1 and (
                len(self._kept) > MAX_SELECTIONS or num_bytes > MAX_BYTES
            ):
                _, oldest = self._kept.popitem(last=False)
                num_bytes -= oldest.num_bytes
