"""Members of tars that are no plain files: links and sparse files."""

from __future__ import annotations

import io
import logging
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from cluster import tar_members
from cluster.shards import read_picture


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(data))


def test_a_hard_link_is_the_picture_under_another_name(
    tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "a.png", make_png(0))
        add(tar, "a.cls", b"cat")
        add(tar, "b.png", make_png(1))
        add(tar, "b.cls", b"dog")
        add(tar, "c.png", type=tarfile.LNKTYPE, linkname="a.png")
        add(tar, "c.cls", type=tarfile.LNKTYPE, linkname="b.cls")
        add(tar, "d.png", type=tarfile.LNKTYPE, linkname="c.png")
        add(tar, "e.png", make_png(2))
    report, catalog = scan_here(tmp_path / "x.tar", labels="cls")
    assert report["pictures"] == {"total": 5, "ok": 5}
    found = {row.name: (row.label, read_picture(row).data) for row in catalog.by_uri()}
    assert found["c.png"] == ("dog", make_png(0))
    assert found["d.png"] == (None, make_png(0))
    assert found["e.png"] == (None, make_png(2))


def test_what_has_no_bytes_of_its_own_is_named_with_what_to_do(
    tmp_path: Path,
    scan_here: Any,
    make_png: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tar_members, "MAX_KEPT", 2)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for position in range(3):
            add(tar, f"{position}.png", make_png(position))
        add(tar, "2.cls", b"7")
        add(tar, "far.png", type=tarfile.LNKTYPE, linkname="0.png")
        add(tar, "near.png", type=tarfile.LNKTYPE, linkname="2.png")
        add(tar, "near.cls", type=tarfile.LNKTYPE, linkname="gone.cls")
        add(tar, "soft.png", type=tarfile.SYMTYPE, linkname="0.png")
        add(tar, "pipe.png", type=tarfile.FIFOTYPE)
        add(tar, "folder.png", type=tarfile.DIRTYPE)
    with caplog.at_level(logging.WARNING):
        report, catalog = scan_here(tmp_path / "x.tar", columns="cls:int")
    assert report["pictures"] == {"total": 7, "ok": 4, "unreadable": 3}
    errors = {row.name: row.error or "" for row in catalog.by_uri() if row.status != "ok"}
    assert "hard link to 0.png, which is none of the 2 files before it" in errors["far.png"]
    assert "--dereference" in errors["soft.png"]
    assert "pipe" in errors["pipe.png"]
    assert "near.cls: left out" in caplog.text
    report, _ = scan_here(tmp_path / "x.tar", columns="cls:int")
    assert report["since_last_scan"]["unchanged"] == 7


def test_a_sparse_picture_is_named(tmp_path: Path, scan_here: Any, make_png: Any) -> None:
    (tmp_path / "a.png").write_bytes(make_png(0))
    with (tmp_path / "b.png").open("wb") as file:
        file.write(make_png(1))
        file.truncate(1 << 20)
    subprocess.run(["tar", "-cSf", "x.tar", "a.png", "b.png"], cwd=tmp_path, check=True)
    _, catalog = scan_here(tmp_path / "x.tar")
    rows = {row.name: row for row in catalog.by_uri()}
    assert (rows["a.png"].status, rows["b.png"].status) == ("ok", "unreadable")
    assert "--sparse" in (rows["b.png"].error or "")
