"""FAISS's files: the same bytes as FAISS's own writer, and no byte lost without an error."""

from __future__ import annotations

import errno
from pathlib import Path

import faiss
import numpy as np
import pytest

from index.faiss_file import read_faiss, write_faiss


def filled(num_rows: int) -> faiss.Index:
    one = faiss.IndexFlatIP(64)
    one.add(np.random.default_rng(0).random((num_rows, 64), np.float32))
    return one


@pytest.mark.parametrize("num_rows", [0, 10_000])
def test_a_full_disk_is_told_however_small_the_file(num_rows: int) -> None:
    with pytest.raises(OSError, match=r"space left.*/dev/full") as caught:
        write_faiss(filled(num_rows), "/dev/full")
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("num_rows", [0, 10_000])
def test_files_are_those_that_faiss_writes(tmp_path: Path, num_rows: int) -> None:
    one, ours, own = filled(num_rows), tmp_path / "ours", tmp_path / "own"
    write_faiss(one, str(ours))
    faiss.write_index(one, str(own))
    assert ours.read_bytes() == own.read_bytes()
    assert read_faiss(ours).ntotal == num_rows
