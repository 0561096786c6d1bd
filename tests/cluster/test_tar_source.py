"""Tars as WebDataset makes them."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cluster import catalog_writer, tar_source
from cluster.catalog import Catalog
from cluster.catalog_writer import CatalogWriter
from cluster.picture_uri import PictureUri, place_of
from cluster.shards import read_picture
from cluster.sources import Request


def write_tar(path: Path, members: dict[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def contents(catalog: Catalog) -> dict[str, bytes]:
    return {row.name: read_picture(row).data for row in catalog.by_uri()}


def tally(**counts: int) -> dict[str, int]:
    names = ("new", "changed", "returned", "unchanged", "vanished")
    return {**dict.fromkeys(names, 0), **counts}


@pytest.fixture
def members(make_png: Any) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    for i in range(5):
        key = f"x/ä{i}"
        found[f"{key}.png"] = make_png(i)
        found[f"{key}.cls"] = str(i % 2)
        found[f"{key}.json"] = f'{{"n": {i}, "score": {i / 2 if i else 0}, "who": "w{i}"}}'
        found[f"{key}.txt"] = f"a caption, {i}\n"
    return found


def test_members_are_pictures_and_what_lies_beside_them_is_metadata(
    tmp_path: Path, scan_here: Any, members: dict[str, bytes | str]
) -> None:
    write_tar(tmp_path / "in" / "0.tar", members)
    report, catalog = scan_here(
        tmp_path / "in", labels="cls", columns="n,score,caption=txt,when=who:timestamp"
    )
    assert (report["source_kind"], report["pictures"]["ok"]) == ("tar", 5)
    assert contents(catalog) == {
        name[2:]: data for name, data in members.items() if name.endswith(".png")
    }
    row = catalog.rows([3])[0]
    assert row.label == "1"
    assert row.metadata == {"n": 3, "score": 1.5, "caption": "a caption, 3", "when": None}
    assert catalog.table.schema.field("score").type == "float64"


def test_a_picture_is_one_piece_of_its_tar(
    tmp_path: Path, scan_here: Any, members: dict[str, bytes | str]
) -> None:
    path = write_tar(tmp_path / "a b.tar", members)
    _, catalog = scan_here(path)
    place = PictureUri.parse(catalog.rows([2])[0].uri)
    whole = path.read_bytes()
    assert whole[place.start : place.start + place.size] == members["x/ä2.png"]


def test_a_tar_of_folders_gives_labels_by_folder(
    tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    path = write_tar(tmp_path / "a.tar", {"cat/1.png": make_png(1), "d/dog/2.png": make_png(2)})
    _, catalog = scan_here(path, labels="folder")
    assert catalog.table["label"].to_pylist() == ["cat", "dog"]


def test_a_tar_that_was_written_anew_keeps_ids_by_name_and_content(
    tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    path = write_tar(tmp_path / "a.tar", {f"{i}.png": make_png(i) for i in range(4)})
    _, before = scan_here(path)
    os.utime(path, ns=(1, 1))
    write_tar(
        path,
        {"new.png": make_png(9), "2.png": make_png(2), "1.png": make_png(8), "0.png": make_png(0)},
    )
    assert read_picture(before.rows([0])[0]).status == "changed"
    report, after = scan_here(path)
    assert report["since_last_scan"] == tally(new=1, changed=1, unchanged=2, vanished=1)
    ids = {row.name: row.id for row in after.by_uri()}
    assert (ids["0.png"], ids["2.png"]) == (0, 2)
    assert contents(after)["1.png"] == make_png(8)
    assert {row.name: read_picture(row).status for row in after.by_uri()} == dict.fromkeys(
        ids, "ok"
    )


def test_a_tar_that_is_cut_short_keeps_what_is_known_of_it(
    tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    path = write_tar(tmp_path / "a.tar", {f"{i}.png": make_png(i) for i in range(4)})
    whole = path.read_bytes()
    scan_here(path)
    third = PictureUri.parse(scan_here(path)[1].rows([2])[0].uri)
    for end in (third.start + 20, third.start - 200, third.start - 512):
        path.write_bytes(whole[:end])
        report, catalog = scan_here(path)
        assert report["skipped_folders"] == [str(path)]
        assert report["since_last_scan"] == tally(unchanged=2)
        assert catalog.counts() == {"ok": 4}
    path.write_bytes(whole)
    assert scan_here(path)[0]["since_last_scan"] == tally(unchanged=4)


def test_a_column_that_no_sample_has_is_refused_with_those_there_are(
    tmp_path: Path, scan_here: Any, members: dict[str, bytes | str]
) -> None:
    path = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(ValueError, match=r"'colour'.*cls, n, score, txt, who"):
        scan_here(path, columns="colour")


def test_broken_members_and_odd_names_stop_nothing(
    tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    odd = {
        "./a#b&c=d.png": make_png(0),
        "x/100%.png": make_png(1),
        "broken.png": b"words",
        "empty.png": b"",
        "broken.json": "{",
        "._hidden.png": b"",
        "notes.md": "not looked at",
    }
    _, catalog = scan_here(write_tar(tmp_path / "a.tar", odd))
    found = {row.name: row.status for row in catalog.rows(np.arange(4))}
    assert found == {
        "a#b&c=d.png": "ok",
        "100%.png": "ok",
        "broken.png": "unreadable",
        "empty.png": "empty",
    }
    assert contents(catalog)["a#b&c=d.png"] == make_png(0)


@pytest.mark.parametrize("labels", ["none", "cls"])
def test_files_beside_pictures_are_read_where_they_are_asked_for_and_named_once(
    labels: str, tmp_path: Path, scan_here: Any, make_png: Any, caplog: pytest.LogCaptureFixture
) -> None:
    beside: dict[str, bytes | str] = {}
    for i in range(4):
        beside[f"{i}.png"] = make_png(i)
        beside[f"{i}.npy"] = b"\x93NUMPY"
        beside[f"{i}.cls"] = b"\xff" if i % 2 else "dog"
    write_tar(tmp_path / "in" / "0.tar", beside)
    report, catalog = scan_here(tmp_path / "in", labels=labels)
    assert report["pictures"]["ok"] == 4
    if labels == "none":
        assert not caplog.messages
        return
    assert catalog.table["label"].to_pylist() == ["dog", None, "dog", None]
    (said,) = caplog.messages
    assert said.startswith("1.cls: left out, it cannot be read ('utf-8'")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_member_whose_name_is_not_utf8_is_read_under_a_printable_one(
    form: int, tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=form) as tar:
        for number, name in enumerate((b"x/caf\xe9.png", b"x/caf\xe9.cls", b"x/th\xe9.png")):
            data = make_png(number) if name.endswith(b"png") else b"cup"
            info = tarfile.TarInfo(os.fsdecode(name))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    report, catalog = scan_here(path, labels="cls")
    assert report["pictures"] == {"total": 2, "ok": 2}
    assert contents(catalog) == {"caf\\xe9.png": make_png(0), "th\\xe9.png": make_png(2)}
    assert catalog.table["label"].to_pylist() == ["cup", None]


def test_values_that_no_column_can_hold_are_left_empty(
    tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    odd = ['{"n": 1, "who": "ann"}', f'{{"n": {2**63}}}', f'{{"n": {-(2**63)}}}']
    odd += ['{"n": 4.9, "who": "half \\ud83d"}', "[" * 200_000]
    members: dict[str, bytes | str] = {}
    for number, sidecar in enumerate(odd):
        members |= {f"{number}.png": make_png(number), f"{number}.json": sidecar}
    path = write_tar(tmp_path / "a.tar", members)
    report, catalog = scan_here(path, labels="who", columns="n:int,again=who")
    assert report["pictures"] == {"total": 5, "ok": 5}
    assert catalog.table["n"].to_pylist() == [1, None, -(2**63), None, None]
    assert catalog.table["label"].to_pylist() == ["ann", None, None, None, None]
    assert catalog.table["again"].to_pylist() == ["ann", None, None, None, None]


def test_a_tar_of_numbered_frames_is_never_held_whole(
    tmp_path: Path, scan_here: Any, make_png: Any, caplog: pytest.LogCaptureFixture
) -> None:
    frames: dict[str, bytes | str] = {"frame.cls": "film"}
    frames |= {f"frame.{number:06}.png": make_png(number) for number in range(150)}
    path = write_tar(tmp_path / "a.tar", frames | {"other.png": make_png(999), "other.cls": "end"})
    report, catalog = scan_here(path, labels="cls")
    assert report["pictures"] == {"total": 151, "ok": 151}
    assert catalog.table["label"].to_pylist() == ["film"] * 150 + ["end"]
    (said,) = caplog.messages
    assert "64 files" in said
    assert "frame" in said
    _, again = scan_here(path, labels="cls")
    assert again.door == catalog.door


@pytest.mark.parametrize(
    ("labels", "held_bytes", "most"), [("none", 1 << 30, 1), ("cls", 1 << 30, 63), ("cls", 500, 3)]
)
def test_a_sample_gives_its_pictures_before_it_holds_too_many(
    labels: str, held_bytes: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames: dict[str, bytes | str] = {f"frame.{number:06}.png": b"x" * 200 for number in range(200)}
    path = write_tar(tmp_path / "a.tar", {"frame.cls": "film"} | frames)
    monkeypatch.setattr(tar_source, "MAX_HELD_BYTES", held_bytes)
    taken: list[str] = []
    extract = tarfile.TarFile.extractfile

    def noted(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
        taken.append(member.name)
        return extract(tar, member)

    source = tar_source.TarSource(Request(place_of(str(path)), labels, ()))
    monkeypatch.setattr(tarfile.TarFile, "extractfile", noted)
    ledger = SimpleNamespace(is_unchanged=lambda _: False, has_read=lambda _: None)
    listed = source.listed(ledger)
    next(listed)
    assert len([name for name in taken if name.endswith("png")]) == most
    listed.close()  # type: ignore[attr-defined]


def test_types_are_told_from_the_first_samples_that_can_be_read(
    tmp_path: Path, scan_here: Any, make_png: Any, members: dict[str, bytes | str]
) -> None:
    folder = tmp_path / "in"
    write_tar(folder / "0.tar", {})
    (folder / "1.tar").write_bytes(b"")
    (folder / "2.tar").write_bytes(b"no tar" * 1000)
    write_tar(folder / "3.tar", {"x/few.png": make_png(7), "x/few.json": '{"n": 7}'})
    write_tar(folder / "4.tar", members)
    report, catalog = scan_here(folder, columns="n,score")
    assert report["pictures"] == {"total": 6, "ok": 6}
    assert catalog.table.schema.field("n").type == "int64"
    assert catalog.table.schema.field("score").type == "float64"
    assert report["num_skipped_folders"] == 2


def test_tars_of_which_none_can_be_read_are_named_with_the_reason(
    tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    path = tmp_path / "in" / "1.tar"
    path.parent.mkdir()
    path.write_bytes(b"")
    for columns in ("", "n"):
        with pytest.raises(ValueError, match=r"/in/1\.tar.*empty file"):
            scan_here(tmp_path / "in", columns=columns)


def test_a_member_of_more_bytes_than_a_picture_has_is_not_read(
    tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    path = write_tar(tmp_path / "a.tar", {"0.png": make_png(0)})
    small = path.read_bytes().rstrip(b"\0")
    huge = tarfile.TarInfo("1.png")
    huge.size = (1 << 30) + 1
    with path.open("wb") as file:
        file.write(small + bytes(-len(small) % 512) + huge.tobuf())
        file.seek(huge.size + -huge.size % 512, os.SEEK_CUR)
        file.write(bytes(1024))
    before = tracemalloc.is_tracing()
    tracemalloc.start()
    report, catalog = scan_here(path)
    peak = tracemalloc.get_traced_memory()[1]
    if not before:
        tracemalloc.stop()
    assert report["skipped_folders"] == []
    rows = catalog.rows([0, 1])
    assert [row.status for row in rows] == ["ok", "too_large"]
    assert rows[1].bytes == huge.size
    assert peak < 100 << 20
    assert scan_here(path)[0]["since_last_scan"] == tally(unchanged=2)


@pytest.mark.parametrize("name", ["1.tgz", "1.tar.gz", "1.TAR.ZST"])
def test_compressed_tars_are_named_and_what_to_do(
    name: str, tmp_path: Path, scan_here: Any, members: dict[str, bytes | str]
) -> None:
    packed = tmp_path / "in" / name
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(write_tar(tmp_path / "1.tar", members).read_bytes()))
    for source in (packed, packed.parent):
        with pytest.raises(ValueError, match=rf"{name}.*compressed tar.*Unpack it"):
            scan_here(source)
    write_tar(packed.parent / "0.tar", members)
    (packed.parent / "notes.gz").write_bytes(b"")
    report, _ = scan_here(packed.parent)
    assert report["pictures"] == {"total": 5, "ok": 5}
    assert report["skipped_folders"] == [str(packed)]


def test_a_folder_of_pictures_stays_one_with_a_compressed_tar_in_it(
    tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    for number in range(3):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{number}.png").write_bytes(make_png(number))
    (tmp_path / "in" / "backup.tar.gz").write_bytes(b"")
    (tmp_path / "in" / "notes.gz").write_bytes(b"")
    report, _ = scan_here(tmp_path / "in")
    assert report["source_kind"] == "folder"
    assert report["pictures"]["total"] == 3


@pytest.mark.timeout(60)
def test_a_pipe_called_a_tar_is_skipped_and_not_waited_for(
    tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    write_tar(tmp_path / "in" / "1.tar", {"a.png": make_png(0), "a.cls": "3"})
    os.mkfifo(tmp_path / "in" / "0.tar")
    report, _ = scan_here(tmp_path / "in", columns="cls")
    assert report["pictures"] == {"total": 1, "ok": 1}
    assert report["skipped_folders"] == [str(tmp_path / "in" / "0.tar")]


def test_a_filter_on_names_finds_members_of_tars(
    tmp_path: Path, scan_here: Any, make_png: Any
) -> None:
    pictures = {"a b.png": make_png(0), "x/c.png": make_png(1)}
    _, catalog = scan_here(write_tar(tmp_path / "1.tar", {**pictures}))
    assert catalog.named["name"].to_pylist() == ["a b.png", "c.png"]


def test_a_tar_is_read_again_where_a_killed_scan_saw_it_as_it_is_no_more(
    tmp_path: Path, scan_here: Any, make_png: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tar(tmp_path / "in" / "0.tar", {f"{i}.png": make_png(i) for i in range(3)})
    os.utime(path, ns=(0, 10**18))
    _, before = scan_here(path.parent)
    data = path.read_bytes()
    write_tar(path, {f"{i}.png": make_png(i + 3) for i in range(3)})
    with monkeypatch.context() as patch:
        patch.setattr(catalog_writer, "DRAFT_ROWS", 1)
        patch.setattr(CatalogWriter, "publish", None)
        with pytest.raises(TypeError):
            scan_here(path.parent)
    path.write_bytes(data)
    os.utime(path, ns=(0, 10**18))
    _, after = scan_here(path.parent)
    assert contents(after) == contents(before) == {f"{i}.png": make_png(i) for i in range(3)}
