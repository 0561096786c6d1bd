"""Which allocator Arrow takes its memory from: one that gives back what is free."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("first", ["index.search", "cluster.cli", "cluster.embed_work", "ui.app"])
@pytest.mark.parametrize("asked", [None, "mimalloc"])
def test_arrow_takes_memory_from_the_c_library_unless_told_otherwise(
    first: str, asked: str | None
) -> None:
    code = f"import {first}, pyarrow; print(pyarrow.default_memory_pool().backend_name)"
    named = {} if asked is None else {"ARROW_DEFAULT_MEMORY_POOL": asked}
    inherited = {k: v for k, v in os.environ.items() if k != "ARROW_DEFAULT_MEMORY_POOL"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**inherited, **named},
    )
    assert done.stdout.strip() == (asked or "system")
