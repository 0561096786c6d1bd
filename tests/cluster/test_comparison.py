"""Headers of pictures that lie in a store."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from cluster import comparison
from cluster.comparison import probe_row
from cluster.picture_uri import Place
from cluster.sources import Listed

URI = "s3://bucket/a.jpg"


class Counted(io.FileIO):
    """Counts what is read of it."""

    def __init__(self, path: Path, read: list[int]) -> None:
        super().__init__(path)
        self._read = read

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(-1 if size is None else size)
        self._read.append(len(data))
        return data


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[int]]:
    """The file behind `URI`, and how many bytes each read of it took."""
    path, read = tmp_path / "object", list[int]()

    def opened(_: str) -> Any:
        return pa.PythonFile(Counted(path, read), mode="r")

    fs: Any = SimpleNamespace(open_input_stream=opened, open_input_file=opened)
    monkeypatch.setattr(comparison, "place_of", lambda _: Place(fs, "object", "s3://"))
    return path, read


def test_of_a_large_object_that_is_no_picture_little_is_read(store: Any) -> None:
    path, read = store
    path.write_bytes(b"words " * 2_000_000)
    row = probe_row(Listed(URI, path.stat().st_size, 0), {}, 1e8)
    assert row["status"] == "unreadable"
    assert sum(read) < 1 << 20


def test_of_a_picture_with_its_header_at_the_end_the_pixels_are_not_read(store: Any) -> None:
    path, read = store
    pixels = np.random.default_rng(0).integers(0, 255, (2000, 2000, 3), np.uint8)
    Image.fromarray(pixels).save(path, "TIFF", compression="tiff_lzw")
    row = probe_row(Listed(URI, path.stat().st_size, 0), {}, 1e8)
    assert (row["status"], row["width"], row["height"]) == ("ok", 2000, 2000)
    assert sum(read) < 1 << 20 < path.stat().st_size


def test_an_object_of_more_bytes_than_a_picture_has_is_not_opened(store: Any) -> None:
    _, read = store
    row = probe_row(Listed(URI, 100 << 30, 0), {}, 1e8)
    assert row["status"] == "too_large"
    assert read == []
