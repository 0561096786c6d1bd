"""What autofaiss chooses for these vectors, at its own setting and at others of the same index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import autofaiss
import faiss
import numpy as np
from index_curve import EFFORTS, Search, Served, run

FILE, NOTES = "index.faiss", "index.json"


def build(kind: str, folder: Path, vectors: np.ndarray, threads: int) -> dict[str, Any]:
    del kind
    _, infos = autofaiss.build_index(
        vectors, str(folder / FILE), str(folder / NOTES), nb_cores=threads, verbose=40
    )
    return {"factory": infos["index_key"], "own setting": infos["index_param"]}


def serve(kind: str, folder: Path, k: int) -> Served:
    del kind
    faiss.omp_set_num_threads(1)
    index = faiss.read_index(str(folder / FILE))
    own = json.loads((folder / NOTES).read_text(encoding="utf-8"))["index_param"]
    others = [with_effort(own, effort) for effort in EFFORTS]

    def at(setting: str) -> Search:
        faiss.ParameterSpace().set_index_parameters(index, setting)
        return lambda query: index.search(query, k)[1][0]

    return [
        {setting: lambda setting=setting: at(setting) for setting in settings}
        for settings in ([own], dict.fromkeys(others))
    ]


def with_effort(own: str, effort: int) -> str:
    """Its setting, with another number of lists, or of candidates where there are no lists."""
    names = dict(pair.split("=") for pair in own.split(",") if pair)
    for name in ("nprobe", "efSearch"):
        if name in names:
            names[name] = str(effort)
            break
    return ",".join(f"{name}={value}" for name, value in names.items())


if __name__ == "__main__":
    run(["autofaiss"], build, serve)
