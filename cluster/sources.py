"""What a scan reads from: the kinds of sources, and which of them lies at a place.

A source lists pictures one by one, each with its place, label and metadata. A *container* is a file
that holds many; one that is as the last scan left it is not read again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import pyarrow as pa
from pyarrow import fs as pafs

from cluster.columns import Column
from cluster.file_walk import PICTURE_SUFFIXES, suffix_of, walk
from cluster.picture_uri import Place

__all__ = [
    "ALLOWED",
    "LIST_SUFFIXES",
    "PACKED",
    "PACKED_SUFFIXES",
    "PACKED_TAR",
    "TITLES",
    "Container",
    "Ledger",
    "Listed",
    "Request",
    "Source",
    "SourceKind",
    "recognise",
]

SourceKind = Literal["folder", "list", "parquet", "tar", "huggingface"]
LIST_SUFFIXES = frozenset([".txt", ".csv"])
KIND_OF_SUFFIX: dict[str, SourceKind] = {
    **dict.fromkeys(PICTURE_SUFFIXES, "folder"),
    ".parquet": "parquet",
    ".tar": "tar",
}
PACKED_TAR = re.compile(r"\.(tgz|tbz2?|txz|tzst|tar\.(gz|bz2|xz|zst))$", re.IGNORECASE)
PACKED_SUFFIXES = frozenset(
    [".tgz", ".tbz", ".tbz2", ".txz", ".tzst", ".gz", ".bz2", ".xz", ".zst"]
)
"""Suffixes of all that `PACKED_TAR` matches."""
PACKED = "a compressed tar: to reach one picture, all before it would be read. Unpack it to a .tar"
TITLES: dict[SourceKind, str] = {
    "folder": "picture files",
    "list": "a list of files",
    "parquet": "Parquet files",
    "tar": "tars, as WebDataset makes them",
    "huggingface": "a Hugging Face dataset, as save_to_disk writes it",
}
LOOKED_AT = 1000
ALLOWED = (
    "Give a folder of pictures, tars or Parquet files, a Hugging Face dataset on disk, a .tar or "
    ".parquet file, or a list of files (.txt, .csv)."
)


class Listed(NamedTuple):
    """A picture that a source lists.

    Args:
        uri: where it lies.
        num_bytes: its size; None when it is out of reach.
        mtime_ns: when its file was last modified.
        problem: why it cannot be opened, if so.
        label: of the source.
        values: of the metadata columns, in their order.
        data: its content, where listing had to read it anyway.
        is_missing: whether no file is there, though something names it.
    """

    uri: str
    num_bytes: int | None
    mtime_ns: int | None
    problem: str | None = None
    label: str | None = None
    values: tuple[Any, ...] = ()
    data: bytes | None = None
    is_missing: bool = False


class Container(NamedTuple):
    """A file that holds many pictures, as it is now."""

    uri: str
    bytes: int
    mtime_ns: int | None


class Ledger(Protocol):
    """What is known of containers."""

    def is_unchanged(self, container: Container) -> bool:
        """Whether the last scan has read all of it as it is; its pictures then count as seen."""

    def has_read(self, container: Container) -> None:
        """Say that all of it has been listed, and that it names no files beside itself."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a source.

    Args:
        place: where it lies.
        labels: ``none``, ``folder``, or a column.
        columns: metadata to carry along.
        picture_column: column of the pictures or their paths; None to recognise it.
    """

    place: Place
    labels: str
    columns: tuple[Column, ...]
    picture_column: str | None = None


class Source(Protocol):
    """Pictures, one after the other, in the same order at every scan."""

    fields: tuple[pa.Field, ...]
    """Names and types of the metadata columns."""
    skipped: dict[str, str]
    """Folders and containers that could not be read (in full), and why; what is known of them
    stays."""

    def listed(self, ledger: Ledger, /) -> Iterator[Listed]:
        """All pictures, but for those of containers that are unchanged."""


def recognise(place: Place) -> tuple[SourceKind, str]:
    """What lies there, and in words why.

    Raises:
        FileNotFoundError: nothing does.
        ValueError: a file that is no source.
    """
    info = place.fs.get_file_info(place.path)
    if info.is_file:
        if PACKED_TAR.search(place.path):
            raise ValueError(f"{place.path}: {PACKED}, and scan that.")
        suffix = suffix_of(place.path)
        kind: SourceKind | None = "list" if suffix in LIST_SUFFIXES else KIND_OF_SUFFIX.get(suffix)
        if kind is None or kind == "folder":
            raise ValueError(
                f"{place.path}: not a source. {ALLOWED} --source-kind says what a file is whose "
                "name does not."
            )
        return kind, f"{place.path}: {TITLES[kind]}"
    if info.type != pafs.FileType.Directory:
        raise FileNotFoundError(f"{place.path}: not there. {ALLOWED}")
    kind = _kind_of_folder(place)
    return kind, f"{place.path}: {TITLES[kind]}"


def _kind_of_folder(place: Place) -> SourceKind:
    marks = ("dataset_dict.json", "dataset_info.json", "state.json")
    several, described, stated = (
        info.is_file for info in place.fs.get_file_info([f"{place.path}/{name}" for name in marks])
    )
    if several or (described and stated):
        return "huggingface"
    counted: Counter[SourceKind] = Counter()
    for number, file in enumerate(walk(place, frozenset(KIND_OF_SUFFIX) | PACKED_SUFFIXES, {})):
        kind = "tar" if PACKED_TAR.search(file.path) else KIND_OF_SUFFIX.get(suffix_of(file.path))
        counted.update([kind] if kind else [])
        if number >= LOOKED_AT:
            break
    return counted.most_common(1)[0][0] if counted else "folder"
