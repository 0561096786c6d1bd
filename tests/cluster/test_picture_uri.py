"""One text says where a picture lies, and reads back to the letter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.picture_uri import (
    PictureUri,
    display_name,
    display_names,
    identity,
    place_of,
    require_no_keys,
)

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@given(folder=NAMES, name=NAMES, start=st.integers(0, 2**50), size=st.integers(0, 2**40))
def test_any_name_survives_the_way_into_a_uri_and_back(
    folder: str, name: str, start: int, size: int
) -> None:
    place = place_of("/")
    path = f"/{folder}/x"
    file = place.uri(path)
    assert place_of(file).path == path.rstrip("/")
    for kind in ("tar", "parquet", "arrow"):
        uri = PictureUri(file, kind, start, size if kind == "tar" else 0, name)  # type: ignore[arg-type]
        assert PictureUri.parse(str(uri)) == uri


@given(folder=NAMES, name=NAMES, kind=st.sampled_from(["file", "tar", "parquet", "arrow"]))
@example(folder="a\nb", name="c\nd.png", kind="file")
def test_names_of_many_are_those_of_each(folder: str, name: str, kind: Any) -> None:
    path = f"/{folder}/{name}"
    file = place_of("/").uri(path)
    uris = [path, str(PictureUri(file, kind, 7, 9, name)), f"s3://b{file[7:]}?region=x/y"]
    assert display_names(pa.chunked_array([uris])).to_pylist() == [*map(display_name, uris)]


def test_a_plain_path_is_taken_to_the_letter() -> None:
    for path in ("/a/b#tar=1,2&member=x.png", "/a/100%25.png", "/a/b?x=1.png"):
        assert PictureUri.parse(path) == PictureUri(path)
        assert identity(path) == path
        assert display_name(path) == path.rsplit("/", 1)[1]


@pytest.mark.parametrize("fragment", ["zip=1", "tar=1&member=x", "tar=1,2", "parquet=x&column=a"])
def test_what_names_no_piece_of_a_file_is_refused(fragment: str) -> None:
    with pytest.raises(ValueError, match="names no picture"):
        PictureUri.parse(f"file:///a.tar#{fragment}")


def test_a_store_is_opened_with_its_options_and_shown_by_name() -> None:
    uri = "s3://bucket/a%20b/c%23.png?endpoint_override=127.0.0.1:1&scheme=http"
    place = place_of(uri)
    assert place.path == "bucket/a b/c#.png"
    assert place.uri(place.path) == uri
    assert display_name(uri) == "c#.png"
    assert place_of(uri).fs is place.fs


def test_a_member_that_moved_within_its_tar_is_the_same_picture() -> None:
    first, moved = (f"file:///a.tar#tar={place}&member=x/1.png" for place in ("512,9", "99840,9"))
    assert identity(first) == identity(moved) != identity("file:///a.tar#tar=512,9&member=y")


@pytest.mark.parametrize("uri", ["s3://KEY:h1dd3n@bucket/x", "s3://h1dd3n@bucket"])
def test_keys_are_kept_out_of_catalogs(uri: str) -> None:
    with pytest.raises(ValueError, match="AWS_ACCESS_KEY_ID") as caught:
        require_no_keys(uri)
    assert "h1dd3n" not in str(caught.value)
    assert require_no_keys("s3://bucket/a@b.png?x=a@b") == "s3://bucket/a@b.png?x=a@b"


def test_other_schemes_are_refused_with_those_that_are_read() -> None:
    with pytest.raises(ValueError, match=r"s3:// and gs://"):
        place_of("https://example.org/a.png")


def test_a_file_uri_is_a_local_path(tmp_path: Path) -> None:
    place = place_of((tmp_path / "a b").as_uri())
    assert (place.is_local, place.path) == (True, str(tmp_path / "a b"))
    assert place.picture_uri(place.path) == place.path
