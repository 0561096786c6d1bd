"""evaluate: is the encoder worth its training? Compared with an untrained twin and with raw pixels.

1. Draw a sample of the corpus. 2. Distort some of it: cropped, shifted, recoloured and blurred
copies whose originals have to be found, which needs no labels. 3. Embed both with each source of
vectors. 4. Where the corpus has labels, measure kNN and few-label accuracy as well.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.catalog import Catalog, CatalogRow, open_corpus
from cluster.context import Context
from cluster.pixels_job import build_pixels
from cluster.shard_job import check_error_budget
from cluster.shards import read_picture
from cluster.workspace import check_name
from encoders.baseline import raw_pixel_vectors
from encoders.distort import distort
from encoders.encoder import Encoder, preferred_device
from encoders.picture import DECODE_EDGE, PreprocessConfig, to_square
from index.measure import FewLabelAccuracy, Proportion, few_label_accuracy, find_the_original
from index.measure import knn_accuracy as leave_one_out_knn

__all__ = ["EvaluateConfig", "evaluate"]

Pixels = NDArray[np.uint8]
Vectors = NDArray[np.float32]

ORIGINAL_KS = (1, 10)
QUERY_SCALE = 2
"""Queries are distorted at this multiple of the encoder's size, so that a crop keeps its detail."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """Compare an encoder with an untrained one and with raw pixels, on the same pictures."""

    corpus: str
    """Name of the corpus."""
    encoder: str
    """Name of the encoder."""
    num_pictures: int = 10_000
    """Pictures to search among; a random sample when the corpus has more."""
    num_queries: int = 1_000
    """Distorted copies whose originals have to be found."""
    labels_per_class: tuple[int, ...] = (5, 20)
    """Numbers of labels for each class that a classifier is given, when the corpus has labels."""
    num_draws: int = 10
    """Random draws of those labels; mean and deviation over them are reported."""
    knn_k: int = 5
    """Neighbours that vote in kNN accuracy."""
    seed: int = 0
    """Seed of the sample, the distortions, the draws and the untrained encoder."""
    error_budget: float = 0.25
    """Share of undecodable pictures at which the job stops."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        check_name(self.corpus, what="corpus")
        check_name(self.encoder, what="encoder")
        for name in ("num_pictures", "num_queries", "num_draws", "knn_k"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} {getattr(self, name)}: has to be at least 1. Leave --"
                    f"{name.replace('_', '-')} out for the usual number."
                )
        if not self.labels_per_class or min(self.labels_per_class) < 1:
            raise ValueError(
                f"labels_per_class {self.labels_per_class}: numbers of at least 1. "
                "5 20 is usual: --labels-per-class 5 20"
            )
        check_error_budget(self.error_budget)


def evaluate(config: EvaluateConfig, context: Context) -> dict[str, Any]:
    """Measure search quality, and with labels classification, for each source of vectors.

    Returns:
        ``figures``: source to figure to ``value`` with ``low`` and ``high`` (95 % Wilson interval)
        or ``sd`` (over draws); shares in [0, 1].
    """
    workspace = context.workspace
    catalog = open_corpus(workspace, config.corpus)
    encoder = workspace.open_encoder(config.encoder)
    preprocess = encoder.config.preprocess
    cache = build_pixels(catalog, preprocess, context, error_budget=config.error_budget)
    rng = np.random.default_rng(config.seed)
    positions = np.sort(rng.permutation(len(cache))[: config.num_pictures])
    ids, pixels = cache.ids[positions], cache.read(positions)
    asked = np.sort(rng.permutation(ids)[: config.num_queries])
    query_ids, queries = _distorted(catalog, asked, preprocess, config.seed)
    labels = catalog.labels(ids)
    sources = _sources(encoder, config.seed)
    figures: dict[str, dict[str, Any]] = {}
    with context.progress("evaluate", len(sources), "encoders") as line:
        for name, embed in sources.items():
            vectors = embed(pixels)
            originals = _originals(embed(queries), query_ids, vectors, ids)
            figures[name] = {**originals, **_labelled(vectors, labels, config)}
            line.advance(1, name)
    return {
        "corpus": config.corpus,
        "encoder": config.encoder,
        "corpus_id": catalog.corpus_id,
        "encoder_id": encoder.encoder_id,
        "num_pictures": len(ids),
        "num_queries": len(query_ids),
        "config": asdict(config),
        "figures": figures,
    }


def _sources(encoder: Encoder, seed: int) -> dict[str, Callable[[Pixels], Vectors]]:
    """What turns pixels into vectors, by the name of its column: trained layers first."""
    device = preferred_device()
    encoder.to(device)
    untrained = Encoder.initialise(encoder.config, seed).to(device)
    trained = {
        "trained" if layer == "backbone" else f"trained {layer}": partial(
            encoder.embed, layer=layer
        )
        for layer in encoder.layers
    }
    return {**trained, "random init": untrained.embed, "raw pixels": raw_pixel_vectors}


def _distorted(
    catalog: Catalog, ids: NDArray[np.int64], preprocess: PreprocessConfig, seed: int
) -> tuple[NDArray[np.int64], Pixels]:
    """(ids, queries uint8 [Q, S, S, 3]) of the distorted copies; unreadable files are left out."""
    large = replace(preprocess, size=min(preprocess.size * QUERY_SCALE, DECODE_EDGE))
    rows = catalog.rows(ids)
    with ThreadPoolExecutor() as pool:
        squares = list(pool.map(partial(_square, preprocess=large), rows))
    found = [
        (row.id, square) for row, square in zip(rows, squares, strict=True) if square is not None
    ]
    if not found:
        raise ValueError(
            f"corpus {catalog.door['name']!r}: none of {len(ids)} sampled pictures can be read. "
            "If the files moved, run lookalike scan again."
        )
    kept = np.array([picture_id for picture_id, _ in found], np.int64)
    pixels = np.stack([square for _, square in found])
    return kept, distort(pixels, kept, seed=seed, size=preprocess.size)


def _square(row: CatalogRow, preprocess: PreprocessConfig) -> Pixels | None:
    image = read_picture(row).image
    return None if image is None else to_square(image, preprocess)


def _originals(
    queries: Vectors, query_ids: NDArray[np.int64], vectors: Vectors, ids: NDArray[np.int64]
) -> dict[str, Any]:
    found = find_the_original(queries, query_ids, ids, vectors, ORIGINAL_KS)
    return {f"recall@{k}": _interval(share) for k, share in found.items()}


def _labelled(vectors: Vectors, labels: list[str | None], config: EvaluateConfig) -> dict[str, Any]:
    """Accuracy of kNN and of few labels; empty when fewer than two classes have enough pictures."""
    known = np.array([label is not None for label in labels])
    names = [label for label in labels if label is not None]
    if len(set(names)) < 2:
        return {}
    figures = {
        f"kNN-{config.knn_k}": _interval(leave_one_out_knn(vectors[known], names, config.knn_k))
    }
    seeds = range(config.seed, config.seed + config.num_draws)
    counts = np.unique(names, return_counts=True)[1]
    for number in config.labels_per_class:
        if np.sum(counts > number) >= 2:
            accuracy = few_label_accuracy(vectors[known], names, number, seeds)
            figures[f"{number} labels/class"] = _spread(accuracy)
    return figures


def _interval(share: Proportion) -> dict[str, float]:
    return {"value": share.value, "low": share.low, "high": share.high, "n": share.n}


def _spread(accuracy: FewLabelAccuracy) -> dict[str, float]:
    return {"value": accuracy.mean, "sd": accuracy.sd, "n": accuracy.num_draws}
