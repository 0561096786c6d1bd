"""Pictures of any mode to RGB, on white where transparent, with 16 bits and floats made 8.

Where that takes copies of the picture, it is done part by part: at once, it would take 24 bytes for
each pixel of 16-bit gray and 16 for a transparent one, where it takes 7 and 8.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

__all__ = ["WHITE", "to_rgb"]

WHITE = (255, 255, 255)
BAND_PIXELS = 1 << 18


def to_rgb(image: Image.Image) -> Image.Image:
    """A new RGB picture; each of its pixels depends on the same one alone, and on the range."""
    is_deep = image.mode.startswith(("I", "F"))
    if not is_deep and not image.has_transparency_data:
        return image.convert("RGB")
    top = _top(image) if is_deep else 0.0
    picture = Image.new("RGB", image.size)
    for box in _boxes(image):
        part = image.crop(box)
        picture.paste(_scaled(part, top) if is_deep else _on_white(part), box)
    return picture


def _boxes(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    columns = min(image.width, BAND_PIXELS)
    rows = max(1, BAND_PIXELS // columns)
    for top in range(0, image.height, rows):
        for left in range(0, image.width, columns):
            yield left, top, min(left + columns, image.width), min(top + rows, image.height)


def _on_white(part: Image.Image) -> Image.Image:
    canvas = Image.new("RGBA", part.size, (*WHITE, 255))
    canvas.alpha_composite(part.convert("RGBA"))
    return canvas.convert("RGB")


def _values(part: Image.Image) -> np.ndarray:
    return np.nan_to_num(np.asarray(part, dtype=np.float64))


def _top(image: Image.Image) -> float:
    """The greatest value of 16-bit, 32-bit and float gray.

    Mode ``I`` and floats do not tell their range: the smallest usual one that holds it counts.
    """
    if image.mode.startswith("I;16"):
        return 65535.0
    ranges = (65535.0, 2.0**31 - 1) if image.mode == "I" else (1.0, 255.0, 65535.0)
    peaks = (_values(image.crop(box)).max(initial=0.0) for box in _boxes(image))
    peak = float(max(peaks, default=0.0))
    return next((limit for limit in ranges if peak <= limit), peak)


def _scaled(part: Image.Image, top: float) -> Image.Image:
    scaled = np.rint(np.clip(_values(part) / top, 0, 1) * 255)
    return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
