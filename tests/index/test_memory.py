"""The memory limit, watched from outside: the kernel's own high-water mark of the process."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from index.embeddings import ShardBatch, publish_embeddings, write_shard
from index.folder import Folder

# VmHWM counts anonymous memory and the pages of maps alike. The baseline is taken after a tiny
# build of every kind, when all libraries are loaded and have made their pools.
BUILD = """
    import json, sys, tempfile
    from pathlib import Path
    import numpy as np
    from index.folder import Folder
    from index.build import build_index
    from index.choose import IndexConfig
    from index.embeddings import EmbeddingStore

    def status(key):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

    tiny, store, folder, memory, num_queries, kind = sys.argv[1:]
    wanted = IndexConfig(memory=memory, num_queries=int(num_queries), kind=kind)
    for kind in ("exact", "ivf", "ivf-pq", "hnsw"):
        with tempfile.TemporaryDirectory() as scratch:
            config = IndexConfig(kind=kind, memory="100MB")
            build_index(EmbeddingStore.open(Folder.at(tiny)), Folder.at(scratch), config)
    opened = EmbeddingStore.open(Folder.at(store))
    baseline = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the mark starts anew
    door = build_index(opened, Folder.at(folder), wanted)
    print(json.dumps({"over": status("VmHWM") - baseline, "door": door}))
"""


def write_corpus(folder, num_rows, dim, shard_rows=4096):
    """Class-sorted clusters, streamed to disk."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(2000, dim)).astype(np.float32)
    records = []
    for number, start in enumerate(range(0, num_rows, shard_rows)):
        ids = np.arange(start, min(start + shard_rows, num_rows), dtype=np.int64)
        noise = rng.standard_normal((len(ids), dim), np.float32)
        batch = ShardBatch(
            ids=2 * ids + 1,
            statuses=["ok"] * len(ids),
            content_hashes=[bytes(32)] * len(ids),
            vectors=centres[ids * len(centres) // num_rows] + 0.7 * noise,
        )
        name, thumbnails = f"{number:05d}-aa", [None] * len(ids)
        records.append(write_shard(folder, name, batch, thumbnails=thumbnails))
    parents = {"encoder_id": "e", "corpus_id": "c", "corpus_uid": "u"}
    publish_embeddings(folder, records, {"parents": parents, "config": {"layer": "backbone"}})


def build_within(tmp_path, num_rows, memory, num_queries, kind="auto"):
    write_corpus(Folder.at(tmp_path / "tiny"), 2000, 128)
    write_corpus(Folder.at(tmp_path / "store"), num_rows, 128)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BUILD)]
        + [str(tmp_path / name) for name in ("tiny", "store", "ix")]
        + [memory, str(num_queries), kind],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    return json.loads(done.stdout)


linux = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the mark is Linux's own"
)


@linux
@pytest.mark.timeout(900)
def test_a_build_keeps_to_its_memory(tmp_path):
    built = build_within(tmp_path, 300_000, "64MB", 300)
    assert built["over"] <= 64_000_000, "the vectors alone are 77 MB"
    assert built["door"]["recall"]["low"] >= 0.95
    assert built["door"]["recipe"]["kind"] == "ivf-pq"
    assert "more than the 64 MB allowed" in built["door"]["left_out"][0]["why"]


@linux
@pytest.mark.timeout(900)
def test_a_graph_that_does_not_fit_is_built_in_parts_within_its_memory(tmp_path):
    built = build_within(tmp_path, 100_000, "48MB", 300, kind="hnsw")
    assert built["over"] <= 48_000_000
    assert built["door"]["recall"]["low"] >= 0.95
    assert len(built["door"]["parts"]) > 1


@linux
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_million_vectors_are_indexed_within_512_megabytes(tmp_path):
    built = build_within(tmp_path, 5_000_000, "512MB", 1000)
    assert built["over"] <= 512_000_000
    assert built["door"]["recall"]["low"] >= 0.95
    assert built["door"]["rows"] == 5_000_000
    assert sum(part["rows"] for part in built["door"]["parts"]) == 5_000_000
