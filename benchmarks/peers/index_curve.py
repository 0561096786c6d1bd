"""One index: built by one process, searched by another on one core, its memory read from Linux.

Vectors, queries and the ids of their exact answers come from files; vectors stay mapped, and
who searches never opens them. Prints one JSON line.

Shapes: N vectors, D dimensions, k results.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["EFFORTS", "Search", "Served", "curve", "kilobytes", "point", "run"]

EFFORTS = (
    *(1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64),
    *(80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512),
)  # fmt: skip
WARM_UP = 50
ENOUGH = 0.995
"""Recall from which on more effort is only slower; no table asks for more than 0.99."""

# From one query, of shape 1 x D, to the ids of its k best.
Search = Callable[[np.ndarray], Sequence[int]]
# Settings by name and rising effort, and the search that each makes; a mapping for each curve.
Served = Sequence[Mapping[str, Callable[[], Search]]]
# Of kind, folder to fill, vectors and threads; returns what else is to be kept of it.
Build = Callable[[str, Path, np.ndarray, int], dict[str, Any]]
# Of kind, the folder that was filled, and k.
Serve = Callable[[str, Path, int], Served]


def run(kinds: Sequence[str], build: Build, serve: Serve, reopened: Sequence[str] = ()) -> None:
    """Read the command line, build, search at every setting, and print what was measured.

    Args:
        kinds: that the script knows.
        build: fills a folder.
        serve: opens it.
        reopened: kinds that every setting opens anew: their memory is that at the first.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=list(kinds))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--k", type=int, required=True)
    parser.add_argument("--build-threads", type=int, required=True)
    asked = parser.parse_args()
    queries, truth = (np.load(asked.folder / f"{name}.npy") for name in ("queries", "truth"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Apart: freed memory does not all go back; a fresh process shows what serving takes.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            vectors = asked.folder / "vectors.npy"
            measured = pool.submit(
                timed_build, build, asked.kind, folder, vectors, asked.build_threads
            ).result()
        keep_to_one_core()
        before_kb = kilobytes("VmRSS")
        points: list[dict[str, Any]] = []
        for settings in serve(asked.kind, folder, asked.k):
            for measured_point in curve(settings, queries, truth):
                points.append(measured_point)
                if asked.kind not in reopened or "grown_mb" not in measured:
                    measured["grown_mb"] = (kilobytes("VmRSS") - before_kb) / 2**10
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        measured.setdefault("disk_bytes_per_vector", size / measured["vectors"])
    print(json.dumps({**measured, "curve": points}))


def timed_build(build: Build, kind: str, folder: Path, file: Path, threads: int) -> dict[str, Any]:
    """Build from a file of vectors: seconds, peak memory, and what the builder says of it."""
    # Copy-on-write, since some libraries take no array that is read-only.
    vectors = np.asarray(np.load(file, mmap_mode="c"))
    start = time.perf_counter()
    notes = build(kind, folder, vectors, threads)
    seconds = time.perf_counter() - start
    # Of this image alone: the kernel's ru_maxrss begins at the peak of whoever started it.
    peak_mb = kilobytes("VmHWM") / 2**10
    return {"vectors": len(vectors), "build_s": seconds, "peak_mb": peak_mb, **notes}


def curve(
    settings: Mapping[str, Callable[[], Search]], queries: np.ndarray, truth: np.ndarray
) -> Iterator[dict[str, Any]]:
    """A point for each setting, until one finds as good as all.

    Pages that greater effort would have read are read all the same, so that memory is that of the
    whole index whatever was enough.
    """
    remaining = iter(settings.items())
    for setting, prepare in remaining:
        measured = {"setting": setting, **point(prepare(), queries, truth)}
        if measured["recall"] >= ENOUGH:
            for _, greatest in [*remaining][-1:]:
                warm_up(greatest(), queries)
        yield measured


def warm_up(search: Search, queries: np.ndarray) -> None:
    for query in queries[:WARM_UP]:
        search(query[None])


def point(search: Search, queries: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Recall and queries a second, one query at a time."""
    warm_up(search, queries)
    start = time.perf_counter()
    answers = [search(query[None]) for query in queries]
    seconds = time.perf_counter() - start
    hits = [
        len(set(map(int, ids)) & set(map(int, exact)))
        for ids, exact in zip(answers, truth, strict=True)
    ]
    recall = float(np.mean(hits)) / truth.shape[1]
    return {"recall": recall, "queries_per_s": len(queries) / seconds}


def keep_to_one_core() -> None:
    """Every thread of this process, and those that it will start, share one core from now on."""
    core = min(os.sched_getaffinity(0))
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread.name), {core})


def kilobytes(key: str) -> int:
    """A line of ``/proc/self/status``, such as ``VmHWM`` or ``VmRSS``."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0])
    raise LookupError(f"/proc/self/status: no line {key}; only Linux's figures are understood.")
