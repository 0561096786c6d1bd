"""What decoding large JPEGs at a fraction of their size saves, and how far it moves vectors.

Each photograph is decoded as the product does it for an encoder of an automatic recipe, and in
full; both go through the same network.
Beside the distance of the two vectors stands that to the nearest other photograph: as long as the
first is a small part of the second, no neighbour changes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import measuring
from benchmarks.pictures import write_jpegs
from encoders.backbone import BackboneConfig
from encoders.encoder import Encoder, EncoderConfig
from encoders.picture import open_picture, probe, to_square
from encoders.preprocess import PreprocessConfig

__all__ = ["drift"]

SEED = 0
PHOTOGRAPHS = ((500, 375), (1600, 1200), (4000, 3000))
NETWORKS = (("narrow", 32), ("narrow", 96), ("resnet18", 224))


def in_full(data: bytes) -> Image.Image:
    """Every pixel decoded: a crop that is the whole picture."""
    _, width, height = probe(data)
    return open_picture(data, box=(0, 0, width, height))


def timed(
    decode: Callable[[bytes], Image.Image], files: list[bytes]
) -> tuple[list[Image.Image], float]:
    """The pictures, and CPU milliseconds for each."""
    started_s = time.thread_time()
    pictures = [decode(data) for data in files]
    return pictures, 1e3 * (time.thread_time() - started_s) / len(files)


def drift(scaled: np.ndarray, full: np.ndarray) -> dict[str, float]:
    """Distances, 1 - cosine, of unit vectors [N, D] of the same pictures in two ways."""
    moved = 1 - np.einsum("nd,nd->n", scaled, full)
    others = full @ full.T
    np.fill_diagonal(others, -1)
    nearest = 1 - others.max(axis=1)
    found = np.argmax(scaled @ full.T, axis=1)
    return {
        "moved_median": float(np.median(moved)),
        "moved_most": float(moved.max()),
        "nearest_other_median": float(np.median(nearest)),
        "finds_itself": float((found == np.arange(len(full))).mean()),
    }


def measure(size: tuple[int, int], num: int) -> dict[str, Any]:
    """One size of photograph: time of decoding, and drift through each network."""
    with tempfile.TemporaryDirectory() as made:
        write_jpegs(num, Path(made), size=size, distinct=num, seed=SEED)
        files = [path.read_bytes() for path in sorted(Path(made).rglob("*.jpg"))]
    full, full_ms = timed(in_full, files)
    networks = []
    for name, edge in NETWORKS:
        preprocess = PreprocessConfig(size=edge, decode_edge=0)
        scaled, scaled_ms = timed(partial(open_picture, decode_edge=preprocess.least_edge), files)
        config = EncoderConfig(backbone=BackboneConfig(name=name), preprocess=preprocess)
        encoder = Encoder.initialise(config, SEED)
        squares = [
            np.stack([to_square(picture, preprocess) for picture in pictures])
            for pictures in (scaled, full)
        ]
        vectors = [encoder.embed(square, batch_size=8) for square in squares]
        networks.append(
            {
                "network": f"{name}, {edge} px",
                "decoded": list(scaled[0].size),
                "scaled_ms": scaled_ms,
                "pixels": float(np.abs(squares[0].astype(np.int16) - squares[1]).mean()),
                **drift(*vectors),
            }
        )
    return {"photograph": list(size), "full_ms": full_ms, "networks": networks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", type=int, default=40, help="of each size")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    hardware = measuring.machine()
    cases = [measure(size, asked.photographs) for size in PHOTOGRAPHS]
    settings = {"photographs": asked.photographs, "seed": SEED}
    measuring.save("scaled_decoding", {"settings": settings, "cases": cases}, hardware)


if __name__ == "__main__":
    main()
