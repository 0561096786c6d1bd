"""An index that pictures come to and go from, round after round, and what each change costs.

``python -m benchmarks.living_index --rows 200000 --rounds 10``: clustered unit vectors, sorted by
class; each round one in a hundred comes, as many go, half as many are replaced, and as many are
removed by hand. The middle of the clusters wanders, so that what comes is ever less like what was
trained on. After each change, recall@10 of 500 new queries against exact search, and milliseconds
of single queries on one thread. At the end, a compaction.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from index.choose import IndexConfig
from index.embeddings import EmbeddingStore, ShardBatch, publish_embeddings, write_shard
from index.folder import Folder
from index.measure import exact_top_k, recall_at_k
from index.part import one_thread
from index.removal import remove_pictures
from index.search import Searcher
from index.update import Updated, compact_index, update_index
from index.vectors import unit

CLASSES = 500
SHARD_ROWS = 20_000
NUM_QUERIES = 500
DRIFT = 0.03
PARENTS = {"encoder_id": "bench", "corpus_id": "bench", "corpus_uid": "bench"}


class Pictures:
    """The corpus: ids and vectors, published as an embedding set of shards.

    Args:
        place: where sets are written.
        dim: of the vectors.
        seed: of all that is drawn.
    """

    def __init__(self, place: Path, dim: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self._place = place
        self._centres = self.rng.normal(size=(CLASSES, dim))
        self.ids = np.empty(0, np.int64)
        self.vectors = np.empty((0, dim), np.float32)
        self._next_id = 0
        self._sets = 0

    def draw(self, count: int) -> np.ndarray:
        """Unit vectors around the clusters as they are now, sorted by class."""
        codes = np.sort(self.rng.integers(0, CLASSES, count))
        noise = self.rng.normal(size=(count, self._centres.shape[1]))
        return unit(self._centres[codes] + 0.7 * noise)

    def come(self, count: int) -> None:
        """New pictures, behind those there are."""
        self.ids = np.concatenate([self.ids, self._next_id + np.arange(count)])
        self._next_id += count
        self.vectors = np.concatenate([self.vectors, self.draw(count)])

    def change(self, count: int) -> None:
        """One round: some come, as many go, half as many are replaced; the clusters wander."""
        self._centres += DRIFT * self.rng.normal(size=self._centres.shape)
        stay = np.ones(len(self.ids), bool)
        stay[self.rng.choice(len(self.ids), count, replace=False)] = False
        self.ids, self.vectors = self.ids[stay], self.vectors[stay]
        rows = self.rng.choice(len(self.ids), count // 2, replace=False)
        self.vectors[rows] = self.draw(len(rows))
        self.come(count)

    def published(self) -> EmbeddingStore:
        """The whole corpus as a new embedding set."""
        self._sets += 1
        folder = Folder.at(self._place / f"set-{self._sets}")
        records = []
        for number, start in enumerate(range(0, len(self.ids), SHARD_ROWS)):
            rows = slice(start, start + SHARD_ROWS)
            ids = self.ids[rows]
            batch = ShardBatch(
                ids=ids,
                statuses=["ok"] * len(ids),
                content_hashes=[bytes(32)] * len(ids),
                vectors=self.vectors[rows],
            )
            thumbnails = [None] * len(ids)
            records.append(write_shard(folder, f"{number:05d}-aa", batch, thumbnails=thumbnails))
        publish_embeddings(folder, records, {"parents": PARENTS, "config": {"layer": "backbone"}})
        return EmbeddingStore.open(folder, verify="sizes")


def checkpoint(folder: Folder, pictures: Pictures, took_s: float, done: Updated) -> dict[str, Any]:
    """Recall and latency of the version in service, beside what the change cost."""
    searcher = Searcher.open(folder)
    queries = pictures.draw(NUM_QUERIES)
    _, truth = exact_top_k(queries, 10, searcher.iter_batches())
    recall = recall_at_k(searcher.search(queries, 10).scores, np.minimum(truth, 1)).mean()
    with one_thread():
        times = []
        for query in queries:
            start = time.perf_counter()
            searcher.search(query[None], 10)
            times.append(time.perf_counter() - start)
    door, version = done.door, folder / done.version
    own = sum(
        file["bytes"]
        for name, file in door["files"].items()
        if version.local_path(name).stat().st_nlink == 1
    )
    return {
        "action": done.action,
        "s": f"{took_s:.2f}",
        "rows": len(searcher),
        "delta": door["delta"]["rows"] if door.get("delta") else 0,
        "dead": door["dead"]["rows"] if door.get("dead") else 0,
        "recall": f"{recall:.4f}",
        "card": f"{door['recall']['value']:.4f} ({door['recall']['low']:.4f})",
        "nprobe": door["parameters"]["nprobe"],
        "p50 ms": f"{1e3 * statistics.median(times):.3f}",
        "own MB": f"{own / 1e6:.1f}",
        "why": done.why,
    }


def main() -> None:
    """Run the rounds and print a line for each change."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        pictures = Pictures(Path(scratch), given.dim, given.seed)
        folder, config = Folder.at(Path(scratch) / "ix"), IndexConfig(seed=given.seed)
        pictures.come(given.rows)
        few = given.rows // 100

        def timed(change: Callable[[], Updated]) -> None:
            start = time.perf_counter()
            done = change()
            line = checkpoint(folder, pictures, time.perf_counter() - start, done)
            print(", ".join(f"{name} {value}" for name, value in line.items()), flush=True)

        for number in range(given.rounds + 1):
            if number:
                pictures.change(few)
            store = pictures.published()
            timed(lambda store=store: update_index(store, folder, config))  # type: ignore[misc]
            if number:
                out = pictures.rng.choice(Searcher.open(folder).ids, few, replace=False)
                timed(lambda out=out: remove_pictures(folder, out))  # type: ignore[misc]
        timed(lambda: compact_index(folder))


if __name__ == "__main__":
    main()
