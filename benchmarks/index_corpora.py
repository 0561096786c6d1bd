"""What indexes are compared on: vectors in clusters, or those that our own encoder makes.

Each writes ``vectors.npy`` and ``queries.npy``, unit vectors as float16 keeps them, so that
everybody searches the same, and ``truth.npy``, the ids of the exact answers.

Shapes: N vectors or pictures, Q queries, D dimensions, S edge in pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import measuring
from benchmarks.accuracy_equal_time import GRAY
from benchmarks.pictures import fashion_mnist
from cluster.where import num_cores
from index.measure import exact_top_k
from index.rounding import unit_float16
from index.vectors import unit

__all__ = ["SEED", "SOURCES", "seen_again", "write_corpus"]

SEED = 0
BLOCK_ROWS = 65_536
TRUTH_ROWS = 4096
STEPS, BATCH, WIDTHS = 400, 128, (32, 64, 128)
"""Of the encoder: minutes on two cores, and the widths of the ``-small`` recipes."""
SHIFT, GAIN, NOISE = 3, 0.3, 8.0
"""Between two pictures of one thing: pixels, share of brightness, of 255."""
TIMEOUT_S = 3600.0


def write_corpus(folder: Path, asked: argparse.Namespace) -> None:
    """The corpus of ``asked.source``, of ``asked.vectors``, with ``asked.queries`` queries."""
    SOURCES[asked.source](folder, asked)
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    queries = np.load(folder / "queries.npy")
    batches = (
        (np.arange(start, min(start + TRUTH_ROWS, len(vectors))), vectors[start:][:TRUTH_ROWS])
        for start in range(0, len(vectors), TRUTH_ROWS)
    )
    truth, _ = exact_top_k(queries, asked.k, batches)
    np.save(folder / "truth.npy", truth)


def rounded(vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """As an embedding set keeps them."""
    return unit_float16(unit(vectors_ND)).astype(np.float32)


def clustered(folder: Path, asked: argparse.Namespace) -> None:
    """Sorted by cluster as pictures in folders are; queries are new ones from the same."""
    rng = np.random.default_rng(SEED)
    centres = rng.standard_normal((asked.clusters, asked.dim), np.float32)

    def around(clusters_N: NDArray[np.int64]) -> NDArray[np.float32]:
        noise = rng.standard_normal((len(clusters_N), asked.dim), np.float32)
        return rounded(centres[clusters_N] + asked.noise * noise)

    file = folder / "vectors.npy"
    vectors = np.lib.format.open_memmap(
        file, mode="w+", dtype=np.float32, shape=(asked.vectors, asked.dim)
    )
    for rows in blocks(asked.vectors):
        vectors[rows] = around(rows * asked.clusters // asked.vectors)
    np.save(folder / "queries.npy", around(rng.integers(0, asked.clusters, asked.queries)))


def embedded(folder: Path, asked: argparse.Namespace) -> None:
    """Pictures of Fashion-MNIST, sorted by class, each of them seen several times.

    The encoder is SimCLR's small recipe after `STEPS` steps on the pictures themselves. Queries are
    test pictures, which neither it nor the index has seen.
    """
    pictures, classes = fashion_mnist("train")
    pictures = pictures[np.argsort(classes, kind="stable")]
    unseen, _ = fashion_mnist("test")
    rng = np.random.default_rng(SEED)
    edge, channels = pictures.shape[1], pictures.shape[3]
    names = {name: folder / f"{name}.npy" for name in ("train", "pixels", "asked")}
    np.save(names["train"], pictures[rng.permutation(len(pictures))])
    np.save(names["asked"], unseen[rng.choice(len(unseen), asked.queries, replace=False)])
    pixels = np.lib.format.open_memmap(
        names["pixels"], mode="w+", dtype=np.uint8, shape=(asked.vectors, edge, edge, channels)
    )
    for rows in blocks(asked.vectors):
        pixels[rows] = seen_again(pictures[rows * len(pictures) // asked.vectors], rng)
    del pixels
    targets = {"pixels": folder / "vectors.npy", "asked": folder / "queries.npy"}
    program = [
        measuring.OWN_PYTHON, "-m", "benchmarks.own_training", "--method", "simclr",
        "--pixels", str(names["train"]), "--steps", str(STEPS), "--batch", str(BATCH),
        "--widths", *map(str, WIDTHS), "--gray", *map(str, GRAY),
        "--threads", str(num_cores()), "--seed", str(SEED),
    ]  # fmt: skip
    for name, target in targets.items():
        program += ["--embed", str(names[name]), str(target)]
    measuring.child(program, TIMEOUT_S)
    for path in names.values():
        path.unlink()
    for target in targets.values():
        vectors = np.load(target, mmap_mode="r+")
        for rows in blocks(len(vectors)):
            vectors[rows] = rounded(np.asarray(vectors[rows]))


SOURCES = {"clusters": clustered, "encoder": embedded}


def blocks(num_rows: int) -> Iterator[NDArray[np.int64]]:
    """All row numbers, some at a time."""
    for start in range(0, num_rows, BLOCK_ROWS):
        yield np.arange(start, min(start + BLOCK_ROWS, num_rows))


def seen_again(pictures_NSSC: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The same things, photographed once more: moved, mirrored, in other light, with noise."""
    num, edge = pictures_NSSC.shape[:2]
    framed = np.pad(pictures_NSSC, [(0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)])
    tops_N, lefts_N = rng.integers(0, 2 * SHIFT + 1, (2, num))
    rows_NS = tops_N[:, None] + np.arange(edge)
    columns_NS = lefts_N[:, None] + np.arange(edge)
    mirrored = rng.random(num) < 0.5
    columns_NS[mirrored] = columns_NS[mirrored, ::-1]
    moved = framed[np.arange(num)[:, None, None], rows_NS[:, :, None], columns_NS[:, None, :]]
    gains_N = rng.uniform(1 - GAIN, 1 + GAIN, num).astype(np.float32)
    grain = NOISE * rng.standard_normal((num, edge, edge, 1), np.float32)
    lit = moved * gains_N[:, None, None, None] + grain
    return np.clip(lit, 0, 255).astype(np.uint8)
