"""Have the C library keep the memory of freed tensors for the next ones.

Otherwise each step hands its tensors back and asks the kernel for them anew, page by page. One
arena, since others can not keep blocks as large as tensors. Only of glibc from 2.35 on: older ones
refuse a threshold this high, and would be slower with the rest alone.
"""

from __future__ import annotations

import ctypes
import platform

__all__ = ["keep_memory", "kept_memory"]

KEEPING_GLIBC = (2, 35)
MMAP_THRESHOLD = 1 << 30
# Parameters of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8


def kept_memory() -> dict[str, str]:
    """Environment in which a process begins like that."""
    if not _can_keep():
        return {}
    return {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    }


def keep_memory() -> bool:
    """Make it so in this process from now on, best before it has threads; returns whether it is.

    For actors of Ray Data: with an environment of their own, Ray starts a process for each.
    """
    if not _can_keep():
        return False
    library = ctypes.CDLL(None)
    settings = {
        M_ARENA_MAX: 1,
        M_MMAP_THRESHOLD: MMAP_THRESHOLD,
        M_TRIM_THRESHOLD: (1 << 31) - 1,
    }
    return all(library.mallopt(name, value) for name, value in settings.items())


def _can_keep() -> bool:
    library, version = platform.libc_ver()
    return library == "glibc" and tuple(map(int, version.split("."))) >= KEEPING_GLIBC
