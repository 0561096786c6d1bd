"""The pictures that contestants are given: Fashion-MNIST, and crops of two photographs.

Shapes: N pictures, S edge in pixels.
"""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["EDGE", "fashion_mnist", "photographs", "read_idx", "write_jpegs", "write_png"]

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FILES = {"train": "train", "test": "t10k"}
UNSIGNED_BYTE = 8
EDGE = 32
"""Pictures of 28 px get a black margin of two: no pixel is resampled."""
PER_FOLDER = 1000
NOISE = 8


def fashion_mnist(
    split: Literal["train", "test"], folder: Path = FASHION_MNIST
) -> tuple[Pixels, Labels]:
    """All pictures of a split, gray as RGB, in the order of the files.

    Args:
        split: 60,000 pictures to train on, or 10,000 to test on.
        folder: of Debian's package.

    Returns:
        uint8 ``[N, 32, 32, 3]`` and classes int64 ``[N]``, 0 to 9.

    Raises:
        FileNotFoundError: the package is not installed.
        ValueError: a file is damaged.
    """
    images, labels = (
        folder / f"{FILES[split]}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")
    )
    for path in (images, labels):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such file. Fashion-MNIST is taken from Debian's package "
                "dataset-fashion-mnist: run apt-get install dataset-fashion-mnist."
            )
    gray_NSS, classes_N = (
        read_idx(gzip.decompress(path.read_bytes())) for path in (images, labels)
    )
    margin = (EDGE - gray_NSS.shape[1]) // 2
    framed_NSS = np.pad(gray_NSS, [(0, 0), (margin, margin), (margin, margin)])
    return np.repeat(framed_NSS[..., None], 3, axis=3), classes_N.astype(np.int64)


def read_idx(data: bytes) -> NDArray[np.uint8]:
    """The array of an IDX file of unsigned bytes.

    Raises:
        ValueError: it is of another kind, or its length is not what its header says.

    Source: LeCun's description of MNIST: two zeros, the type, the number of dimensions, each
    dimension as four bytes with the highest first, then the values.
    """
    header = np.frombuffer(data[:4], np.uint8)
    if len(header) < 4 or header[:3].tolist() != [0, 0, UNSIGNED_BYTE]:
        raise ValueError(
            f"IDX data that begins with {data[:4]!r}; it must begin with 0, 0, 8 (unsigned bytes) "
            "and the number of dimensions. Install the package of the pictures again."
        )
    start = 4 + 4 * int(header[3])
    shape = np.frombuffer(data[4:start], ">u4").astype(int).tolist()
    if len(data) - start != int(np.prod(shape)):
        raise ValueError(
            f"IDX data of {len(data) - start} values whose header says {shape}; both must agree. "
            "Install the package of the pictures again."
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def photographs(num: int, size: int, seed: int) -> Pixels:
    """Random square parts of the two photographs that scikit-learn brings: uint8 [N, S, S, 3]."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    sources = [Image.fromarray(picture) for picture in load_sample_images().images]
    rng = np.random.default_rng(seed)
    pictures = []
    for number in range(num):
        source = sources[number % len(sources)]
        edge = int(rng.integers(min(source.size) // 2, min(source.size)))
        left, top = (int(rng.integers(0, side - edge + 1)) for side in source.size)
        part = source.resize((size, size), box=(left, top, left + edge, top + edge), reducing_gap=3)
        pictures.append(np.asarray(part))
    return np.stack(pictures)


def write_png(pixels: Pixels, folder: Path) -> None:
    """One file for each picture, a thousand a folder, to be scanned."""
    from PIL import Image

    for number, picture in enumerate(pixels):
        path = folder / f"{number // PER_FOLDER:03}" / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path, compress_level=1)


def write_jpegs(num: int, folder: Path, *, size: tuple[int, int], distinct: int, seed: int) -> None:
    """Files of ``size`` (width, height), as a camera writes them: ``distinct`` ones, in turn.

    Parts of the two photographs that scikit-learn brings, enlarged, with the noise of a sensor:
    without it an enlarged picture is smooth, its file small, and its decoding too easy.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_images

    sources = [Image.fromarray(picture) for picture in load_sample_images().images]
    rng = np.random.default_rng(seed)
    files: list[bytes] = []
    for number in range(distinct):
        source = sources[number % len(sources)]
        height = int(rng.integers(source.height // 2, source.height))
        width = min(source.width, height * size[0] // size[1])
        left = int(rng.integers(0, source.width - width + 1))
        top = int(rng.integers(0, source.height - height + 1))
        part = source.resize(size, box=(left, top, left + width, top + height))
        noise = rng.integers(-NOISE, NOISE + 1, (size[1], size[0], 1), dtype=np.int16)
        noisy = np.clip(np.asarray(part, np.int16) + noise, 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    for number in range(num):
        path = folder / f"{number // PER_FOLDER:03}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[number % distinct])
