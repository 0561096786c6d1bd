import base64
import contextlib
import copy
import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from encoders.picture import PictureError, open_picture, probe, to_square
from encoders.preprocess import DECODE_EDGE, PREPROCESS_RULE, PreprocessConfig

ORIENTATION = 0x0112
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encode(image: Image.Image, name: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


# `quarters()` as HEVC, as telephones store it; the decoder in use cannot write.
HEIC_QUARTERS = (
    "AAAAHGZ0eXBoZWl4AAAAAG1pZjFoZWl4bWlhZgAAAX5tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAA"
    "AAAAAAAAAAAAACJpbG9jAAAAAERAAAEAAQAAAAABogABAAAAAAAAAG0AAAAjaWluZgAAAAAAAQAAABVpbmZlAgAA"
    "AAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/mlwcnAAAADeaXBjbwAAAHdodmNDAQQIAAAAnjgAAAAAHvAA/P/4"
    "+AAADwNgAAEAF0ABDAH//wQIAAADAJ44AAADAAAeugJAYQABACpCAQEECAAAAwCeOAAAAwAAHpAEECCy3VXTXNwE"
    "NBgQAAADAZAAAAMAEIBiAAEACEQBwXMYMBiQAAAAE2NvbHJuY2x4AAEADQAGgAAAABRpc3BlAAAAAAAAAEAAAABA"
    "AAAAKGNsYXAAAAAYAAAAAQAAABAAAAAB////2AAAAAL////QAAAAAgAAABBwaXhpAAAAAAMICAgAAAAYaXBtYQAA"
    "AAAAAAABAAEFgQIDBYQAAAB1bWRhdAAAAGkoAa8JyG8VGiOZzm/2J//HXIT+5EBCb65MSFPBUMM/3v7zXfjPHzSr"
    "8DoQrmHtRrAEpf8eo9BpasURBuxagNRrwi1139D1sLKkAEA9KD9iOnN55BXNwUXRVbaA6cw72/0VxORy/zP6Y4A="
)


def quarters(width: int = 24, height: int = 16) -> Image.Image:
    """Red, green over blue, white: tells every turn and mirror apart."""
    image = Image.new("RGB", (width, height))
    for place, colour in enumerate((RED, GREEN, BLUE, WHITE)):
        column, row = place % 2, place // 2
        image.paste(
            colour,
            (
                column * width // 2,
                row * height // 2,
                (column + 1) * width // 2,
                (row + 1) * height // 2,
            ),
        )
    return image


def values(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def status_of(data: bytes, **options) -> str:
    with pytest.raises(PictureError) as caught:
        open_picture(data, **options)
    return caught.value.status


def bare_png(width: int, height: int) -> bytes:
    """A PNG that states its size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("PNG", {}),
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("PPM", {}),
        ("JPEG2000", {}),
        ("AVIF", {"quality": 95, "subsampling": "4:4:4"}),
    ],
)
def test_every_common_format_opens_and_probes(name, options):
    data = encode(quarters(), name, **options)
    opened = open_picture(data)
    assert opened.mode == "RGB"
    assert np.abs(values(opened) - values(quarters()))[2:-2, 2:-2].mean() < 6
    assert probe(data) == (name, 24, 16)
    assert probe(io.BytesIO(data)) == (name, 24, 16)


def test_a_telephone_s_heic_opens_and_probes():
    data = base64.b64decode(HEIC_QUARTERS)
    assert np.abs(values(open_picture(data)) - values(quarters()))[2:-2, 2:-2].mean() < 6
    assert probe(data) == ("HEIF", 24, 16)
    assert status_of(data[:300]) == "unreadable"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_undone_and_probe_states_the_upright_size(name, orientation):
    # What a camera held that way would store, by the definition of the tag.
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](np.asarray(quarters()))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 98, "subsampling": 0}}
    data = encode(
        Image.fromarray(np.ascontiguousarray(stored)), name, exif=exif, **options.get(name, {})
    )
    assert np.abs(values(open_picture(data)) - values(quarters())).mean() < 4
    assert probe(data) == (name, 24, 16)


def test_damaged_exif_does_not_cost_the_picture():
    data = encode(quarters(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    assert open_picture(data).size == (24, 16)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_lie_on_white(mode):
    image = Image.new(mode, (4, 4), (0,) * len(mode))
    assert (values(open_picture(encode(image, "PNG"))) == 255).all()
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert np.abs(values(open_picture(encode(half, "PNG"))) - 127).max() <= 1


def test_a_palette_keeps_its_colours_and_its_transparency():
    image = quarters().convert("P", palette=Image.Palette.ADAPTIVE)
    assert np.abs(values(open_picture(encode(image, "PNG"))) - values(quarters())).max() < 8
    transparent = image.getpixel((0, 0))
    opened = values(open_picture(encode(image, "PNG", transparency=transparent)))
    assert (opened[0, 0] == 255).all()
    assert np.abs(opened[0, -1] - GREEN).max() < 8
    # One alpha a palette entry makes Pillow warn on a plain conversion.
    opened = values(open_picture(encode(image, "PNG", transparency=bytes([0] * 4))))
    assert (opened == 255).all()


def test_gray_bilevel_and_cmyk_become_rgb():
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    assert (values(open_picture(encode(ramp, "PNG")))[..., 1] == values(ramp)).all()
    assert set(np.unique(values(open_picture(encode(ramp.convert("1"), "PNG"))))) == {0, 255}
    cmyk = encode(quarters().convert("CMYK"), "JPEG", quality=98)
    assert Image.open(io.BytesIO(cmyk)).mode == "CMYK"
    assert np.abs(values(open_picture(cmyk)) - values(quarters()))[2:6, 2:10].max() < 12


def test_sixteen_bits_are_scaled_and_not_clipped():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for name in ("PNG", "TIFF"):
        opened = values(open_picture(encode(Image.fromarray(ramp), name)))[..., 0]
        assert (opened == np.rint(ramp / 257)).all()
    dark = np.full((4, 4), 300, np.uint16)
    assert (values(open_picture(encode(Image.fromarray(dark), "PNG"))) == 1).all()


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 65535]], np.int32), [0, 255]),
        (np.array([[-5, 2**31 - 1]], np.int32), [0, 255]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 51.0, 255.0]], np.float32), [0, 51, 255]),
        (np.array([[np.nan, 0.0, 1.0]], np.float32), [0, 0, 255]),
        (np.array([[0.0, 1e6]], np.float32), [0, 255]),
    ],
)
def test_deep_gray_is_scaled_by_the_smallest_range_that_holds_it(array, expected):
    opened = open_picture(encode(Image.fromarray(array), "TIFF"))
    assert values(opened)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(name):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"WEBP": {"lossless": True}}.get(name, {})
    data = encode(frames[0], name, save_all=True, append_images=frames[1:], **options)
    assert (values(open_picture(data)) == RED).all()


def test_no_bytes_are_empty_and_nonsense_is_unreadable():
    assert status_of(b"") == "empty"
    assert status_of(b"these are words, whatever the file is called\n" * 9) == "unreadable"
    assert status_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n") == "unreadable"
    with pytest.raises(PictureError) as caught:
        probe(io.BytesIO(b""))
    assert caught.value.status == "empty"
    # Pillow's own words would name an object in memory.
    with pytest.raises(PictureError, match=r"\(no known format begins so\).* convert or remove"):
        probe(b"words")


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF", "BMP"])
def test_a_truncated_picture_is_unreadable(name):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, name)
    assert status_of(data[: len(data) // 2]) == "unreadable"


@pytest.mark.parametrize("size", [(10_000, 10_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_too_large_by_its_header_alone(size):
    data = bare_png(*size)
    assert status_of(data) == "too_large"
    with pytest.raises(PictureError) as caught:
        open_picture(data)
    assert "100,000,000" in str(caught.value) or "exceeds limit" in str(caught.value)


def test_probing_tells_the_size_of_what_is_too_large_as_far_as_pillow_goes():
    assert probe(bare_png(10_000, 10_000)) == ("PNG", 10_000, 10_000)
    with pytest.raises(PictureError) as caught:
        probe(bare_png(30_000, 30_000))
    assert caught.value.status == "too_large"


def test_the_pixel_limit_can_be_set_and_refuses_from_there_on():
    data = encode(Image.new("RGB", (20, 10)), "PNG")
    assert status_of(data, max_pixels=200) == "too_large"
    assert open_picture(data, max_pixels=201).size == (20, 10)


def test_a_large_jpeg_is_decoded_small_and_keeps_what_the_encoder_sees():
    smooth = Image.fromarray(
        np.random.default_rng(1).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    ).resize((2048, 1536), Image.Resampling.BICUBIC)
    data = encode(smooth, "JPEG", quality=95)
    opened = open_picture(data)
    assert min(opened.size) == 768
    config = PreprocessConfig(size=64)
    drift = np.abs(to_square(opened, config).astype(int) - to_square(smooth, config))
    assert drift.mean() < 1.5
    assert min(open_picture(encode(smooth.resize((1000, 700)), "JPEG")).size) >= DECODE_EDGE


@pytest.mark.parametrize(
    ("stored", "decoded"),
    [
        ((1023, 1400), (1023, 1400)),
        ((1024, 1400), (512, 700)),
        ((2047, 2049), (1024, 1025)),
        ((2048, 2800), (512, 700)),
        ((4096, 4800), (512, 600)),
    ],
)
def test_rule_1_decodes_large_jpegs_at_these_sizes_and_no_other(stored, decoded):
    """Others give other pixels: that is another rule, and so another identity of every encoder."""
    assert PREPROCESS_RULE == 1
    assert open_picture(encode(Image.new("L", stored), "JPEG")).size == decoded
    assert open_picture(encode(Image.new("L", stored), "PNG", compress_level=1)).size == stored


@pytest.mark.parametrize(
    ("size", "decode_edge", "stored", "decoded"),
    [
        (32, 0, (500, 375), (250, 188)),
        (32, 0, (374, 375), (187, 188)),
        (32, 0, (373, 500), (373, 500)),
        (224, 0, (900, 672), (450, 336)),
        (224, 0, (4000, 3000), (500, 375)),
        (64, 100, (800, 900), (100, 113)),
        (64, 512, (900, 672), (900, 672)),
    ],
)
def test_an_encoder_says_how_small_jpegs_are_decoded(size, decode_edge, stored, decoded):
    edge = PreprocessConfig(size=size, decode_edge=decode_edge).least_edge
    picture = Image.new("L", stored)
    assert open_picture(encode(picture, "JPEG"), decode_edge=edge).size == decoded
    assert open_picture(encode(picture, "PNG"), decode_edge=edge).size == stored
    assert (
        open_picture(encode(picture, "JPEG"), decode_edge=edge, box=(0, 0, *stored)).size == stored
    )


def test_crop_takes_the_centre_square():
    image = Image.new("RGB", (60, 20), RED)
    image.paste(BLUE, (20, 0, 40, 20))
    square = to_square(image, PreprocessConfig(size=16))
    assert square.shape == (16, 16, 3)
    assert square.dtype == np.uint8
    # The filter looks one pixel over the edge.
    assert (square[:, 1:-1] == BLUE).all()


def test_pad_keeps_the_whole_picture_on_white():
    square = to_square(Image.new("RGB", (60, 30), RED), PreprocessConfig(size=16, fit="pad"))
    assert (square[4:12] == RED).all()
    assert (square[:4] == 255).all()
    assert (square[12:] == 255).all()


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (7, 9)])
def test_any_shape_becomes_a_square(size, fit):
    square = to_square(Image.new("RGB", size, GREEN), PreprocessConfig(size=32, fit=fit))
    assert square.shape == (32, 32, 3)
    assert (square == GREEN).all(-1).any()


def test_shrinking_averages_instead_of_picking_pixels():
    checker = np.indices((256, 256)).sum(0) % 2 * 255
    image = Image.fromarray(checker.astype(np.uint8)).convert("RGB")
    square = to_square(image, PreprocessConfig(size=32)).astype(int)
    assert np.abs(square - 127).max() <= 2


def test_the_error_keeps_its_status_when_it_is_rebuilt_elsewhere():
    error = copy.copy(PictureError("too_large", "big"))
    assert (error.status, str(error)) == ("too_large", "big")


VALID = [
    encode(
        quarters(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"
    ),
    encode(quarters().convert("P"), "PNG", transparency=bytes(range(200))),
    encode(quarters(), "GIF", save_all=True, append_images=[quarters().rotate(90)]),
    encode(quarters(), "TIFF", compression="tiff_lzw"),
    encode(quarters(), "WEBP"),
    encode(quarters(), "BMP"),
    encode(quarters(), "AVIF"),
]


@settings(max_examples=150, deadline=None)
@given(
    data=st.sampled_from(VALID),
    flips=st.lists(st.tuples(st.integers(0, 2**16), st.integers(1, 255)), max_size=6),
    end=st.integers(0, 2**16),
)
def test_whatever_the_bytes_only_a_picture_error_comes_out(data, flips, end):
    hostile = bytearray(data)
    for place, change in flips:
        hostile[place % len(hostile)] ^= change
    for read in (lambda d: open_picture(d, max_pixels=10**6), probe):
        with contextlib.suppress(PictureError):
            read(bytes(hostile[: max(1, end % (2 * len(hostile)))]))


def test_no_warning_escapes_in_any_thread_and_the_filters_come_back():
    # Above the size at which Pillow warns, below the size at which we refuse.
    nearly_a_bomb = bare_png(9_600, 9_500)

    def work() -> None:
        for _ in range(10):
            probe(nearly_a_bomb)
            with contextlib.suppress(PictureError):
                open_picture(nearly_a_bomb, max_pixels=91_000_000)

    with warnings.catch_warnings(record=True) as escaped:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(work) for _ in range(8)]:
                done.result()
        assert list(warnings.filters) == before
        assert not escaped
        Image.open(io.BytesIO(nearly_a_bomb))
        assert len(escaped) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"size": 4},
        {"size": 4096},
        {"fit": "stretch"},
        {"std": (1.0, 0.0, 1.0)},
        {"mean": (0.5, 0.5)},
    ],
)
def test_preprocessing_out_of_range_is_refused(options):
    with pytest.raises(ValueError, match="preprocess"):
        PreprocessConfig(**options)
