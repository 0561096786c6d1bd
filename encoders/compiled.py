"""Loops as machine code, for what torch does in too many passes over memory on a processor.

Source: numba, https://numba.pydata.org; docs/adr/0009 says when it is worth it.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import torch

__all__ = ["compiled", "in_threads"]

Function = TypeVar("Function", bound=Callable[..., Any])
SHARE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def compiled(function: Function) -> Function:
    """The function as machine code, kept on disk if there is a folder to keep it in.

    Compiled for the types of the first call, which takes seconds. No sum is reordered and bounds
    are not checked. What it calls has to stand in its own file: numba looks for changes nowhere
    else.
    """
    try:
        made: Any = numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # neither beside the file nor in the user's cache
        made = numba.njit(nogil=True, error_model="numpy")(function)
    return cast("Function", made)


def in_threads(work: Callable[[int, int], None], num: int, num_threads: int) -> None:
    """Do work on the items 0 to ``num`` - 1, each thread on a span of them: ``work(first, end)``.

    Spans change no result where an item's does not depend on the others'. The threads are those
    that torch's own operations run in, where they can be asked: threads of ours would compete for
    the cores with torch's, which spin for some milliseconds after each of its operations.
    """
    num_threads = min(num_threads, num)
    if num_threads <= 1:
        work(0, num)
        return
    ends = [num * part // num_threads for part in range(num_threads + 1)]
    team = _openmp()
    if team is None:
        list(_pool(num_threads, os.getpid()).map(work, ends, ends[1:]))
        return
    spans = itertools.pairwise(ends)  # threads may share it: the GIL is held in next()
    errors: list[BaseException] = []

    def share(_: int | None) -> None:
        try:
            for first, end in spans:
                work(first, end)
        except BaseException as error:  # noqa: BLE001 - ctypes would print it and go on
            errors.append(error)

    team(SHARE(share), None, num_threads, 0)
    if errors:
        raise errors[0]


@functools.cache
def _openmp() -> Callable[..., None] | None:
    """``GOMP_parallel`` of the OpenMP library that torch brings, if it does: GNU's, or alike.

    Runs a function once in each thread of a team, and returns when all have. The team of a calling
    thread is kept, and is the same for everyone who asks.

    Source: https://gcc.gnu.org/onlinedocs/libgomp/Implementing-PARALLEL-construct.html
    """
    for path in sorted(Path(torch.__file__).parent.glob("lib/libgomp*")):
        try:
            function = ctypes.CDLL(str(path)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        function.argtypes = [SHARE, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
        return cast("Callable[..., None]", function)
    return None


@functools.lru_cache(maxsize=4)
def _pool(num_threads: int, pid: int) -> ThreadPoolExecutor:  # noqa: ARG001 - a fork has none
    return ThreadPoolExecutor(num_threads, thread_name_prefix="compiled")
