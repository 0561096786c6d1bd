"""Bytes of any common picture format to RGB, and RGB to the square an encoder sees.

Corpus and query go through the same two functions, `open_picture` and `to_square`, so their vectors
cannot drift apart. Whatever the bytes hold, the only exception that comes out is `PictureError`,
whose ``status`` is the row status to record. Colour profiles are ignored.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import threading
import warnings
from collections.abc import Iterator
from typing import BinaryIO, Literal

import numpy as np
import pi_heif
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from encoders.decode_room import DecodeRoom
from encoders.icon import icon_pixels
from encoders.preprocess import DECODE_EDGE, PreprocessConfig
from encoders.rgb import WHITE, to_rgb

__all__ = [
    "LEAST_SHARE",
    "MAX_PIXELS",
    "SILENCE",
    "Box",
    "PictureError",
    "load_formats",
    "open_picture",
    "probe",
    "thumbnail",
    "to_square",
]

MAX_PIXELS = 100_000_000
"""Pictures of this many pixels and more are refused before a pixel of them is decoded."""

FORMATS = (
    "JPEG",
    "MPO",
    "PNG",
    "GIF",
    "WEBP",
    "BMP",
    "TIFF",
    "PPM",
    "ICO",
    "JPEG2000",
    "AVIF",
    "HEIF",
)
ORIENTATION_TAG = 0x0112
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
JPEG_QUALITY = 85
LEAST_SHARE = 0.75
"""Of a thumbnail's edge, what its picture's longest edge has, unless the picture was smaller."""

ROOM = DecodeRoom()

PictureStatus = Literal["unreadable", "empty", "too_large"]


Box = tuple[int, int, int, int]
"""Left, top, right and bottom of a part of a picture, in pixels; right and bottom lie outside."""


class PictureError(ValueError):
    """These bytes give no picture; ``status`` is ``unreadable``, ``empty`` or ``too_large``."""

    def __init__(self, status: PictureStatus, message: str) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[type[PictureError], tuple[str, str]]:
        """Keep the status on the way between processes."""
        return type(self), (self.status, str(self))


def open_picture(
    data: bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    box: Box | None = None,
    decode_edge: int = DECODE_EDGE,
) -> Image.Image:
    """Decode the first frame to RGB: EXIF-oriented, on white where transparent, 16 bit made 8.

    Large JPEGs are decoded at a fraction of their size, with no edge below ``decode_edge``; that is
    several times faster and keeps the detail that `to_square` can show.

    Args:
        data: the whole file.
        max_pixels: refuse pictures whose header states this many pixels or more.
        box: left, top, right and bottom, in pixels of the upright picture, of what to keep; decoded
            at full size.
        decode_edge: `PreprocessConfig.least_edge`, where a square is made of the picture.

    Raises:
        PictureError: ``empty`` for no bytes, ``too_large``, else ``unreadable``.
        ValueError: a box that does not lie in the picture.
    """
    if not data:
        raise PictureError("empty", "The file holds 0 bytes. Fetch it again or remove it.")
    with _only_picture_errors():
        image = _open_header(io.BytesIO(data))
        pixels = image.width * image.height
        if pixels >= max_pixels:
            raise PictureError(
                "too_large",
                f"{image.width} x {image.height} pixels; fewer than {max_pixels:,} are allowed. "
                "Scale the picture down.",
            )
        if box is None:
            image.draft("RGB", (decode_edge, decode_edge))
        if "progressive" not in image.info:  # whose decoder holds all of it at any scale
            pixels = image.width * image.height
        with ROOM.held(pixels):
            image.load()
            # After load, since a TIFF turns itself there and then drops the tag.
            turn = ORIENTATIONS.get(_orientation(image))
            image = image if turn is None else image.transpose(turn)
            picture = to_rgb(image)
        picture.info = {}
    return picture if box is None else picture.crop(_inside(box, picture))


def _inside(box: Box, picture: Image.Image) -> Box:
    left, top, right, bottom = box
    if not (0 <= left < right <= picture.width and 0 <= top < bottom <= picture.height):
        raise ValueError(
            f"crop {left} {top} {right} {bottom}: does not lie in the picture, which is "
            f"{picture.width} x {picture.height} pixels. Give left, top, right and bottom with "
            "left < right and top < bottom."
        )
    return box


def probe(source: bytes | BinaryIO) -> tuple[str, int, int]:
    """Format name, width and height of the upright picture, from the header alone.

    Args:
        source: the file's bytes, or a seekable binary file of which only the header is read.

    Raises:
        PictureError: ``empty`` for no bytes, ``too_large`` beyond some 179 million pixels, where
            Pillow itself refuses, and for icons of `MAX_PIXELS` and more; else ``unreadable``.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    if not file.read(1):
        raise PictureError("empty", "The file holds 0 bytes. Fetch it again or remove it.")
    file.seek(0)
    with _only_picture_errors():
        image = _open_header(file)
        width, height = image.size
        # A TIFF's header already states the upright size.
        if image.format != "TIFF" and _orientation(image) >= 5:
            width, height = height, width
        return str(image.format), width, height


def to_square(image: Image.Image, config: PreprocessConfig) -> NDArray[np.uint8]:
    """The RGB picture as uint8 ``[S, S, 3]``, read-only, by antialiased bicubic resampling.

    ``crop`` resamples the centre square in one step, so that a very long picture is never blown up.
    """
    size = config.size
    width, height = image.size
    if config.fit == "crop":
        edge = min(width, height)
        left, top = (width - edge) / 2, (height - edge) / 2
        box = (left, top, left + edge, top + edge)
        return _pixels(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
    scale = size / max(width, height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    canvas = Image.new("RGB", (size, size), WHITE)
    corner = ((size - inner[0]) // 2, (size - inner[1]) // 2)
    canvas.paste(image.resize(inner, Image.Resampling.BICUBIC), corner)
    return _pixels(canvas)


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    # In three quarters of the time of np.array.
    return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, 3)


def thumbnail(image: Image.Image, edge: int = 256) -> bytes:
    """JPEG bytes of the picture, without any metadata.

    Its longest edge is at most ``edge``, and not below three quarters of it unless the picture's
    was: a whole fraction of the picture where one fits, in an eighth of the time of resampling.
    """
    small = image if image.mode == "RGB" and not image.info else image.convert("RGB")
    longest = max(small.size)
    factor = math.ceil(longest / edge)
    if factor > 1 and longest >= LEAST_SHARE * edge * factor:
        small = small.reduce(factor)
    elif factor > 1:
        size = [max(1, round(side * edge / longest)) for side in small.size]
        small = small.resize(size, Image.Resampling.HAMMING, reducing_gap=1.0)
    small.info = {}
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def load_formats() -> None:
    """Load what decoders need, which else the first picture has to wait for."""
    _allowed_formats()


@functools.cache
def _allowed_formats() -> tuple[str, ...]:
    """The formats of the allow-list that this Pillow reads; none that starts another program."""
    Image.init()
    pi_heif.register_heif_opener(thumbnails=False)
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _open_header(file: BinaryIO) -> Image.Image:
    try:
        pixels = icon_pixels(file)
        if pixels >= MAX_PIXELS:
            raise PictureError(
                "too_large",
                f"The icon holds a picture of {pixels:,} pixels; fewer than {MAX_PIXELS:,} are "
                "allowed. Scale the picture down.",
            )
        with ROOM.held(pixels):  # an icon is decoded as it is opened
            return Image.open(file, formats=_allowed_formats())
    except Image.DecompressionBombError as error:
        raise PictureError("too_large", f"{error}. Scale the picture down.") from error


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 when it is missing, or damaged while the pixels are fine."""
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001 - damaged EXIF raises nearly anything
        return 1


@contextlib.contextmanager
def _only_picture_errors() -> Iterator[None]:
    """Turn whatever a decoder raises on hostile bytes into `PictureError`; keep it from warning."""
    with SILENCE:
        try:
            yield
        except PictureError:
            raise
        except MemoryError as error:
            raise PictureError(
                "too_large", "Not enough memory to decode it. Scale the picture down."
            ) from error
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            if isinstance(error, UnidentifiedImageError):  # it names an object in memory
                reason = "no known format begins so"
            raise PictureError(
                "unreadable",
                f"Not a picture that can be decoded ({reason}). "
                f"Readable are {', '.join(_allowed_formats())}: repair, convert or remove it.",
            ) from error


class _PillowSilence:
    """Ignores Pillow's warnings while any thread is inside, as ``catch_warnings`` alone cannot.

    Whoever decodes many pictures goes in once for all: it is a sixth of opening a small one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved = contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._saved.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", module="PIL")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._saved.close()


SILENCE = _PillowSilence()
