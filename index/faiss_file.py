"""FAISS's files: read, memory-mapped, written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss

__all__ = ["emptied", "read_faiss", "write_faiss"]

NEVER_MAPPED = (b"IwPf",)
"""First bytes of files with 4-bit codes, which are copied: mapped, they would count twice."""

WRITE_BYTES = 1 << 20


def read_faiss(path: Path, *, mapped: bool = False) -> Any:
    """A FAISS index; ``mapped`` leaves on disk what its kind allows, and allows no changes."""
    with path.open("rb") as file:
        mapped = mapped and file.read(4) not in NEVER_MAPPED
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    except RuntimeError as error:
        raise ValueError(f"{path}: not a FAISS index. Build the index again.") from error


def write_faiss(faiss_index: Any, path: str) -> None:
    """Write a FAISS index.

    Raises:
        OSError: the disk would not take it, all of it.
    """
    try:
        # FAISS's own writer does not look whether its last bytes, in a buffer, reach the disk.
        with Path(path).open("wb") as file:
            writer = faiss.PyCallbackIOWriter(file.write, WRITE_BYTES)  # type: ignore[attr-defined]
            faiss.write_index(faiss_index, writer)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def emptied(path: Path) -> Any:
    """What a part's file was trained to, without its rows: a template for other parts.

    Memory: that of the part.
    """
    template = read_faiss(path)
    template.reset()
    return template
