"""Thumbnails: small, of the right size, and silent about where a picture was taken."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from encoders.picture import open_picture, thumbnail


def jpeg(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def test_a_thumbnail_is_a_small_jpeg_without_metadata():
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    data = jpeg(Image.new("RGB", (600, 300)), exif=exif, comment=b"secret", dpi=(72, 72))
    small = thumbnail(open_picture(data), edge=100)
    opened = Image.open(io.BytesIO(small))
    assert opened.format == "JPEG"
    assert opened.size == (100, 50)
    assert not opened.getexif()
    assert "comment" not in opened.info
    assert b"where I live" not in small
    assert Image.open(io.BytesIO(thumbnail(Image.new("RGB", (24, 16))))).size == (24, 16)


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ((500, 375), (250, 188)),
        ((257, 3), (256, 3)),
        ((256, 40), (256, 40)),
        ((30, 4000), (2, 250)),
        ((7, 5), (7, 5)),
    ],
)
def test_a_thumbnail_is_as_large_as_asked_for_or_a_little_smaller(stored, shown):
    ramp = np.linspace(0, 255, stored[0] * stored[1]).reshape(stored[::-1]).astype(np.uint8)
    small = Image.open(io.BytesIO(thumbnail(Image.fromarray(ramp).convert("RGB"), 256)))
    assert small.size == shown
    assert abs(np.asarray(small, float).mean() - ramp.mean()) < 2
