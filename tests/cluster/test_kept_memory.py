"""Memory of tensors that is kept from step to step."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from cluster.kept_memory import keep_memory, kept_memory
from cluster.where import CHECKOUT

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


def page_faults(settings: dict[str, str], program: str = PROGRAM) -> int:
    """Of the program under these settings of glibc."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=CHECKOUT,
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


@pytest.mark.skipif(not kept_memory(), reason="this C library has no such settings")
def test_a_process_that_runs_already_keeps_it_too() -> None:
    first = "from cluster.kept_memory import keep_memory\nassert keep_memory()\n"
    assert page_faults({}, first + PROGRAM) < PAGES // 10


@pytest.mark.parametrize("found", [("glibc", "2.31"), ("", ""), ("libc", "6")], ids=str)
def test_other_c_libraries_are_left_as_they_are(
    monkeypatch: pytest.MonkeyPatch, found: tuple[str, str]
) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: found)
    assert kept_memory() == {}
    assert not keep_memory()
