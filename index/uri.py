"""Filesystems behind URIs: opened with all their options, named without their secrets."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pyarrow import fs as pafs

__all__ = ["open_uri", "put_file"]

PIECE_BYTES = 1 << 20


def open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem, and the absolute path in it without a trailing slash.

    Raises:
        ValueError: a URI that cannot be opened; its keys and options are not repeated.
    """
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except ValueError as error:
        shown = _without_secrets(uri)
        reason = str(error).replace(uri, shown)
        raise ValueError(
            f"{shown}: cannot be opened ({reason}). Allowed are a path and a URI such as "
            "s3://BUCKET/PREFIX?region=REGION, its special characters percent-encoded. Correct it."
        ) from None  # pyarrow's own error repeats the URI
    return filesystem, path.rstrip("/")


def put_file(filesystem: pafs.FileSystem, source: Path, target: str) -> None:
    """Put a local file into an object store, as a whole.

    A stream that is left early still closes, and the store then takes what was written so far. So
    it is written in a thread of its own, which no interrupt reaches, and which is waited for.
    """
    with contextlib.suppress(OSError):  # stores without folders refuse, and do not need them
        filesystem.create_dir(target.rpartition("/")[0], recursive=True)
    with ThreadPoolExecutor(1) as alone:
        alone.submit(_copy, filesystem, source, target).result()


def _copy(filesystem: pafs.FileSystem, source: Path, target: str) -> None:
    with source.open("rb") as data, filesystem.open_output_stream(target) as stream:
        while piece := data.read(PIECE_BYTES):
            stream.write(piece)


def _without_secrets(uri: str) -> str:
    """The URI without keys and options: no more of it than is surely no secret.

    >>> _without_secrets("s3://KEY:SECRET@bucket/prefix?region=eu-west-1")
    's3://bucket/prefix'
    """
    scheme, _, rest = uri.partition("://")
    place, _, options = rest.partition("?")
    return f"{scheme}://{'...' if '@' in options else place.rpartition('@')[2]}"
