"""Kill each change of an index at every change it makes to the disk; damage every file of it."""

import json
import os
import resource
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from index.artifact import CorruptArtifactError
from index.choose import IndexConfig
from index.embeddings import EmbeddingStore
from index.folder import Folder
from index.lock import sole_writer
from index.removal import remove_pictures
from index.search import Searcher
from index.service import ProbeError
from index.update import Instructions, compact_index, update_index
from index.vectors import unit
from index.versions import collect, list_versions, open_current, version_names

CONFIG = {"kind": "ivf", "num_queries": 20, "part_rows": 60}

KILLED_AT_EACH_STEP = """
    import json, os, signal, sys
    import numpy as np
    import pandas, scipy.special  # what is imported late opens files as well
    from index.folder import Folder
    from index.choose import IndexConfig
    from index.embeddings import EmbeddingStore
    from index.removal import remove_pictures
    from index.update import compact_index, update_index

    CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link")

    def changes_the_disk(event, given):
        if event == "open":
            flags = given[2] if isinstance(given[2], int) else 0
            return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        return event in CHANGES

    def dies_at(step):
        left = [step]
        def hook(event, given):
            if changes_the_disk(event, given):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        return hook

    folder, place, config = Folder.at(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    for line in sys.stdin:
        step, change = line.split()
        child = os.fork()  # nothing that threads has run in this process
        if not child:
            sys.addaudithook(dies_at(int(step)))
            if change == "update":
                update_index(EmbeddingStore.open(Folder.at(place)), folder, IndexConfig(**config))
            elif change == "remove":
                remove_pictures(folder, np.array([5, 8, 11]))
            else:
                compact_index(folder)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), flush=True)
"""


@pytest.fixture
def layered(make_store, tmp_path, clustered):
    """An index with a delta, dead rows and removed pictures; its folder, and a set to follow."""
    vectors = clustered(130, 8)[0]
    folder = Folder.at(tmp_path / "ix")
    update_index(make_store(vectors[:100], name="one"), folder, IndexConfig(**CONFIG))
    update_index(make_store(vectors[:110], name="two"), folder, IndexConfig(**CONFIG))
    remove_pictures(folder, np.array([14, 17]))
    return folder, make_store(vectors, name="three")


def held(folder):
    """What the version in service holds, checked by brute force: its ids."""
    searcher = Searcher.open(folder)
    streamed = list(searcher.iter_batches())
    vectors = np.concatenate([rows for _, rows in streamed])
    query = unit(np.arange(1, 9)[None])
    truth = np.sort(vectors @ query[0])[::-1][:7]
    found = searcher.search(query, 7, exact=True)
    np.testing.assert_allclose(found.scores[0], truth, atol=1e-5)
    assert np.isin(found.ids, searcher.ids).all()
    return tuple(searcher.ids.tolist())


@pytest.mark.parametrize(
    "change",
    [
        "update",
        pytest.param("remove", marks=pytest.mark.slow),
        pytest.param("compact", marks=pytest.mark.slow),
    ],
)
def test_a_change_killed_at_any_change_of_the_disk_is_done_in_full_or_not_at_all(
    layered, tmp_path, change
):
    folder, store = layered
    before = held(folder)
    shutil.copytree(tmp_path / "ix", tmp_path / "whole")
    after = Folder.at(tmp_path / "whole")
    run = {
        "update": lambda: update_index(store, after, IndexConfig(**CONFIG)),
        "remove": lambda: remove_pictures(after, np.array([5, 8, 11])),
        "compact": lambda: compact_index(after),
    }
    run[change]()
    done = held(after)
    program = [sys.executable, "-c", textwrap.dedent(KILLED_AT_EACH_STEP)]
    child = subprocess.Popen(
        [*program, str(folder), str(store.folder), json.dumps(CONFIG)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"},
    )
    ended = -1
    with child:
        for step in range(100):
            child.stdin.write(f"{step} {change}\n")
            child.stdin.flush()
            ended = int(child.stdout.readline())
            assert held(folder) in (before, done)
            if ended == 0:
                break
            assert ended == 9
        child.stdin.close()
    assert ended == 0
    assert step > 15, "every file is written, and renamed"
    assert held(folder) == done
    collect(folder)  # a kill may have left what a change deletes last
    assert len(version_names(folder)) == 2


def test_every_damaged_file_of_a_changed_version_is_noticed_and_a_rebuild_repairs_it(
    layered, tmp_path
):
    folder, store = layered
    version = Searcher.open(folder).version
    names = sorted(path.name for path in (tmp_path / "ix" / version).iterdir())
    assert {"dead.arrow", "delta.arrow", "delta.faiss", "removed.arrow"} < set(names)
    for name in names:
        path = tmp_path / "ix" / version / name
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            data = bytearray(whole)
            data[place] ^= 1 << (place % 8)
            path.write_bytes(data)
            with pytest.raises(CorruptArtifactError):
                Searcher.open(folder)
            with pytest.raises(CorruptArtifactError):
                compact_index(folder)
            if name.endswith(".arrow") and name != "vectors.arrow":
                with pytest.raises(CorruptArtifactError):
                    remove_pictures(folder, np.array([20]))
        for length in (0, len(whole) // 2, len(whole) - 2):
            path.write_bytes(whole[:length])
            with pytest.raises(CorruptArtifactError):
                Searcher.open(folder)
            with pytest.raises(CorruptArtifactError):
                remove_pictures(folder, np.array([20]))
        path.write_bytes(whole)
    held(folder)
    (tmp_path / "ix" / version / "vectors.arrow").unlink()
    done = update_index(store, folder, IndexConfig(**CONFIG))
    assert (done.action, done.why) == ("built", "the version in service is damaged")
    assert len(held(folder)) == 128
    assert not {14, 17} & set(held(folder)), "what was removed by hand stays out"


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("part-ivf-00000.faiss", slice(4)),  # what FAISS refuses
        ("part-ivf-00000.faiss", slice(1000, 5000)),  # what it reads, and finds little in
        ("vectors.arrow", slice(-6, None)),
    ],
)
def test_a_removal_that_fails_over_damage_tells_of_it(layered, tmp_path, name, where):
    folder, _ = layered
    version = Searcher.open(folder).version
    path = tmp_path / "ix" / version / name
    data = bytearray(path.read_bytes())
    data[where] = bytes(len(data[where]))
    path.write_bytes(data)
    with pytest.raises(CorruptArtifactError, match=name):
        remove_pictures(folder, np.array([20]))
    assert open_current(folder, verify="sizes")[0] == version


def test_a_full_disk_leaves_the_version_in_service(layered):
    folder, store = layered
    before, bytes_before = held(folder), folder.read_bytes("CURRENT")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for change in (
        lambda: update_index(store, folder, IndexConfig(**CONFIG)),
        lambda: remove_pictures(folder, np.array([5])),
        lambda: compact_index(folder),
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                change()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert held(folder) == before
        assert folder.read_bytes("CURRENT") == bytes_before
    assert update_index(store, folder, IndexConfig(**CONFIG)).action == "changed"
    assert [one.damage for one in list_versions(folder, verify="full")] == [None, None]


def test_a_disk_without_links_holds_copies(layered, monkeypatch):
    folder, _ = layered

    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("index.durable.os.link", refuse)
    version = remove_pictures(folder, np.array([5])).version
    file = folder.local_path(f"{version}/vectors.arrow")
    assert file.stat().st_nlink == 1
    assert 5 not in held(folder)


def test_a_change_beside_another_is_refused(layered):
    folder, store = layered
    with sole_writer(folder, "changing this index"):
        for change in (
            lambda: update_index(store, folder, IndexConfig(**CONFIG)),
            lambda: remove_pictures(folder, np.array([5])),
            lambda: compact_index(folder),
        ):
            with pytest.raises(ValueError, match=r"another process is .*Wait until it has"):
                change()


def test_a_reader_keeps_its_version_while_it_is_changed_compacted_and_collected(layered):
    folder, store = layered
    pinned = Searcher.open(folder)
    queries = pinned.vectors_of(pinned.ids[:5])
    before = pinned.search(queries, 10).ids.tolist()
    update_index(store, folder, IndexConfig(**CONFIG))
    remove_pictures(folder, pinned.ids[:30])
    compact_index(folder)
    assert collect(folder, keep=1)
    assert pinned.version not in version_names(folder)
    assert pinned.search(queries, 10).ids.tolist() == before
    assert not np.isin(pinned.ids[:30], held(folder)).any()


def test_a_version_that_was_deleted_while_it_was_opened_is_opened_anew(layered, monkeypatch):
    """Two changes follow each other while a reader is between the pointer and the files."""
    folder, _ = layered
    started = threading.Event()

    def changes():
        for picture in (5, 8, 11):
            remove_pictures(folder, np.array([picture]))

    really_init = Searcher.__init__

    def late(self, *given, **options):
        if not started.is_set():
            started.set()
            other = threading.Thread(target=changes)
            other.start()
            other.join()
        really_init(self, *given, **options)

    monkeypatch.setattr(Searcher, "__init__", late)
    assert 11 not in Searcher.open(folder).ids


def test_a_version_that_does_not_answer_its_queries_is_not_put_in_service(layered, monkeypatch):
    folder, store = layered
    before = folder.read_bytes("CURRENT")
    monkeypatch.setattr("index.service.recall_at_k", lambda *_: np.zeros(3))
    for change in (
        lambda: update_index(store, folder, IndexConfig(**CONFIG)),
        lambda: update_index(store, folder, IndexConfig(**CONFIG), told=Instructions(rebuild=True)),
        lambda: compact_index(folder),
    ):
        with pytest.raises(ProbeError, match="The version before stays in service"):
            change()
        assert folder.read_bytes("CURRENT") == before
    assert EmbeddingStore.open(store.folder).num_rows == 130
