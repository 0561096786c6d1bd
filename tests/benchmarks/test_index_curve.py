"""The measuring that all indexes share, with an index that is a scan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks import measuring
from benchmarks.index_curves import PEERS
from benchmarks.peers.index_curve import kilobytes, point

SCRIPT = """
import os
from pathlib import Path
import numpy as np
from index_curve import run

def build(kind, folder, vectors, threads):
    np.save(folder / "copy.npy", vectors)
    return {"threads": threads, "kind": kind, "builder": os.getpid()}

def serve(kind, folder, k):
    rows = np.load(folder / "copy.npy")
    cores = len(os.sched_getaffinity(0))
    def every(step):
        print("asked for every", step)
        return lambda query: np.argsort(-(rows[::step] @ query[0]))[:k] * step
    def settings(*steps):
        return {f"every {step}, {cores} core": lambda step=step: every(step) for step in steps}
    return [settings(8, 2), settings(4, 1, 3, 5)]

if __name__ == "__main__":
    run(["scan"], build, serve)
"""


def test_recall_is_the_share_of_the_exact_answers() -> None:
    queries, truth = np.zeros((2, 4), np.float32), np.array([[0, 1], [2, 3]])
    found = point(lambda _: np.array([1, 2]), queries, truth)
    assert found["recall"] == 0.5
    assert found["queries_per_s"] > 0


def test_an_index_is_built_apart_and_searched_on_one_core(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((20_000, 64), np.float32)
    queries = rng.standard_normal((20, 64), np.float32)
    truth = np.argsort(-(queries @ vectors.T), axis=1)[:, :5]
    for name, array in {"vectors": vectors, "queries": queries, "truth": truth}.items():
        np.save(tmp_path / f"{name}.npy", array)
    script = tmp_path / "scan.py"
    script.write_text(SCRIPT)
    beside = Path(measuring.peer_script("index_curve")).parent
    given = ["scan", "--folder", str(tmp_path), "--k", "5", "--build-threads", "3"]
    ended = subprocess.run(
        [sys.executable, str(script), *given],
        env={**os.environ, "PYTHONPATH": str(beside)},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    measured = json.loads(ended.stdout.splitlines()[-1])
    assert (measured["kind"], measured["threads"], measured["vectors"]) == ("scan", 3, 20_000)
    curve = {one["setting"].partition(",")[0]: one["recall"] for one in measured["curve"]}
    assert measured["curve"][0]["setting"] == "every 8, 1 core"
    # What finds everything is the last of its curve; the pages of the greatest effort are read.
    assert list(curve) == ["every 8", "every 2", "every 4", "every 1"]
    assert [line for line in ended.stdout.splitlines() if line.startswith("asked")] == [
        f"asked for every {step}" for step in (8, 2, 4, 1, 5)
    ]
    assert curve["every 1"] == 1.0
    assert 0.2 < curve["every 2"] < 0.8
    # The copy of 4.9 MB; the vectors that were mapped to build are not in it.
    assert 4 < measured["grown_mb"] < 30
    assert 256 <= measured["disk_bytes_per_vector"] < 257


def test_peak_memory_is_of_this_program_and_not_of_who_started_it() -> None:
    hoard = np.ones(200 * 2**17)
    beside = Path(measuring.peer_script("index_curve")).parent
    code = "from index_curve import kilobytes; print(kilobytes('VmHWM'))"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=beside, capture_output=True, text=True, check=True
    )
    assert int(ended.stdout) < 150 * 2**10 < kilobytes("VmHWM")
    assert hoard.nbytes == 200 * 2**20


def test_every_peer_has_a_script_and_an_environment_of_pinned_packages() -> None:
    for _, environment, script in PEERS:
        assert Path(measuring.peer_script(script)).is_file()
        listed = (measuring.CHECKOUT / "benchmarks" / f"{environment}.txt").read_text()
        assert all("==" in line for line in listed.splitlines() if not line.startswith("#"))
