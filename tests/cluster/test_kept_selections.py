"""Remembered filters take no more memory than they may."""

from __future__ import annotations

import numpy as np
import pytest

from cluster import kept_selections
from cluster.kept_selections import KeptSelections
from index.selection import Selection

IDS = np.arange(1000)


def selection(num_rows: int) -> Selection:
    return Selection(IDS, IDS[:num_rows])


def key(name: str) -> tuple[str, frozenset[str]]:
    return name, frozenset()


def test_what_is_kept_is_bounded_by_bytes_and_the_newest_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept_selections, "MAX_BYTES", 16 * 300)
    kept = KeptSelections()
    kept.keep(key("a"), selection(100))
    kept.keep(key("b"), selection(150))
    assert kept.get(key("a")) is not None, "and it is the one used last"
    kept.keep(key("c"), selection(200))
    assert [kept.get(key(name)) is not None for name in "abc"] == [True, False, True]
    large = selection(1000)
    kept.keep(key("d"), large)
    assert [kept.get(key(name)) for name in "abcd"] == [None, None, None, large]


def test_what_is_kept_is_bounded_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_selections, "MAX_SELECTIONS", 2)
    kept = KeptSelections()
    for name in "abc":
        kept.keep(key(name), selection(0))
    assert [kept.get(key(name)) is not None for name in "abc"] == [False, True, True]
