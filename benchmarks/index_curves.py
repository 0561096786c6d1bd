"""Recall against queries a second: the project's indexes, FAISS's own, and other libraries'.

On unit vectors in clusters, or with ``--source encoder`` on those that the project's own encoder
makes of pictures. Each index is built with all cores and searched one query at a time on one core,
by a process of its own. Needs Linux.

With ``--only`` some of them are measured, and kept beside what was measured of the others with the
same settings, in fewer or more rounds.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks import measuring
from benchmarks.index_corpora import SEED, SOURCES, write_corpus
from cluster.where import num_cores

TIMEOUT_S = 3600.0
OWN = ("exact", "ivf", "pq", "ivf-pq", "hnsw")
FAISS = ("flat", "ivf", "hnsw", "ivf-pq")
# Name, environment and script of each of the others' indexes.
PEERS = (
    *(
        (kind, "peers-index", "graph_indexes")
        for kind in (
            "hnswlib", "usearch", "usearch-f16", "usearch-i8", "voyager", "voyager-e4m3"
        )
    ),
    *(
        (kind, "peers-index", "vector_databases")
        for kind in ("lancedb-ivf-flat", "lancedb-ivf-pq", "chroma")
    ),
    ("autofaiss", "peers-autofaiss", "autofaiss_index"),
)  # fmt: skip


def contestants() -> dict[str, list[str]]:
    """The program of each, but for what all are told.

    Raises:
        FileNotFoundError: an environment was not made.
    """
    own = [measuring.OWN_PYTHON, "-m", "benchmarks.index_steps"]
    faiss = [measuring.OWN_PYTHON, measuring.peer_script("faiss_indexes")]
    return {
        **{f"lookalike {kind}": [*own, kind] for kind in OWN},
        **{f"FAISS {kind}": [*faiss, kind] for kind in FAISS},
        **{
            kind: [measuring.peers_python(environment), measuring.peer_script(script), kind]
            for kind, environment, script in PEERS
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--source", choices=SOURCES, default="clusters")
    parser.add_argument("--vectors", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=128, help="in clusters")
    parser.add_argument("--clusters", type=int, default=2000)
    parser.add_argument("--noise", type=float, default=1.0, help="in clusters")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="comes last")
    asked = parser.parse_args()
    # Before anything is measured, what is missing is said.
    programs = contestants()
    only = asked.only or list(programs)
    if unknown := set(only) - set(programs):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(programs)}")
    del asked.only
    hardware = measuring.machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder, asked)
        shared = ["--folder", name, "--k", str(asked.k), "--build-threads", str(num_cores())]
        commands = {name: [*programs[name], *shared] for name in only}
        rounds = measuring.in_turn(measuring.programs(commands, TIMEOUT_S), asked.rounds)
    settings = {name: value for name, value in vars(asked).items() if name != "rounds"}
    settings["seed"] = SEED
    name = "index_curves"
    for what in ("source", "vectors"):
        if (given := getattr(asked, what)) != parser.get_default(what):
            name += f"_{given}"
    measuring.save_beside_others(name, settings, rounds, hardware, [*programs])


if __name__ == "__main__":
    main()
