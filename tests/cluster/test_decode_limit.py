"""A decoder that never ends costs its own picture alone, whether or not it holds Python's lock."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.decode_limit import DecodeLimit
from cluster.embed_job import EmbedConfig, embed
from cluster.fatal_pictures import find_fatal
from cluster.plan import ShardRow
from cluster.scan_job import ScanConfig, scan
from index.embeddings import EmbeddingStore

# libc's pause() never returns; called as PyDLL, Python's lock is held meanwhile.
HANGING = """
import ctypes, io, PIL.Image
opened = PIL.Image.open
def hanging(source, *arguments, **options):
    if isinstance(source, io.BytesIO) and source.getvalue().endswith(b"endless"):
        ctypes.{library}(None).pause()
    return opened(source, *arguments, **options)
PIL.Image.open = hanging
"""


def rows_in(folder: Path) -> list[ShardRow]:
    found = [(path, path.stat()) for path in sorted(folder.iterdir())]
    return [
        ShardRow(number, str(path), stat.st_size, stat.st_mtime_ns)
        for number, (path, stat) in enumerate(found)
    ]


def write(folder: Path, make_png: Any, **endings: bytes) -> Path:
    folder.mkdir()
    for number in range(6):
        path = folder / f"p{number}.png"
        path.write_bytes(make_png(number) + endings.get(path.stem, b""))
    return folder


@pytest.mark.parametrize("library", ["CDLL", "PyDLL"])
def test_a_process_whose_decoder_hangs_is_ended_whoever_holds_pythons_lock(library: str) -> None:
    program = f"""
        import ctypes, threading
        from cluster.decode_limit import DecodeLimit
        limit = DecodeLimit(1)
        def decode():
            with limit.watch():
                ctypes.{library}(None).pause()
        thread = threading.Thread(target=decode)
        thread.start()
        thread.join()
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    assert subprocess.run(command, check=False, timeout=30).returncode == -signal.SIGALRM


def test_what_is_not_decoding_takes_as_long_as_it_likes() -> None:
    program = """
        import time
        from cluster.decode_limit import DecodeLimit
        limit = DecodeLimit(1)
        for _ in range(3):
            with limit.watch(), limit.watch():
                time.sleep(0.5)
        time.sleep(1.5)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    assert subprocess.run(command, check=False, timeout=30).returncode == 0


def test_an_alarm_that_was_set_before_is_set_again() -> None:
    before = signal.setitimer(signal.ITIMER_REAL, 500, 7)
    try:
        with DecodeLimit(60).watch():
            assert signal.getitimer(signal.ITIMER_REAL)[0] == pytest.approx(60, abs=5)
        assert signal.getitimer(signal.ITIMER_REAL) == pytest.approx((500, 7), abs=5)
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)


@pytest.mark.parametrize("seconds", [0, -1, 1e9, float("nan")])
def test_a_limit_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="it has to be 1 to 86,400 seconds"):
        EmbedConfig(corpus="c", encoder="e", decode_limit_s=seconds)


@pytest.mark.parametrize("library", ["CDLL", "PyDLL"])
def test_each_picture_that_does_not_end_is_found(
    tmp_path: Path, make_png: Any, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    folder = write(tmp_path / "in", make_png, p2=b"endless", p5=b"endless")
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(HANGING.format(library=library))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "path"), *sys.path])
    assert find_fatal(rows_in(folder), 1) == {2, 5}


def test_waiting_for_a_disk_blames_no_picture(
    tmp_path: Path, make_png: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "in", make_png)
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(
        "import os, time\n"
        "opened = os.open\n"
        "def slow(path, *arguments, **options):\n"
        "    time.sleep(1.5 if str(path).endswith('p3.png') else 0)\n"
        "    return opened(path, *arguments, **options)\n"
        "os.open = slow\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path / "path"), *sys.path])
    started_s = time.monotonic()
    assert find_fatal(rows_in(folder), 1) == frozenset()
    assert time.monotonic() - started_s > 1.5


@pytest.mark.ray
def test_jobs_go_on_without_a_real_picture_that_takes_for_ever(
    tmp_path: Path, make_png: Any, endless_jpeg: bytes, library: Any, local_ray: Any
) -> None:
    folder = write(tmp_path / "in", make_png)
    (folder / "p3.jpg").write_bytes(endless_jpeg)
    scan(ScanConfig(source=str(folder), corpus="endless"), library.context)
    config = EmbedConfig(corpus="endless", encoder="tiny", decode_limit_s=3)
    report = embed(config, library.context)
    assert report["pictures"] == {"ok": 6, "crashed": 1}
    (bad,) = report["bad_pictures"]
    assert (Path(bad["file"]).name, bad["status"]) == ("p3.jpg", "crashed")
    store = EmbeddingStore.open(library.folder("embeddings", "endless-tiny"))
    assert store.num_rows == 6
