"""The queries that vouch for an index: held out, with their exact answers, kept beside the version.

Where no others are given they are corpus vectors, drawn at random over the whole corpus, each with
itself taken out of its answer; no copy of one is in the training sample. A random half chooses
index and setting, the other half judges: it stays a simple random sample of the corpus, so its
interval means what it says, however many copies of a picture there are. It speaks of new pictures
like those of the corpus. Of other pictures it says nothing: give some of those as queries.

Shapes: Q queries, D embedding, K true results, M rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.artifact import digest
from index.choose import IndexConfig
from index.folder import Folder
from index.measure import exact_top_k
from index.vector_sets import Askable, StoredVectors
from index.vectors import Floats, Ids, VectorFile, unit

__all__ = [
    "FOREIGN",
    "MIN_CORPUS_SHARE",
    "QUERIES",
    "QuerySet",
    "Samples",
    "draw_rows",
    "draw_samples",
    "make_queries",
    "queries_key",
    "shared_queries",
]

QUERIES = "queries.arrow"
"""Name of their file in an index version."""
DRAW_BLOCK = 65_536
HASH_ROWS = 4096
MIN_CORPUS_SHARE = 4
"""At most a quarter of the corpus becomes queries, so that a sample is left to train on."""

FOREIGN = -1
"""Id of a query that is not in the corpus."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QuerySet:
    """Queries and their exact answers.

    Args:
        ids: int64 [Q], the picture that a query is and may not find; -1 for none.
        vectors: unit vectors float32 [Q, D].
        true_ids: int64 [Q, K], the nearest by exact search.
        true_scores: float32 [Q, K], their cosines, best first.
        judging: bool [Q], which queries judge; the others choose.
    """

    ids: Ids
    vectors: Floats
    true_ids: Ids
    true_scores: Floats
    judging: NDArray[np.bool_]

    @property
    def k(self) -> int:
        """True results a query."""
        return int(self.true_scores.shape[1])

    def half(self, *, judging: bool) -> QuerySet:
        """The queries that judge, or those that choose."""
        return self._where(self.judging if judging else ~self.judging)

    def some(self, count: int) -> QuerySet:
        """At most so many, evenly over all: the first ones are of the first folders alone."""
        if count >= len(self.ids):
            return self
        chosen = np.zeros(len(self.ids), bool)
        chosen[np.arange(count) * len(self.ids) // max(1, count)] = True
        return self._where(chosen)

    def _where(self, chosen_Q: NDArray[np.bool_]) -> QuerySet:
        return QuerySet(
            ids=self.ids[chosen_Q],
            vectors=self.vectors[chosen_Q],
            true_ids=self.true_ids[chosen_Q],
            true_scores=self.true_scores[chosen_Q],
            judging=self.judging[chosen_Q],
        )

    def write(self, path: str) -> None:
        """Write them as an Arrow file."""
        table = pa.table(
            {
                "id": pa.array(self.ids, mask=self.ids == FOREIGN),
                "vector": _lists(self.vectors),
                "true_ids": _lists(self.true_ids),
                "true_scores": _lists(self.true_scores),
                "judging": pa.array(self.judging),
            }
        )
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)

    @classmethod
    def read(cls, path: Path) -> QuerySet:
        """Read a file of ``write``."""
        with pa.OSFile(str(path)) as source:
            table = pa.ipc.open_file(source).read_all().combine_chunks()

        def matrix(name: str) -> NDArray[np.generic]:
            flat: NDArray[np.generic] = table[name].combine_chunks().flatten().to_numpy()
            return flat.reshape(len(table), len(flat) // max(1, len(table)))

        return cls(
            ids=table["id"].fill_null(FOREIGN).to_numpy(),
            vectors=np.asarray(matrix("vector"), np.float32),
            true_ids=np.asarray(matrix("true_ids"), np.int64),
            true_scores=np.asarray(matrix("true_scores"), np.float32),
            judging=table["judging"].to_numpy(),
        )


def _lists(matrix: NDArray[np.generic]) -> pa.Array:
    num_rows, width = matrix.shape  # a corpus of one picture has nothing to find: width 0
    ends = pa.array(np.arange(num_rows + 1, dtype=np.int32) * width)
    return pa.ListArray.from_arrays(ends, pa.array(matrix.reshape(-1)))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Samples:
    """Rows of the corpus, drawn at random over all of it.

    Args:
        query_rows: rising.
        train_rows: rising, disjoint from the queries also as pictures, unless most pictures are
            copies of queries.
    """

    query_rows: NDArray[np.intp]
    train_rows: NDArray[np.intp]


def draw_rows(num_rows: int, count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """A simple random sample of rows without replacement, rising, in memory of its own size.

    How many of each block are in such a sample is drawn first, then which.
    """
    starts = np.arange(0, num_rows, DRAW_BLOCK)
    sizes = np.minimum(DRAW_BLOCK, num_rows - starts)
    counts = rng.multivariate_hypergeometric(sizes, count, method="marginals")
    drawn = [
        start + np.sort(rng.choice(size, taken, replace=False))
        for start, size, taken in zip(starts, sizes, counts, strict=True)
    ]
    return np.concatenate(drawn).astype(np.intp)


def draw_samples(
    vectors: VectorFile, num_queries: int, num_train: int, *, seed: int, least_train: int = 1
) -> Samples:
    """Queries and training sample, without a copy of a query in the latter.

    Args:
        vectors: the corpus.
        num_queries: 0 where queries come from elsewhere.
        num_train: rows to train on; fewer are drawn where there are no more.
        seed: of the draw. The queries do not depend on ``num_train``.
        least_train: the training sample keeps at least so many rows.
    """
    asked = draw_rows(len(vectors), num_queries, np.random.default_rng(seed))
    rng = np.random.default_rng([seed, 1])
    drawn = draw_rows(len(vectors), min(len(vectors), num_train + len(asked)), rng)
    others = drawn[~np.isin(drawn, asked)]
    train = np.sort(rng.permutation(others)[:num_train])
    contents = set(_contents(vectors, asked))
    fresh = np.fromiter((row not in contents for row in _contents(vectors, train)), bool)
    # Where most are copies, what is left without them is no sample of the corpus.
    kept = train[fresh] if fresh.sum() >= max(least_train, len(train) / 2) else train
    return Samples(query_rows=asked, train_rows=kept if len(kept) >= least_train else drawn)


def _contents(vectors: VectorFile, rows: NDArray[np.intp]) -> Iterable[bytes]:
    """A digest of every row's vector: copies of a picture have the same one."""
    for start in range(0, len(rows), HASH_ROWS):
        for row in vectors.gather(rows[start : start + HASH_ROWS]):
            yield hashlib.sha256(row.tobytes()).digest()


def queries_key(
    content: str, config: IndexConfig, asked: Askable | None, *, left_out: str | None = None
) -> str:
    """What the queries and their answers follow from; versions with the same share them.

    Args:
        content: identity of the corpus's vectors.
        config: how many, and how many results each.
        asked: where they come from, if not from the corpus.
        left_out: a digest of the pictures of it that are not in the index, if there are any.
    """
    facts: dict[str, object] = {
        "embeddings_id": content,
        "queries_id": None if asked is None else asked.id,
        "num_queries": config.num_queries,
        "k": config.k,
        "seed": config.seed,
    }
    return digest(facts if left_out is None else {**facts, "left_out": left_out})


def make_queries(
    vectors: StoredVectors,
    config: IndexConfig,
    asked: Askable | None,
    *,
    block_rows: int,
) -> QuerySet:
    """Draw the queries and find their exact answers in one pass over the corpus.

    Args:
        vectors: the corpus.
        config: how many, and how many results each.
        asked: an embedding set to draw them from; None for the corpus itself.
        block_rows: rows that stream by at once.
    """
    if asked is None:
        count = min(config.num_queries, max(1, len(vectors) // MIN_CORPUS_SHARE))
        rows = draw_rows(len(vectors), count, np.random.default_rng(config.seed))
        ids, found = vectors.ids[rows], unit(vectors.gather(rows))
    else:
        found = _drawn_from(asked, config)
        ids = np.full(len(found), FOREIGN, np.int64)
    k = min(config.k, len(vectors) - (asked is None))
    judging = np.zeros(len(found), dtype=bool)
    judging[np.random.default_rng([config.seed, 2]).permutation(len(found))[::2]] = True
    true_ids, scores = np.empty((len(found), 0), np.int64), np.empty((len(found), 0), np.float32)
    if k:
        batches = vectors.iter_batches(block_rows)
        true_ids, scores = exact_top_k(found, k, batches, exclude_Q=ids)
    return QuerySet(
        ids=ids,
        vectors=found,
        true_ids=true_ids,
        true_scores=scores,
        judging=judging,
    )


def _drawn_from(asked: Askable, config: IndexConfig) -> Floats:
    count = min(config.num_queries, asked.num_rows)
    rows = draw_rows(asked.num_rows, count, np.random.default_rng(config.seed))
    found, start = [], 0
    for ids, vectors in asked.iter_batches():
        here = rows[(rows >= start) & (rows < start + len(ids))] - start
        found.append(vectors[here])
        start += len(ids)
    return unit(np.concatenate(found))


def shared_queries(
    folder: Folder, doors: Iterable[tuple[str, dict[str, object]]], key: str
) -> QuerySet | None:
    """The queries of an older version that follow from the same, if their file is whole."""
    for version, door in doors:
        kept, files = door.get("queries"), door["files"]
        if not isinstance(kept, dict) or kept.get("key") != key or not isinstance(files, dict):
            continue
        inside, name = folder / version, str(kept["file"])
        if inside.exists(name) and inside.sha256(name) == files[name]["sha256"]:
            return QuerySet.read(inside.local_path(name))
    return None
