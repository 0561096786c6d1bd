"""Two coordinates for every picture, for a map of the corpus, kept beside the index version.

PCA is there at once: the two directions in which the vectors differ most. UMAP, with the extra
``map`` (``pip install 'lookalike[map]'``), shows neighbourhoods better: it learns a map of a sample
and places all others on it.

Shapes: N pictures, n of a batch, D embedding.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from index.artifact import Verify, digest, library_versions, publish
from index.beside import made_before, open_beside, parents_of, writing_beside
from index.search import Searcher
from index.vectors import Floats, Ids

__all__ = ["MAP", "MapConfig", "build_map", "open_map", "places_table", "write_places"]

MAP = "map"
"""Folder of the map inside an index version, and its kind."""
BATCH_ROWS = 4096

Place = Callable[[Floats], Floats]


@dataclass(frozen=True, kw_only=True, slots=True)
class MapConfig:
    """How the corpus is laid out in two dimensions."""

    method: Literal["auto", "pca", "umap", "none"] = "auto"
    """auto is umap if it is installed (extra map), else pca; none makes no map."""
    sample: int = 20_000
    """Pictures that UMAP learns its map from; all others are placed on it."""
    seed: int = 0
    """Seed of the sample and of UMAP; the same seed gives the same map."""

    def __post_init__(self) -> None:
        if self.method not in ("auto", "pca", "umap", "none"):
            raise ValueError(f"map: method is {self.method!r}, allowed is auto, pca, umap or none")
        if self.sample < 16:
            raise ValueError(f"map: sample is {self.sample}, allowed is at least 16")
        if self.method == "umap" and not _has_umap():
            raise ValueError(
                "map: method is 'umap', and umap-learn is not installed. Install it with "
                "pip install 'lookalike[map]', or use the method pca."
            )


def _has_umap() -> bool:
    return importlib.util.find_spec("umap") is not None


def build_map(searcher: Searcher, config: MapConfig) -> dict[str, Any] | None:
    """Lay out an index version and publish the map beside it, or find it there.

    Returns:
        The map's door: ``method``, ``rows``, and ``explained``, the two directions' shares of all
        variance, if the method is pca. None if the method is ``none``.

    Memory: the covariance, 8 D^2 bytes, and one batch; UMAP takes its sample and its own graph.
    Cost: two passes over the vectors for PCA; some minutes for UMAP's sample of 20,000.
    """
    method = config.method
    if method == "auto":
        # Few pictures have no neighbourhoods to learn.
        method = "umap" if _has_umap() and len(searcher) > 4 * 16 else "pca"
    if method == "none":
        return None
    parents = parents_of(searcher)
    map_id = digest({"parents": parents, "config": {**asdict(config), "method": method}})
    with writing_beside(searcher, MAP, "laying out this index") as folder:
        if (made := made_before(folder, MAP, map_id)) is not None:
            return made
        place, facts = _pca(searcher) if method == "pca" else _umap(searcher, config)
        name, record = folder.write_by_content(
            "places-{sha256}.arrow", lambda path: write_places(_placed(searcher, place), path)
        )
        body = {
            "id": map_id,
            "config": asdict(config),
            "parents": parents,
            "rows": len(searcher),
            "method": method,
            **facts,
            "versions": library_versions("umap-learn", "pyarrow", "numpy"),
        }
        door = publish(folder, MAP, body, {name: record})
        folder.remove_others("places-", keep=[name])
    return door


def open_map(searcher: Searcher, *, verify: Verify = "full") -> pa.Table:
    """The map of an index version: ``id`` int64, rising, ``x`` and ``y`` float32; memory-mapped.

    Raises:
        ArtifactError: see `index.beside.open_beside`.
    """
    folder, door = open_beside(searcher, MAP, "lookalike graph --index NAME", verify=verify)
    (name,) = door["files"]
    with pa.memory_map(str(folder.local_path(name))) as source:
        return pa.ipc.open_file(source).read_all()


def places_table(ids_n: Ids, places_n2: Floats) -> pa.Table:
    """Some rows of a map's file."""
    x, y = np.ascontiguousarray(places_n2.T, np.float32)
    return pa.table({"id": pa.array(ids_n, pa.int64()), "x": x, "y": y})


def write_places(tables: Iterable[pa.Table], path: str) -> None:
    """Write a map's file, of one table of rows at least."""
    rows = iter(tables)
    first = next(rows)
    with pa.ipc.new_file(path, first.schema) as writer:
        for table in chain([first], rows):
            writer.write_table(table)


def _placed(searcher: Searcher, place: Place) -> Iterator[pa.Table]:
    for ids, vectors in searcher.iter_batches(BATCH_ROWS):
        yield places_table(ids, place(vectors))


def _centred(searcher: Searcher) -> Iterator[tuple[Ids, Floats]]:
    for ids, vectors in searcher.iter_batches(BATCH_ROWS):
        yield ids, vectors - searcher.mean


def _pca(searcher: Searcher) -> tuple[Place, dict[str, Any]]:
    """The two main directions, their largest components positive, so that neither is flipped."""
    dim = searcher.dim
    covariance = np.zeros((dim, dim))
    for _, centred in _centred(searcher):
        covariance += centred.astype(np.float64).T @ centred
    variances, directions = np.linalg.eigh(covariance / len(searcher))
    axes = directions[:, ::-1][:, :2]
    axes *= np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    if dim == 1:
        axes = np.hstack([axes, np.zeros((1, 1))])
    total = max(float(variances.sum()), np.finfo(np.float64).tiny)
    explained = [round(float(value) / total, 6) for value in variances[::-1][:2]]
    return lambda vectors: (vectors - searcher.mean) @ axes, {"explained": explained}


def _umap(searcher: Searcher, config: MapConfig) -> tuple[Place, dict[str, Any]]:
    """Source: McInnes et al. 2018, "UMAP"; its own defaults but for the cosine metric."""
    import umap

    rng = np.random.default_rng(config.seed)
    rows = rng.choice(len(searcher), min(config.sample, len(searcher)), replace=False)
    reducer = umap.UMAP(n_components=2, metric="cosine", random_state=config.seed, n_jobs=1)
    reducer.fit(searcher.vectors_of(searcher.ids[np.sort(rows)]))
    return reducer.transform, {"sampled": len(rows)}
