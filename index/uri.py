"""Filesystems behind URIs: opened with all their options, named without their secrets."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pyarrow import fs as pafs

__all__ = ["StoreError", "asking", "local_path", "open_uri", "put_file", "real_path", "shown_uri"]

PIECE_BYTES = 1 << 20

GOOGLE_RETRIES_S = 60
"""For how long Google's store is asked again; its own client would go on for 15 minutes, silent."""

OF_A_STORE = re.compile(r"AWS Error|google::cloud::Status")
GOOGLE = re.compile(r"google::cloud::Status\((.*?)(?: error_info=.*)?\)$", re.DOTALL)


def local_path(text: str) -> Path:
    """The path that a person wrote: a home for ``~`` where there is one, else to the letter."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - that of Path raises where there is none


def real_path(text: str) -> str:
    """The real path behind one that a person wrote, as a catalog and pyarrow can hold it.

    Raises:
        ValueError: it is not UTF-8, or holds a NUL.
    """
    path = text if "\0" in text else os.path.realpath(local_path(text))
    shown = os.fsencode(path).decode("utf-8", "backslashreplace").replace("\0", "\\0")
    if shown.encode() != os.fsencode(path):
        raise ValueError(
            f"{shown}: paths have to be UTF-8 text without a NUL. Rename what lies there, or give "
            "another path."
        )
    return path


class StoreError(OSError):
    """An object store could not be reached, or refused; says which one and what to do."""


@contextlib.contextmanager
def asking(store: str) -> Iterator[None]:
    """Tell of an object store's error in our words; pyarrow's do not say what to do about it.

    Args:
        store: what is asked, in the form that may be shown; see `shown_uri`.

    Raises:
        StoreError: for an error that the store or its client gave.
    """
    try:
        yield
    except (StoreError, FileNotFoundError):
        raise
    except OSError as error:
        text = str(error)
        if not OF_A_STORE.search(text):
            raise
        of_google = GOOGLE.search(text)
        reason = of_google[1] if of_google else text
        keys = (
            "GOOGLE_APPLICATION_CREDENTIALS or the machine's account; for a bucket that everyone "
            "may read, gs://anonymous@BUCKET"
            if of_google
            else "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or the machine's role"
        )
        raise StoreError(
            f"{store}: the object store could not be reached, or refused ({reason.rstrip('. ')}). "
            "It needs a network, the bucket's name, options such as region, endpoint_override and "
            f"scheme behind a '?', and credentials: {keys}. Nothing that was finished is lost: "
            "correct what is wrong and run the same command again."
        ) from error


def open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem, and the absolute path in it without a trailing slash.

    Raises:
        ValueError: a URI that cannot be opened; its keys and options are not repeated.
    """
    limited = uri
    if uri.startswith("gs://") and "retry_limit_seconds=" not in uri:
        limited = f"{uri}{'&' if '?' in uri else '?'}retry_limit_seconds={GOOGLE_RETRIES_S}"
    try:
        filesystem, path = pafs.FileSystem.from_uri(limited)
    except ValueError as error:
        shown = shown_uri(uri)
        reason = str(error).replace(limited, shown).replace(uri, shown)
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


def shown_uri(uri: str) -> str:
    """The URI without keys and options: no more of it than is surely no secret.

    >>> shown_uri("s3://KEY:SECRET@bucket/prefix?region=eu-west-1")
    's3://bucket/prefix'
    >>> shown_uri("a/path@home")
    'a/path@home'
    """
    if "://" not in uri:
        return uri
    scheme, _, rest = uri.partition("://")
    place, _, options = rest.partition("?")
    return f"{scheme}://{'...' if '@' in options else place.rpartition('@')[2]}"
