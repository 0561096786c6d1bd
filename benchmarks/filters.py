"""Recall and time of filtered search by share of pictures: here, and elsewhere.

The project and FAISS search the same inverted lists in one thread. FAISS visits the number of lists
that reaches the target recall without a filter, and skips what its ``IDSelectorBitmap`` does not
select, which is what an application does that has no planner; its bitmap is made before the clock
runs, as a selection here is, which an application keeps from query to query. ``anew`` compiles the
filter and runs it over the column with every query, as databases do.

With ``--only`` some of them are measured, and kept beside what was measured of the others with the
same settings.

Shapes: N pictures, D dimensions, Q queries, K results.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa

from benchmarks import measuring
from benchmarks.index_steps import write_store
from benchmarks.peers.filtered import KINDS, SHARES, Filtering, Given, Search, run
from index.build import build_index
from index.choose import IndexConfig
from index.filters import matching
from index.folder import Folder
from index.search import Searcher

DIM, K, SEED = 128, 10, 0
CLUSTERS, NOISE = 200, 0.9
TIMEOUT_S = 1800.0
OWN = ("lookalike", "lookalike anew", "FAISS")
DATABASES = ("lancedb", "chroma", "qdrant-local")
INDEX = "index"


def corpus(num_pictures: int) -> np.ndarray:
    """Vectors in clusters, sorted by cluster, as pictures in folders are."""
    rng = np.random.default_rng(SEED)
    codes = np.sort(rng.integers(0, CLUSTERS, num_pictures))
    noise = NOISE * rng.normal(size=(num_pictures, DIM))
    return (rng.normal(size=(CLUSTERS, DIM))[codes] + noise).astype(np.float32)


def ranks_of(vectors: np.ndarray, kind: str) -> np.ndarray:
    """A column by which a share is selected: drawn, of some clusters alone, of one side of space.

    Returns:
        int64 ``[N]``, each of 0 to N - 1 once.
    """
    rng = np.random.default_rng([SEED, KINDS.index(kind)])
    num = len(vectors)
    if kind == "uncorrelated":
        return rng.permutation(num)
    if kind == "clusters":
        return (np.arange(num) - int(rng.integers(num))) % num
    ranks = np.empty(num, np.int64)
    ranks[np.argsort(-(vectors @ rng.normal(size=DIM)), kind="stable")] = np.arange(num)
    return ranks


def prepare(folder: Path, num_pictures: int, num_queries: int) -> dict[str, object]:
    """An index of inverted lists, and what everyone searches; returns the index's settings."""
    with tempfile.TemporaryDirectory() as name:
        store = write_store(Folder.at(name), corpus(num_pictures))
        door = build_index(store, Folder.at(folder / INDEX), IndexConfig(kind="ivf", seed=SEED))
    searcher = Searcher.open(folder / INDEX, verify="sizes")
    vectors = searcher.vectors_of(searcher.ids)
    rng = np.random.default_rng(SEED + 1)
    drawn = vectors[rng.choice(len(vectors), num_queries, replace=False)]
    queries = drawn + 0.3 * NOISE / np.sqrt(DIM) * rng.normal(size=drawn.shape)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    np.save(folder / "vectors.npy", vectors)
    np.save(folder / "queries.npy", queries.astype(np.float32))
    for kind in KINDS:
        np.save(folder / f"{kind}.npy", ranks_of(vectors, kind))
    parameters: dict[str, object] = door["parameters"]
    return parameters


def opened(contestant: str, folder: Path, given: Given) -> Filtering:
    """The search of the project, or FAISS's own of the same lists."""
    del folder  # what is prepared serves all three
    faiss.omp_set_num_threads(1)
    searcher = Searcher.open(given.prepared / INDEX, verify="sizes", threads=1)
    return {"lookalike": prepared, "lookalike anew": anew, "FAISS": with_selector}[contestant](
        searcher, given
    )


def prepared(searcher: Searcher, given: Given) -> Filtering:
    """Within a selection that is made once."""

    def filtering(kind: str, count: int | None) -> Search:
        rows = slice(None) if count is None else given.ranks[kind] < count
        chosen = None if count is None else searcher.select(searcher.ids[rows])
        return lambda query: searcher.search(query, given.k, within=chosen).ids[0]

    return filtering


def anew(searcher: Searcher, given: Given) -> Filtering:
    """By the text of a filter, which every query brings."""
    table = pa.table({"id": searcher.ids, **given.ranks})

    def search(query: np.ndarray, where: str | None) -> np.ndarray:
        chosen = None
        if where is not None:
            chosen = searcher.select(matching(table, where, ["id"])["id"].to_numpy())
        return searcher.search(query, given.k, within=chosen).ids[0]

    def filtering(kind: str, count: int | None) -> Search:
        where = None if count is None else f"{kind} < {count}"
        return lambda query: search(query, where)

    return filtering


def with_selector(searcher: Searcher, given: Given) -> Filtering:
    """What FAISS finds by itself."""
    part = faiss.read_index(str(searcher.folder.local_path(searcher.door["parts"][0]["file"])))
    nprobe = searcher.door["parameters"]["nprobe"]

    def filtering(kind: str, count: int | None) -> Search:
        selector = None
        if count is not None:
            bits = np.packbits(given.ranks[kind] < count, bitorder="little")
            selector = faiss.IDSelectorBitmap(bits)
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=nprobe)
        return lambda query: part.search(query, given.k, params=parameters)[1][0]

    return filtering


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=60_000)
    parser.add_argument("--queries", type=int, default=200)
    names = (*OWN, *DATABASES)
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="comes last")
    asked = parser.parse_args()
    script = measuring.peer_script("filtered_databases")
    programs = {
        **{name: [measuring.OWN_PYTHON, "-m", "benchmarks.filters"] for name in OWN},
        **{name: [measuring.peers_python("peers-index"), script] for name in DATABASES},
    }
    hardware = measuring.machine()
    with tempfile.TemporaryDirectory() as folder:
        found = prepare(Path(folder), asked.pictures, asked.queries)
        commands = {
            name: [*programs[name], name, "--folder", folder, "--k", str(K)] for name in asked.only
        }
        rounds = measuring.in_turn(measuring.programs(commands, TIMEOUT_S), asked.rounds)
    settings = {
        "pictures": asked.pictures,
        "queries": asked.queries,
        "dim": DIM,
        "k": K,
        "clusters": CLUSTERS,
        "seed": SEED,
        "shares": SHARES,
        "kinds": KINDS,
        **found,
    }
    measuring.save_beside_others("filters", settings, rounds, hardware, names)


if __name__ == "__main__":
    # The same module is the program of the contestants that run in our environment.
    if len(sys.argv) > 1 and sys.argv[1] in OWN:
        run(OWN, opened)
    else:
        main()
