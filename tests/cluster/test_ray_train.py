"""What workers of Ray Train are given; what they do is tested where it is used."""

from __future__ import annotations

import io
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from cluster import ray_train
from cluster.context import Context
from cluster.ray_train import fit, kept_memory
from cluster.workspace import Workspace

# Ten times 60 MB in a thread, as a worker's loop is; prints the page faults of all but the first.
# For larger arrays NumPy asks for huge pages, which torch does not.
PROGRAM = """
import resource, threading
import numpy as np
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    for turn in range(10):
        if turn == 1:
            before = faults()
        arrays = [np.full(750_000, 1, dtype=np.float32) for _ in range(20)]
        del arrays
    print(faults() - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
PAGES = 60_000_000 // 4096


def page_faults(settings: dict[str, str]) -> int:
    """Of the program under these settings of glibc."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(not kept_memory(), reason="this C library has no such settings")
def test_a_worker_s_memory_is_kept_from_step_to_step() -> None:
    assert page_faults(kept_memory()) < PAGES // 10
    assert page_faults({}) > PAGES


@pytest.mark.parametrize("found", [("glibc", "2.31"), ("", ""), ("libc", "6")], ids=str)
def test_other_c_libraries_are_left_as_they_are(
    monkeypatch: pytest.MonkeyPatch, found: tuple[str, str]
) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: found)
    assert kept_memory() == {}


@pytest.mark.ray
def test_a_wish_to_stop_before_any_worker_trains_waits_for_none(
    tmp_path: Path, local_ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait_for_room(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(ray_train, "run_workers", wait_for_room)
    context = Context(Workspace.at(tmp_path), console=Console(file=io.StringIO()))
    plan: Any = SimpleNamespace(name="run")
    with pytest.raises(KeyboardInterrupt, match="before training began"):
        fit(plan, context, num_steps=1, max_failures=0)
