"""Metadata columns from one scan of a corpus to the next."""

from __future__ import annotations

import io
import json
import tarfile
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


def test_a_list_that_lost_a_column_says_how_to_scan_without_it(
    listed: Path, scan_here: Any
) -> None:
    scan_here(listed, columns="n,empty")
    listed.write_text("path,empty\n0.png,\n")
    with pytest.raises(ValueError, match=r"column 'n': not there.* --columns \"\" is for none"):
        scan_here(listed)
    _, catalog = scan_here(listed, columns="", allow_vanished=True)
    assert catalog.rows([0])[0].metadata == {}


def test_exactly_the_columns_given_are_there_and_none_if_empty(
    listed: Path, scan_here: Any
) -> None:
    scan_here(listed, columns="n,empty")
    for columns, there in (("n", {"n": 5}), ("", {}), (None, {}), ("n", {"n": 5})):
        report, catalog = scan_here(listed, columns=columns)
        assert report["since_last_scan"]["unchanged"] == 2
        assert catalog.rows([0])[0].metadata == there


def test_whole_numbers_that_are_too_long_for_integers_stay_apart(
    listed: Path, scan_here: Any
) -> None:
    codes = ["12345678901234567890", "12345678901234567891"]
    rows = f"0.png,{codes[0]},1e30\n1.png,{codes[1]},{10**20}\n2.png,,\n"
    listed.write_text(f"path,code,volume\n{rows}")
    _, catalog = scan_here(listed, columns="code,volume")
    assert catalog.table["code"].to_pylist() == [*codes, None]
    assert catalog.table["volume"].to_pylist() == [1e30, 1e20, None]


def test_long_numbers_of_a_tar_stay_apart(tmp_path: Path, scan_here: Any, make_png: Any) -> None:
    codes = [12345678901234567890, 12345678901234567891]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for position, code in enumerate(codes):
            for ending, data in (
                ("png", make_png(position)),
                ("json", json.dumps({"code": code}).encode()),
            ):
                member = tarfile.TarInfo(f"{position}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    _, catalog = scan_here(tmp_path / "x.tar", columns="code")
    assert catalog.table["code"].to_pylist() == [str(code) for code in codes]
