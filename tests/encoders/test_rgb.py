"""Pictures of any mode to RGB, part by part: the same as at once, in less memory."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from encoders import rgb
from encoders.picture import open_picture

DRAWN = np.random.default_rng(0)
NOISE = DRAWN.integers(0, 256, (13, 17, 4), dtype=np.uint8)


def deep(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values)


def palette(transparency: int | bytes) -> Image.Image:
    image = Image.fromarray(NOISE[..., :3]).convert("P", palette=Image.Palette.ADAPTIVE)
    image.info["transparency"] = transparency
    return image


def keyed() -> Image.Image:
    image = Image.fromarray(NOISE[..., :3])
    image.info["transparency"] = tuple(int(value) for value in NOISE[3, 4, :3])
    return image


def whole(image: Image.Image) -> Image.Image:
    """All of it at once."""
    if image.mode.startswith(("I", "F")):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        if image.mode.startswith("I;16"):
            top = 65535.0
        else:
            ranges = (65535.0, 2.0**31 - 1) if image.mode == "I" else (1.0, 255.0, 65535.0)
            peak = float(values.max(initial=0.0))
            top = next((limit for limit in ranges if peak <= limit), peak)
        gray = np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8)
        return Image.fromarray(gray).convert("RGB")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas.convert("RGB")
    return image.convert("RGB")


IMAGES = {
    "rgb": Image.fromarray(NOISE[..., :3]),
    "gray": Image.fromarray(NOISE[..., 0]),
    "rgba": Image.fromarray(NOISE),
    "gray with alpha": Image.fromarray(NOISE).convert("LA"),
    "premultiplied": Image.fromarray(NOISE).convert("RGBa"),
    "palette with alpha": Image.fromarray(NOISE).convert("RGBA").quantize(50),
    "a transparent entry": palette(3),
    "transparent entries": palette(bytes(range(0, 200, 2))),
    "a transparent colour": keyed(),
    "16 bits": deep(DRAWN.integers(0, 65536, (13, 17)).astype(np.uint16)),
    "16 bits, large end first": deep(DRAWN.integers(0, 65536, (13, 17)).astype(">u2")),
    "32 bits": deep(DRAWN.integers(-9, 2**31 - 1, (13, 17)).astype(np.int32)),
    "32 bits of 16": deep(DRAWN.integers(0, 65536, (13, 17)).astype(np.int32)),
    "floats": deep(DRAWN.normal(0, 1e6, (13, 17)).astype(np.float32)),
    "floats to 1": deep(DRAWN.random((13, 17)).astype(np.float32)),
    "not numbers": deep(np.full((13, 17), np.nan, np.float32)),
    "infinite": deep(np.where(DRAWN.random((13, 17)) < 0.1, np.inf, 0.5).astype(np.float32)),
}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("pixels", [5, 17, 40, 10_000])
def test_part_by_part_gives_the_same_bits_as_at_once(
    name: str, pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rgb, "BAND_PIXELS", pixels)
    image = IMAGES[name]
    before = image.tobytes(), dict(image.info)
    found = rgb.to_rgb(image)
    assert (found.mode, found.size) == ("RGB", image.size)
    assert found.tobytes() == whole(image).tobytes()
    assert (image.tobytes(), dict(image.info)) == before


def test_sixteen_bits_are_scaled_without_copies_of_the_picture() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((1500, 2000), np.uint16)).save(buffer, "PNG")
    was_tracing = tracemalloc.is_tracing()
    tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    open_picture(buffer.getvalue())
    taken = tracemalloc.get_traced_memory()[1] - before
    if not was_tracing:
        tracemalloc.stop()
    assert taken < 4 * 1500 * 2000
