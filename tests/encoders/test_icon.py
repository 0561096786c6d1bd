"""Icons, whose picture Pillow decodes as it opens them."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from encoders.icon import icon_pixels
from encoders.picture import PictureError, open_picture, probe


def encode(image: Image.Image, name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def noise(width: int, height: int) -> Image.Image:
    drawn = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(drawn)


def icon_of(*pictures: bytes) -> bytes:
    """An icon file that holds these PNGs or bitmaps, each stated as 256 x 256."""
    header = struct.pack("<HHH", 0, 1, len(pictures))
    offset, entries = len(header) + 16 * len(pictures), b""
    for data in pictures:
        entries += struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(data), offset)
        offset += len(data)
    return header + entries + b"".join(pictures)


def refused(read: Any, data: bytes) -> str:
    with pytest.raises(PictureError) as caught:
        read(data)
    return caught.value.status


@pytest.mark.parametrize("late_header", [False, True])
def test_an_icon_that_holds_a_bomb_is_refused_before_it_is_decoded(
    late_header: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = encode(Image.new("1", (12_000, 9_000)), "PNG")
    if late_header:
        text = b"tEXta\0b"
        chunk = struct.pack(">I", 3) + text + struct.pack(">I", zlib.crc32(text))
        inner = inner[:8] + chunk + inner[8:]
    decoded, load = [], PngImageFile.load

    def noted(self: PngImageFile) -> Any:
        decoded.append(self.size)
        return load(self)

    monkeypatch.setattr(PngImageFile, "load", noted)
    for read in (probe, open_picture):
        assert refused(read, icon_of(inner)) == "too_large"
    assert decoded == []


def test_an_icon_that_holds_a_large_bitmap_is_refused() -> None:
    bitmap = struct.pack("<IiiHHIIiiII", 40, 12_000, 2 * 9_000, 1, 8, 1, 0, 0, 0, 0, 0)
    for read in (probe, open_picture):
        assert refused(read, icon_of(bitmap + bytes(5000))) == "too_large"


@pytest.mark.parametrize("options", [{}, {"bitmap_format": "bmp"}])
def test_an_icon_opens_and_probes(options: dict[str, str]) -> None:
    picture = noise(32, 16)
    data = encode(picture, "ICO", sizes=[(32, 16)], **options)
    assert probe(data) == ("ICO", 32, 16)
    assert open_picture(data).tobytes() == picture.tobytes()


def test_an_icon_is_as_large_as_its_picture_says() -> None:
    data = icon_of(encode(noise(600, 400), "PNG"))
    assert icon_pixels(io.BytesIO(data)) == 600 * 400
    assert probe(data) == ("ICO", 600, 400)
    assert open_picture(data).size == (600, 400)


def test_icons_without_a_picture_and_cut_short_are_unreadable() -> None:
    whole = icon_of(encode(noise(60, 40), "PNG"))
    for data in (icon_of(), whole[:15], whole[:40], whole[:200]):
        assert refused(open_picture, data) == "unreadable"
        assert refused(probe, data) == "unreadable"


def test_a_file_that_only_begins_like_an_icon_is_left_to_other_decoders() -> None:
    for rest in (b"", b"ftypheic" + bytes(240), bytes(100)):
        file = io.BytesIO(b"\0\0\1\0" + rest)
        assert icon_pixels(file) == 0
        assert file.tell() == 0
