"""Small files of a bucket that others delete or replace just as they are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cluster.picture_uri import Place
from index.folder import MAX_READS, Folder


class Meanwhile:
    """A filesystem on which something happens each time that a file was opened."""

    def __init__(self, fs: Any, happens: Callable[[], object]) -> None:
        self._fs = fs
        self._happens = happens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fs, name)

    def open_input_file(self, path: str) -> Any:
        stream = self._fs.open_input_file(path)
        self._happens()
        return stream


@pytest.fixture
def folder(bucket: Place) -> Folder:
    return Folder(bucket.fs, f"{bucket.path}/reads")


def raced(folder: Folder, *acts: Callable[[], object]) -> Folder:
    """The folder, with one of the acts after each opening, while there are some left."""
    left = list(acts)
    return Folder(Meanwhile(folder.fs, lambda: left and left.pop(0)()), folder.path)


def test_what_is_deleted_as_it_is_read_was_there_or_is_not(folder: Folder) -> None:
    folder.write_atomic("1.attempts", b"1")
    gone = raced(folder, lambda: folder.remove("1.attempts"))
    # Google's client begins to read as it opens, Amazon's gets an answer that is not the object.
    assert gone.read_if_there("1.attempts") in (None, b"1")
    with pytest.raises(FileNotFoundError):
        gone.read_bytes("1.attempts")


def test_what_is_replaced_as_it_is_read_is_read_whole(folder: Folder) -> None:
    longer, shorter = b"a longer text", b"short"
    for before, after in ((shorter, longer), (longer, shorter)):
        folder.write_atomic("CURRENT", before)

        def replace(after: bytes = after) -> None:
            folder.write_atomic("CURRENT", after)

        assert raced(folder, replace).read_bytes("CURRENT") in (before, after)


def test_what_never_holds_still_is_said_to_be_replaced(folder: Folder) -> None:
    folder.write_atomic("CURRENT", b"1")
    sizes = iter(range(2, 100))
    acts = [lambda: folder.write_atomic("CURRENT", b"1" * next(sizes))] * MAX_READS
    with pytest.raises(OSError, match="replaced by others"):
        raced(folder, *acts).read_bytes("CURRENT")


def test_a_folder_that_appears_as_it_is_listed_is_listed(tmp_path: Any) -> None:
    """pyarrow lists first, and looks whether the folder exists where that fails."""

    class Appears:
        type_name = "local"

        def __init__(self, fs: Any) -> None:
            self._fs, self._failed = fs, False

        def get_file_info(self, selector: Any) -> Any:
            if not self._failed:
                self._failed = True
                raise FileNotFoundError(2, "Cannot list directory")
            return self._fs.get_file_info(selector)

    real = Folder.at(tmp_path)
    real.write_atomic("here", b"")
    assert Folder(Appears(real.fs), real.path).names() == ["here"]
