import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs as pafs

from index import artifact, uri
from index.artifact import (
    ArtifactError,
    CorruptArtifactError,
    MissingArtifactError,
    NewerSchemaError,
    digest,
    open_door,
    publish,
    require_inside,
    write_json,
)
from index.folder import Folder

BODY = {"id": "x1", "config": {"size": 3}, "parents": {}, "rows": {"ok": 2}, "versions": {}}


def mock_store() -> Folder:
    return Folder(pafs._MockFileSystem(), "bucket/work")


def memory_store() -> Folder:
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()  # it is shared by the whole process
    filesystem.pseudo_dirs[:] = [""]
    return Folder(pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), "/bucket/work")


@pytest.fixture(params=["local", "mock", "memory"])
def folder(request, tmp_path) -> Folder:
    if request.param == "local":
        return Folder.at(tmp_path / "work")
    store = mock_store() if request.param == "mock" else memory_store()
    store.fs.create_dir("/bucket" if request.param == "memory" else "bucket")
    return store


def published(folder: Folder) -> Folder:
    folder.write_atomic("rows.bin", bytes(range(200)))
    folder.write_atomic("shards/a.bin", b"shard")
    publish(folder, "corpus", BODY, ["rows.bin", "shards/a.bin"])
    return folder


def test_what_is_published_is_what_is_opened_on_every_filesystem(folder):
    published(folder)
    door = open_door(folder, "corpus")
    assert door["id"] == "x1"
    assert door["rows"] == {"ok": 2}
    assert set(door["files"]) == {"rows.bin", "shards/a.bin"}
    assert folder.read_bytes("shards/a.bin") == b"shard"
    assert open_door(folder, "corpus", verify="sizes") == door


def test_a_missing_door_is_a_missing_artefact(folder):
    with pytest.raises(MissingArtifactError, match="no corpus is published"):
        open_door(folder, "corpus")


def test_a_missing_file_is_noticed_by_both_checks(folder):
    published(folder).remove("rows.bin")
    for verify in ("full", "sizes"):
        with pytest.raises(CorruptArtifactError, match="missing"):
            open_door(folder, "corpus", verify=verify)


def test_a_truncated_file_is_noticed_by_both_checks(folder):
    published(folder).write_atomic("rows.bin", b"short")
    for verify in ("full", "sizes"):
        with pytest.raises(CorruptArtifactError, match="5 bytes, published with 200"):
            open_door(folder, "corpus", verify=verify)


@given(position=st.integers(0, 199), bit=st.integers(0, 7))
def test_any_flipped_bit_of_a_file_is_noticed(position, bit):
    folder = published(mock_store_with_bucket())
    data = bytearray(folder.read_bytes("rows.bin"))
    data[position] ^= 1 << bit
    folder.write_atomic("rows.bin", bytes(data))
    with pytest.raises(CorruptArtifactError, match="sha256"):
        open_door(folder, "corpus")


def mock_store_with_bucket() -> Folder:
    store = mock_store()
    store.fs.create_dir("bucket")
    return store


def test_every_flipped_bit_of_the_door_is_noticed_or_changes_nothing():
    folder = published(mock_store_with_bucket())
    whole = folder.read_bytes("corpus.json")
    truth = open_door(folder, "corpus")
    for position in range(len(whole)):
        for bit in range(8):
            data = bytearray(whole)
            data[position] ^= 1 << bit
            folder.write_atomic("corpus.json", bytes(data))
            try:
                assert open_door(folder, "corpus", verify="sizes") == truth
            except ArtifactError:
                continue


def test_every_truncation_of_the_door_is_noticed():
    folder = published(mock_store_with_bucket())
    whole = folder.read_bytes("corpus.json")
    for length in range(len(whole) - 1):
        folder.write_atomic("corpus.json", whole[:length])
        with pytest.raises(CorruptArtifactError):
            open_door(folder, "corpus")


@pytest.mark.parametrize(
    "door",
    [
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe",
        b'{"schema_version": NaN}',
        b'{"schema_version": 1, "mean": [0.01e345], "door_sha256": ""}',
    ],
)
def test_a_door_that_is_no_door_is_corrupt(folder, door):
    published(folder).write_atomic("corpus.json", door)
    with pytest.raises(CorruptArtifactError, match="not a readable corpus"):
        open_door(folder, "corpus")


def test_an_artefact_of_another_kind_is_refused(folder):
    published(folder).write_atomic("index.json", folder.read_bytes("corpus.json"))
    with pytest.raises(CorruptArtifactError, match="not a index"):
        open_door(folder, "index")


def test_a_newer_schema_is_refused_politely(folder, monkeypatch):
    monkeypatch.setattr(artifact, "SCHEMA_VERSION", artifact.NEWEST_SCHEMA + 1)
    published(folder)
    with pytest.raises(NewerSchemaError, match="Upgrade lookalike"):
        open_door(folder, "corpus")


def test_an_older_schema_opens(folder, monkeypatch):
    published(folder)
    monkeypatch.setattr(artifact, "NEWEST_SCHEMA", 9)
    assert open_door(folder, "corpus")["schema_version"] == 1


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a//b", "", ".", "a/../b", "a\\b", "a\0b"])
def test_names_that_lead_outside_are_refused_everywhere(folder, name):
    with pytest.raises(ValueError, match="cannot name something inside"):
        require_inside(name)
    with pytest.raises(ValueError, match="cannot name something inside"):
        folder / name
    with pytest.raises(ValueError, match="cannot name something inside"):
        folder.write_atomic(name, b"")
    with pytest.raises(ValueError, match="cannot name something inside"):
        publish(folder, "corpus", BODY, [name])


def test_a_forged_door_cannot_reach_outside_its_folder(folder):
    published(folder)
    door = open_door(folder, "corpus")
    del door["door_sha256"]
    door["files"] = {"../secret": {"bytes": 1, "sha256": "0" * 64}}
    write_json(folder, "corpus.json", {**door, "door_sha256": digest(door)})
    with pytest.raises(ValueError, match="cannot name something inside"):
        open_door(folder, "corpus")


@pytest.mark.parametrize("name", ["naïve ünïcode", "a'b\"c", "new\nline", "${40+2}", "עברית"])
def test_odd_but_harmless_names_work(folder, name):
    (folder / name).write_atomic("f.bin", b"1")
    publish(folder / name, "corpus", BODY, ["f.bin"])
    assert open_door(folder / name, "corpus")["id"] == "x1"
    assert name in folder.names()


def test_publishing_a_file_that_is_not_there_is_refused(folder):
    with pytest.raises(MissingArtifactError, match=r"gone\.bin"):
        publish(folder, "corpus", BODY, ["gone.bin"])


def test_known_hashes_are_taken_over_but_sizes_are_checked(folder):
    record = folder.write_hashed("a.bin", lambda path: Path(path).write_bytes(b"abc"))
    assert record == {"bytes": 3, "sha256": folder.sha256("a.bin")}
    publish(folder, "corpus", BODY, {"a.bin": record})
    assert open_door(folder, "corpus")["files"] == {"a.bin": record}
    folder.write_atomic("a.bin", b"abcd")
    with pytest.raises(CorruptArtifactError, match="4 bytes, written with 3"):
        publish(folder, "corpus", BODY, {"a.bin": record})


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    folder = published(Folder.at(tmp_path))
    before = folder.names()

    def fail(path: str) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        folder.write_with("rows.bin", fail)
    assert folder.read_bytes("rows.bin") == bytes(range(200))
    assert folder.names() == before


def test_what_interrupts_a_put_leaves_no_short_object(tmp_path, monkeypatch):
    """A stream that is left early still closes, and an object store then takes what it has."""
    folder = Folder(pafs.SubTreeFileSystem("/", pafs.LocalFileSystem()), str(tmp_path))
    folder.write_atomic("rows.bin", b"old")
    monkeypatch.setattr(uri, "PIECE_BYTES", 2)
    once = uri._copy

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)  # in which the interrupt reaches the thread that waits
        once(*arguments)

    monkeypatch.setattr(uri, "_copy", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has none
    try:
        with pytest.raises(KeyboardInterrupt):
            folder.write_atomic("rows.bin", b"new rows")
    finally:
        signal.signal(signal.SIGINT, before)
    for thread in set(threading.enumerate()) - {threading.current_thread()}:
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join(10)
    assert folder.read_bytes("rows.bin") in (b"old", b"new rows")


KILLED_WRITER = """
    import os, signal, sys
    from pathlib import Path
    from index import artifact
    from index.artifact import publish
    from index.folder import Folder

    remaining = int(sys.argv[2])

    def dies_in_time(function):
        def wrapped(*args, **kwargs):
            global remaining
            remaining -= 1
            if remaining < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return wrapped

    # Every system call of a write, before which the process may die.
    Path.write_bytes = dies_in_time(Path.write_bytes)
    Path.replace = dies_in_time(Path.replace)
    os.fsync = dies_in_time(os.fsync)
    folder = Folder.at(sys.argv[1])
    folder.write_atomic("new.bin", b"new rows")
    publish(folder, "corpus", {"id": "new"}, ["new.bin"])
"""


def test_killed_at_any_step_an_artefact_is_old_or_new_but_never_half(tmp_path):
    seen = []
    for step in range(12):
        folder = Folder.at(tmp_path / str(step))
        folder.write_atomic("old.bin", b"old rows")
        publish(folder, "corpus", {"id": "old"}, ["old.bin"])
        code = [sys.executable, "-c", textwrap.dedent(KILLED_WRITER), str(folder), str(step)]
        done = subprocess.run(code, check=False, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
        seen.append(open_door(folder, "corpus")["id"])
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert done.returncode == 0, "the writer has to get through in the end"
    assert len(seen) >= 8
    assert seen == sorted(seen, reverse=True), "old until the one rename, new from then on"
    assert seen[-1] == "new"


def test_digest_does_not_depend_on_the_order_of_keys_and_refuses_nan():
    assert digest({"a": 1, "b": [1.5, None]}) == digest({"b": [1.5, None], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    with pytest.raises(ValueError, match="JSON"):
        digest({"a": float("nan")})


def test_the_door_is_json_that_a_person_can_read(folder):
    text = published(folder).read_bytes("corpus.json").decode()
    assert json.loads(text)["kind"] == "corpus"
    assert text.count("\n") > 10


def test_files_of_a_superseded_version_are_removed_by_prefix(folder, monkeypatch):
    for name in ("head-a", "head-b", "card"):
        folder.write_atomic(name, b"1")
    monkeypatch.setattr("index.folder.SETTLED_NS", 0)
    folder.remove_others("head-", keep=["head-b"])
    assert folder.names() == ["card", "head-b"]
