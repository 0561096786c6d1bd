"""Where a picture's bytes lie, as one text.

====================================  ============================================================
``/folder/a.png``                     a file on this machine, its path to the letter
``s3://BUCKET/KEY?OPTIONS``           an object, percent-encoded; ``gs://`` likewise, and
                                      ``gs://anonymous@BUCKET/KEY`` where no key is needed
``FILE#tar=OFFSET,SIZE&member=NAME``  a member of a tar, to be read in one piece
``FILE#parquet=ROW&column=NAME``      a row of a Parquet file; ``image.bytes`` is a struct's field
``FILE#arrow=ROW&column=NAME``        a row of an Arrow file, as Hugging Face datasets are saved
====================================  ============================================================

``FILE`` is a URI, percent-encoded: ``file:///folder/a.tar`` on this machine. No URI holds a key.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple
from urllib.parse import quote, unquote, urlsplit

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs as pafs

from index.uri import open_uri

__all__ = [
    "PictureUri",
    "Place",
    "display_name",
    "display_names",
    "identity",
    "lies_in_table",
    "place_of",
    "require_no_keys",
]

REMOTE = ("s3", "gs")
SAFE = "/!$'()*,;:@~"

TO_NAMES = (
    (r"(?s)^[^#]*#tar=[^&]*&member=", ""),
    (r"(?s)^[^#?]*/([^#?]*)[^#]*#(?:parquet|arrow)=([0-9]+)&.*", r"\1 row \2"),
    (r"(?s)\?.*", ""),
    (r"(?s)^.*/", ""),
)
"""What is left of a URI after these, one after the other, is a picture's name, percent-encoded."""

ANONYMOUS = "anonymous@"
"""What stands before a bucket of Google's that everyone may read; it is no key."""


class PictureUri(NamedTuple):
    """A picture's place: a whole file, or a piece of one.

    Args:
        file: path or URI of the file.
        kind: ``file`` for a whole one, else how the file is read.
        start: offset in bytes within a tar, else the row.
        size: bytes of a tar's member; 0 for rows.
        name: a tar's member or a table's column.
    """

    file: str
    kind: Literal["file", "tar", "parquet", "arrow"] = "file"
    start: int = 0
    size: int = 0
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> PictureUri:
        """The place that a text names.

        >>> PictureUri.parse("file:///a.tar#tar=512,70&member=x/1.png")
        PictureUri(file='file:///a.tar', kind='tar', start=512, size=70, name='x/1.png')

        Raises:
            ValueError: no such form.
        """
        if text.startswith("/") or "#" not in text:
            return cls(text)
        file, _, fragment = text.partition("#")
        pairs = dict(part.partition("=")[::2] for part in fragment.split("&"))
        try:
            if "tar" in pairs:
                offset, size = map(int, pairs["tar"].split(","))
                return cls(file, "tar", offset, size, unquote(pairs["member"]))
            if "parquet" in pairs:
                return cls(file, "parquet", int(pairs["parquet"]), 0, unquote(pairs["column"]))
            return cls(file, "arrow", int(pairs["arrow"]), 0, unquote(pairs["column"]))
        except (KeyError, ValueError):
            raise ValueError(
                f"{text}: names no picture. Allowed are a path, a URI, and a URI that ends in "
                "#tar=OFFSET,SIZE&member=NAME, #parquet=ROW&column=NAME or #arrow=ROW&column=NAME. "
                "Scan the source again."
            ) from None

    def __str__(self) -> str:
        if self.kind == "file":
            return self.file
        name = quote(self.name, safe=SAFE)
        if self.kind == "tar":
            return f"{self.file}#tar={self.start},{self.size}&member={name}"
        return f"{self.file}#{self.kind}={self.start}&column={name}"


class Place(NamedTuple):
    """A file or folder as pyarrow reaches it; ``base`` and a path below it make a URI again."""

    fs: pafs.FileSystem
    path: str
    base: str

    @property
    def is_local(self) -> bool:
        """Whether it lies on a disk of this machine."""
        return isinstance(self.fs, pafs.LocalFileSystem)

    def uri(self, path: str) -> str:
        """The URI of another path of the same filesystem, percent-encoded."""
        scheme, _, options = self.base.partition("?")
        return f"{scheme}{quote(path, safe=SAFE)}" + (f"?{options}" if options else "")

    def picture_uri(self, path: str) -> str:
        """The text that names the whole file as a picture: a plain path where it is local."""
        return path if self.is_local else self.uri(path)


def place_of(file: str) -> Place:
    """Where a path or URI leads.

    Raises:
        ValueError: a scheme that is not read here, or a URI that cannot be opened.
    """
    if "://" not in file:
        return Place(_LOCAL, file, "file://")
    scheme, netloc, path, options, _ = urlsplit(file)
    if scheme == "file":
        if netloc not in ("", "localhost") or not path:
            raise ValueError(
                "file://...: names no file of this machine. Such a URI has three slashes, as in "
                "file:///folder/a.png. Correct it."
            )
        return Place(_LOCAL, unquote(path), "file://")
    if scheme not in REMOTE:
        raise ValueError(
            f"{scheme}://...: pictures are read from paths and from file://, s3:// and gs:// URIs. "
            "Copy them to one of these."
        )
    fs, bucket = _filesystem(f"{scheme}://{netloc}" + (f"?{options}" if options else ""))
    who = ANONYMOUS if scheme == "gs" and netloc.startswith(ANONYMOUS) else ""
    base = f"{scheme}://{who}" + (f"?{options}" if options else "")
    return Place(fs, f"{bucket}{unquote(path)}".rstrip("/"), base)


def require_no_keys(uri: str) -> str:
    """The URI itself, if it carries no key: a catalog would keep it for everyone to read.

    Raises:
        ValueError: it does.
    """
    scheme, _, rest = uri.partition("://")
    place = rest.partition("?")[0].partition("/")[0]
    if scheme == "gs":
        place = place.removeprefix(ANONYMOUS)
    if scheme in REMOTE and "@" in place:
        raise ValueError(
            f"{scheme}://...@...: the key in this URI would be written into the catalog. Leave it "
            "out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or the machine's role; "
            "GOOGLE_APPLICATION_CREDENTIALS for gs) wherever pictures are read."
        )
    return uri


def identity(uri: str) -> str:
    """What a picture is recognised by: its place, but for where in its tar a member lies.

    >>> identity("file:///a.tar#tar=512,70&member=x/1.png")
    'file:///a.tar#member=x/1.png'
    """
    if uri.startswith("/") or "#tar=" not in uri:
        return uri
    file, _, fragment = uri.partition("#")
    return f"{file}#{fragment.partition('&')[2]}"


def lies_in_table(uri: str) -> bool:
    """Whether a picture is a row of a table, which has to be read from further up on.

    >>> [lies_in_table(f"{start}#parquet=17&column=image") for start in ("file:///a.parquet", "/a")]
    [True, False]
    """
    return not uri.startswith("/") and ("#parquet=" in uri or "#arrow=" in uri)


def display_name(uri: str) -> str:
    """A picture's own name, without the folder it lies in: what may be shown to anybody.

    >>> display_name("/pictures/cats/a#1.png")
    'a#1.png'
    >>> display_name("s3://bucket/cats/a%20b.png?region=eu-west-1")
    'a b.png'
    >>> display_name("file:///data/x.parquet#parquet=17&column=image.bytes")
    'x.parquet row 17'
    """
    if uri.startswith("/"):
        return uri.rsplit("/", 1)[-1]
    place = PictureUri.parse(uri)
    if place.kind == "tar":
        return place.name.rsplit("/", 1)[-1]
    file = unquote(place.file.partition("?")[0]).rsplit("/", 1)[-1]
    return file if place.kind == "file" else f"{file} row {place.start}"


def display_names(uris: pa.ChunkedArray) -> pa.ChunkedArray:
    """`display_name` of each of many, without a Python object for any but those with a ``%``."""
    return pa.chunked_array([_names(chunk) for chunk in uris.chunks], pa.string())


def _names(uris: pa.StringArray) -> pa.StringArray:
    names = uris
    for pattern, replacement in TO_NAMES:
        names = pc.replace_substring_regex(names, pattern=pattern, replacement=replacement)
    coded = pc.match_substring(names, "%")
    decoded = (unquote(name).rsplit("/", 1)[-1] for name in names.filter(coded).to_pylist())
    of_paths = pc.replace_substring_regex(uris, pattern=r"(?s)^.*/", replacement="")
    of_uris = pc.replace_with_mask(names, coded, pa.array(decoded, pa.string()))
    return pc.if_else(pc.starts_with(uris, "/"), of_paths, of_uris)


_LOCAL = pafs.LocalFileSystem()


@functools.lru_cache(maxsize=64)
def _filesystem(base: str) -> tuple[pafs.FileSystem, str]:
    return open_uri(base)
