"""A picture whose decoder dies by a signal costs itself alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.fatal_pictures import DONE, _decode_elsewhere, find_fatal
from cluster.plan import ShardRow
from cluster.scan_job import ScanConfig, scan
from cluster.where import CHECKOUT
from index.embeddings import EmbeddingStore

# Every Python that starts with this on its path has a decoder that dies of one kind of picture,
# Ray's workers and their children included. A scan reads headers from open files, and survives.
FRAGILE = """
import io, os, PIL.Image
opened = PIL.Image.open
def fragile(source, *arguments, **options):
    if isinstance(source, io.BytesIO) and source.getvalue().endswith(b"deadly"):
        os.kill(os.getpid(), {signal}) if {signal} else os._exit(0)
    return opened(source, *arguments, **options)
PIL.Image.open = fragile
"""


def make_fragile(folder: Path, signal: int = 9) -> dict[str, str]:
    """The environment of such a Python."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(FRAGILE.format(signal=signal))
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(CHECKOUT)])}


def write(folder: Path, make_png: Any, num: int, deadly: set[int]) -> list[ShardRow]:
    folder.mkdir()
    rows = []
    for number in range(num):
        path = folder / f"{number:03d}.png"
        path.write_bytes(make_png(number) + (b"deadly" if number in deadly else b""))
        found = path.stat()
        rows.append(ShardRow(number, str(path), found.st_size, found.st_mtime_ns))
    return rows


@pytest.mark.parametrize("signal", [9, 0])
def test_each_picture_that_ends_its_process_is_found(
    tmp_path: Path, make_png: Any, monkeypatch: pytest.MonkeyPatch, signal: int
) -> None:
    rows = write(tmp_path / "in", make_png, 6, {3, 5})
    path = make_fragile(tmp_path / "path", signal)["PYTHONPATH"].split(os.pathsep)
    monkeypatch.setattr(sys, "path", [path[0], *sys.path])
    assert find_fatal(rows) == {3, 5}


def test_sound_pictures_are_not_blamed(tmp_path: Path, make_png: Any) -> None:
    rows = write(tmp_path / "in", make_png, 5, set())
    (tmp_path / "in" / "001.png").write_bytes(b"words")
    (tmp_path / "in" / "002.png").unlink()
    assert find_fatal(rows) == frozenset()


# Its first decoding of one picture is killed from outside, as by a kernel that is short of memory.
UNLUCKY = """
import io, os, pathlib, PIL.Image
opened = PIL.Image.open
mark = pathlib.Path({mark!r})
def unlucky(source, *arguments, **options):
    if isinstance(source, io.BytesIO) and source.getvalue().endswith(b"deadly") and mark.exists():
        mark.unlink()
        os.kill(os.getpid(), 9)
    return opened(source, *arguments, **options)
PIL.Image.open = unlucky
"""


def test_a_picture_is_not_blamed_for_a_death_that_does_not_come_again(
    tmp_path: Path, make_png: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write(tmp_path / "in", make_png, 4, {2})
    mark = tmp_path / "mark"
    mark.touch()
    (tmp_path / "sitecustomize.py").write_text(UNLUCKY.format(mark=str(mark)))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert find_fatal(rows) == frozenset()
    assert not mark.exists()


def test_pictures_are_looked_at_by_our_own_code_wherever_the_job_runs(
    tmp_path: Path, make_png: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write(tmp_path / "in", make_png, 2, set())
    (tmp_path / "cluster.py").write_text("print('of somebody else')\n")
    (tmp_path / "encoders.py").write_text("print('of somebody else')\n")
    monkeypatch.chdir(tmp_path)
    assert find_fatal(rows) == frozenset()
    assert _decode_elsewhere(rows, 60.0) == (["0", "1", DONE], 0)


def test_a_child_that_says_something_else_blames_no_picture(
    tmp_path: Path, make_png: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    rows = write(tmp_path / "in", make_png, 3, {1})
    fragile = make_fragile(tmp_path / "path")["PYTHONPATH"].split(os.pathsep)[0]
    with (tmp_path / "path" / "sitecustomize.py").open("a") as chatty:
        chatty.write("print('welcome')\n")
    monkeypatch.setattr(sys, "path", [fragile, *sys.path])
    assert find_fatal(rows) == frozenset()
    assert "cannot tell which picture is to blame" in caplog.text


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_goes_on_without_the_pictures_that_kill_its_workers(
    tmp_path: Path, make_png: Any, make_encoder: Any, library: Any
) -> None:
    write(tmp_path / "in", make_png, 20, {2, 13})
    source = ScanConfig(source=str(tmp_path / "in"), corpus="risky")
    scan(source, library.context)
    environment = {**os.environ, **make_fragile(tmp_path / "path")}

    def embed(name: str, *, fragile: bool, more: str = "") -> dict[str, Any]:
        line = f"embed --corpus risky --encoder tiny --shard-rows 8 --json --name {name} {more}"
        done = subprocess.run(
            [sys.executable, "-m", "cluster", *line.split(), "--workspace", library.location],
            cwd=CHECKOUT,
            capture_output=True,
            check=True,
            env=environment if fragile else None,
        )
        return dict(json.loads(done.stdout))

    report = embed("set", fragile=True)
    assert report["pictures"] == {"ok": 18, "crashed": 2}
    assert [(Path(bad["file"]).name, bad["status"]) for bad in report["bad_pictures"]] == [
        ("002.png", "crashed"),
        ("013.png", "crashed"),
    ]
    kept = vectors(library, "set")
    assert embed("set", fragile=False, more="--retry-failed")["pictures"] == {"ok": 20}
    whole = vectors(library, "set")
    assert kept == {number: whole[number] for number in whole if number not in (2, 13)}


def vectors(library: Any, name: str) -> dict[int, bytes]:
    store = EmbeddingStore.open(library.folder("embeddings", name))
    return {
        int(number): np.asarray(vector).tobytes()
        for ids, batch in store.iter_stored()
        for number, vector in zip(ids, batch, strict=True)
    }
