"""Kill a build at every change it makes to the disk, damage every file: never a wrong answer."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from index import contest
from index.artifact import CorruptArtifactError, MissingArtifactError
from index.build import build_index
from index.choose import IndexConfig
from index.folder import Folder
from index.search import Searcher
from index.vectors import unit
from index.versions import version_names

KINDS = ["exact", "ivf", "pq", "ivf-pq", "hnsw"]

BUILD_KILLED_AT_EACH_STEP = """
    import json, os, signal, sys
    from index.folder import Folder
    from index.build import build_index
    from index.choose import IndexConfig
    from index.embeddings import EmbeddingStore
    import pandas, scipy.special  # what is imported late opens files as well

    def changes_the_disk(event, given):
        if event == "open":
            flags = given[2] if isinstance(given[2], int) else 0
            return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        return event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")

    def dies_at(step):
        left = [step]
        def hook(event, given):
            if changes_the_disk(event, given):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        return hook

    store, folder, config = sys.argv[1], sys.argv[2], IndexConfig(**json.loads(sys.argv[3]))
    for line in sys.stdin:
        child = os.fork()  # nothing that threads has run in this process
        if not child:
            sys.addaudithook(dies_at(int(line)))
            build_index(EmbeddingStore.open(Folder.at(store)), Folder.at(folder), config)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), flush=True)
"""


def brute_force(searcher, query, k):
    rows = np.concatenate([unit(rows) for _, rows in searcher.iter_batches()])
    return np.sort(rows @ query)[::-1][:k]


@pytest.mark.parametrize("kind", ["exact", "ivf-pq"])
def test_a_build_killed_at_any_change_of_the_disk_leaves_the_old_version_serving(
    make_store, tmp_path, clustered, kind
):
    folder = Folder.at(tmp_path / "ix")
    old, new = clustered(60, 8)[0], clustered(80, 8, seed=1)[0]
    build_index(make_store(old, name="old"), folder, IndexConfig())
    store = make_store(new, name="new")
    config = {"kind": kind, "part_rows": 40, "num_queries": 10}
    query = unit(new[:1])[0]
    program = [sys.executable, "-c", textwrap.dedent(BUILD_KILLED_AT_EACH_STEP)]
    child = subprocess.Popen(
        [*program, str(store.folder), str(folder), json.dumps(config)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"},
    )
    with child:
        for step in range(200):
            child.stdin.write(f"{step}\n")
            child.stdin.flush()
            ended = int(child.stdout.readline())
            searcher = Searcher.open(folder)
            expected = brute_force(searcher, query, 5)
            np.testing.assert_allclose(
                searcher.search(query[None], 5, exact=True).scores[0], expected, atol=1e-3
            )
            if ended == 0:
                break
            assert ended == 9
            assert len(searcher) in (60, 80)
        child.stdin.close()
    assert ended == 0
    assert step > 15, "every file is written, and renamed"
    assert len(Searcher.open(folder)) == 80
    assert len(version_names(folder)) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_every_damaged_file_is_noticed_and_a_new_build_repairs_it(
    make_store, tmp_path, clustered, kind
):
    folder = Folder.at(tmp_path / "ix")
    store = make_store(clustered(50, 8)[0])
    config = IndexConfig(kind=kind, num_queries=10, part_rows=30)
    version = build_index(store, folder, config)["version"]
    names = sorted(path.name for path in (tmp_path / "ix" / version).iterdir())
    assert len(names) == 6  # door, page, queries, vectors, two parts
    for name in names:
        path = tmp_path / "ix" / version / name
        whole = path.read_bytes()
        for place in (0, len(whole) // 3, len(whole) // 2, len(whole) - 1):
            data = bytearray(whole)
            data[place] ^= 1 << (place % 8)
            path.write_bytes(data)
            with pytest.raises(CorruptArtifactError):
                Searcher.open(folder)
        # Without its last byte, a line's end, the door still says all that it said.
        for length in (0, 1, len(whole) // 2, len(whole) - 2):
            path.write_bytes(whole[:length])
            with pytest.raises(CorruptArtifactError):
                Searcher.open(folder)
        path.unlink()
        with pytest.raises(CorruptArtifactError):
            Searcher.open(folder)
        rebuilt = build_index(store, folder, config)
        assert rebuilt["reused"] is False
        assert len(Searcher.open(folder)) == 50
        version = rebuilt["version"]


def test_half_a_version_is_ignored_and_cleared_by_the_next_build(
    make_store, tmp_path, monkeypatch, clustered
):
    folder = Folder.at(tmp_path / "ix")
    store = make_store(clustered(50, 8)[0])

    def fail(*args, **kwargs):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(contest, "judge", fail)
        with pytest.raises(OSError, match="disk full"):
            build_index(store, folder, IndexConfig())
    assert version_names(folder) == ["v000001"]
    with pytest.raises(MissingArtifactError, match="lookalike index"):
        Searcher.open(folder)
    build_index(store, folder, IndexConfig())
    assert Searcher.open(folder).search(np.ones((1, 8)), 1).ids.shape == (1, 1)
    assert len(version_names(folder)) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 2.0])
def test_a_vector_without_a_direction_is_refused_by_its_picture(
    make_store, tmp_path, clustered, value, monkeypatch
):
    """As another program may have written it: the embed job marks such rows itself."""
    store = make_store(clustered(40, 8)[0])
    stream = store.iter_stored

    def damaged(*args):
        for ids, vectors in stream(*args):
            spoiled = vectors.copy()
            spoiled[7] = value
            yield ids, spoiled

    monkeypatch.setattr(store, "iter_stored", damaged)
    with pytest.raises(CorruptArtifactError, match=r"picture 26 has norm .* Embed the corpus"):
        build_index(store, Folder.at(tmp_path / "ix"), IndexConfig())


def test_ids_that_come_twice_are_refused(make_store, tmp_path, clustered, monkeypatch):
    store = make_store(clustered(40, 8)[0])
    stream = store.iter_stored

    def twice(*args):
        yield from stream(*args)
        yield from stream(*args)

    monkeypatch.setattr(store, "iter_stored", twice)
    with pytest.raises(ValueError, match="unique, rising"):
        build_index(store, Folder.at(tmp_path / "ix"), IndexConfig())


def test_shards_of_another_dimension_than_the_set_are_refused(make_store, tmp_path, clustered):
    store = make_store(clustered(40, 8)[0])
    store.dim = 6
    with pytest.raises(CorruptArtifactError, match=r"has no vector\. Embed the corpus again"):
        build_index(store, Folder.at(tmp_path / "ix"), IndexConfig())
