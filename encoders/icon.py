"""How large the picture in an icon file is, before it is decoded.

An icon states at most 256 x 256, and the PNG or bitmap inside says what it really is. Pillow reads
that as it decodes it, which it does while it opens the file.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from PIL.BmpImagePlugin import DibImageFile
from PIL.IcoImagePlugin import IcoFile
from PIL.PngImagePlugin import PngImageFile

__all__ = ["icon_pixels"]

ICON = b"\0\0\1\0"
PNG = b"\x89PNG\r\n\x1a\n"


def icon_pixels(file: BinaryIO) -> int:
    """Pixels of the picture that Pillow would decode, by its own header; 0 if this is no icon.

    Args:
        file: seekable, read from its beginning on, where it is left.
    """
    is_icon = file.read(len(ICON)) == ICON
    file.seek(0)
    if not is_icon:
        return 0
    try:
        offset = IcoFile(file).entry[0].offset
        file.seek(offset)
        is_png = file.read(len(PNG)) == PNG
        file.seek(offset)
        width, height = (PngImageFile if is_png else DibImageFile)(file).size
    except (SyntaxError, IndexError, TypeError, struct.error):
        return 0  # at which Pillow takes it for no icon either; a HEIF may begin like one
    finally:
        file.seek(0)
    # A bitmap's mask lies below it.
    return width * height if is_png else width * height // 2
