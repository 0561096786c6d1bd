from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from benchmarks.pictures import fashion_mnist, photographs, read_idx, write_png


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def test_an_idx_file_is_read_value_by_value() -> None:
    array = np.arange(24).reshape(2, 3, 4)
    assert read_idx(idx(array)).tolist() == array.tolist()
    assert read_idx(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9])).tolist() == [7, 9]


def test_sizes_are_read_with_the_highest_byte_first() -> None:
    assert read_idx(idx(np.zeros((300,)))).shape == (300,)


@pytest.mark.parametrize(
    "data",
    [b"", b"\0\0", b"\x89PNG", bytes([0, 0, 13, 1, 0, 0, 0, 1, 5])],
    ids=["nothing", "cut short", "a PNG", "floats"],
)
def test_what_is_no_idx_file_of_bytes_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="must begin with 0, 0, 8"):
        read_idx(data)


@pytest.mark.parametrize("change", [-1, 1])
def test_an_idx_file_of_another_length_is_refused(change: int) -> None:
    data = idx(np.arange(6))
    data = data[:-1] if change < 0 else data + b"\0"
    with pytest.raises(ValueError, match="both must agree"):
        read_idx(data)


def test_fashion_mnist_is_framed_in_black_and_gray_in_all_channels(tmp_path: Path) -> None:
    gray = np.random.default_rng(0).integers(1, 256, (3, 28, 28), dtype=np.uint8)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(gray)))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.array([9, 0, 3]))))
    pixels, labels = fashion_mnist("test", tmp_path)
    assert pixels.shape == (3, 32, 32, 3)
    assert pixels.dtype == np.uint8
    for channel in range(3):
        assert (pixels[:, 2:30, 2:30, channel] == gray).all()
    assert pixels.astype(int).sum() == 3 * gray.astype(int).sum(), "the frame is black"
    assert labels.dtype == np.int64
    assert labels.tolist() == [9, 0, 3]


def test_a_missing_package_is_named_with_how_to_install_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        fashion_mnist("train", tmp_path)


def test_photographs_are_colourful_differ_and_come_again_with_their_seed() -> None:
    pictures = photographs(6, 24, seed=1)
    assert pictures.shape == (6, 24, 24, 3)
    assert len({picture.tobytes() for picture in pictures}) == 6
    assert (pictures.std(axis=(1, 2)) > 5).all(), "none is of one colour"
    assert not np.array_equal(pictures[..., 0], pictures[..., 2])
    assert np.array_equal(pictures, photographs(6, 24, seed=1))
    assert not np.array_equal(pictures, photographs(6, 24, seed=2))


def test_files_hold_the_same_pixels_and_sort_in_their_order(tmp_path: Path) -> None:
    from PIL import Image

    pixels = photographs(3, 16, seed=0)
    write_png(pixels, tmp_path)
    files = sorted(tmp_path.rglob("*.png"))
    assert np.array_equal(np.stack([np.asarray(Image.open(file)) for file in files]), pixels)
