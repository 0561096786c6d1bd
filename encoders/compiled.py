"""Loops as machine code, for what torch does in too many passes over memory on a processor.

Source: numba, https://numba.pydata.org; docs/adr/0009 says when it is worth it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import numba
import numpy as np

__all__ = ["compiled", "in_threads"]

Function = TypeVar("Function", bound=Callable[..., Any])


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

    Spans change no result where an item's does not depend on the others'.
    """
    num_threads = min(num_threads, num)
    if num_threads <= 1:
        work(0, num)
        return
    ends = np.linspace(0, num, num_threads + 1).astype(int).tolist()
    list(_pool(num_threads, os.getpid()).map(work, ends, ends[1:]))


@functools.lru_cache(maxsize=4)
def _pool(num_threads: int, pid: int) -> ThreadPoolExecutor:  # noqa: ARG001 - a fork has none
    return ThreadPoolExecutor(num_threads, thread_name_prefix="compiled")
