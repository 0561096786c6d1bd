"""Metadata columns from one scan of a corpus to the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def listed(tmp_path: Path, make_png: Any) -> Path:
    for position in range(3):
        (tmp_path / f"{position}.png").write_bytes(make_png(position))
    path = tmp_path / "list.csv"
    path.write_text("path,n,empty\n0.png,5,\n1.png,6,\n")
    return path


def test_columns_are_published_though_every_cell_is_empty(listed: Path, scan_here: Any) -> None:
    _, before = scan_here(listed)
    _, catalog = scan_here(listed, columns="empty")
    assert catalog.rows([0])[0].metadata == {"empty": None}
    assert catalog.corpus_id != before.corpus_id  # so that who serves the corpus opens it anew


def test_a_scan_that_names_no_columns_keeps_those_there_are(listed: Path, scan_here: Any) -> None:
    scan_here(listed, columns="number=n:float")
    listed.write_text("path,n,empty\n0.png,5,\n1.png,7,\n2.png,8,\n")
    report, catalog = scan_here(listed)
    assert report["since_last_scan"]["unchanged"] == 1
    assert [row.metadata for row in catalog.rows([0, 1, 2])] == [
        {"number": 5.0},
        {"number": 7.0},
        {"number": 8.0},
    ]
    report, again = scan_here(listed)
    assert report["since_last_scan"]["unchanged"] == 3
    assert again.door["door_sha256"] == catalog.door["door_sha256"]


def test_exactly_the_columns_given_are_there_and_none_if_empty(
    listed: Path, scan_here: Any
) -> None:
    scan_here(listed, columns="n,empty")
    for columns, there in (("n", {"n": 5}), ("", {}), (None, {}), ("n", {"n": 5})):
        report, catalog = scan_here(listed, columns=columns)
        assert report["since_last_scan"]["unchanged"] == 2
        assert catalog.rows([0])[0].metadata == there
