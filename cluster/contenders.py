"""What `evaluate` compares: each layer of each encoder, untrained twins, and raw pixels.

All see the same pictures and the same distorted copies, each at the size and fit that it was made
for. One encoder is in memory at a time, and one block of pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster.catalog import Catalog, CatalogRow
from cluster.context import Context
from cluster.pixels_job import PixelCache, build_pixels
from cluster.shards import read_picture
from cluster.workspace import Workspace
from encoders.baseline import raw_pixel_vectors
from encoders.card import config_of
from encoders.distort import distort
from encoders.encoder import Encoder, EncoderConfig, Layer, preferred_device
from encoders.picture import to_square
from encoders.preprocess import DECODE_EDGE, PreprocessConfig
from index.artifact import open_door

__all__ = [
    "Entrant",
    "Look",
    "Sample",
    "Source",
    "Vectors",
    "draw_sample",
    "embed_sources",
    "read_entrants",
    "sources_of",
]

Pixels = NDArray[np.uint8]
Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]
Origin = Literal["trained", "imported", "random init", "raw pixels"]

QUERY_SCALE = 2
"""Queries are distorted at this multiple of the encoder's size, so that a crop keeps its detail."""
BLOCK_PICTURES = 256


class Look(NamedTuple):
    """How a picture is made a square; encoders of one look share pixels."""

    size: int
    fit: str
    decode_edge: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Entrant:
    """An encoder that is compared, by its card; its weights stay on disk.

    Args:
        name: in the workspace.
        card: content of its ``card.json``.
        config: what it is made of.
    """

    name: str
    card: dict[str, Any]
    config: EncoderConfig

    @property
    def look(self) -> Look:
        """How it sees pictures."""
        preprocess = self.config.preprocess
        return Look(preprocess.size, preprocess.fit, preprocess.least_edge)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Those that can be compared."""
        return ("backbone", "projector") if self.config.projector.num_layers else ("backbone",)

    @property
    def origin(self) -> Origin:
        """Where its weights come from."""
        return "imported" if "imported" in self.card else "trained"

    @property
    def twin(self) -> EncoderConfig:
        """What its untrained twin is made of; the head has no part in a backbone's vectors."""
        return replace(self.config, projector=replace(self.config.projector, num_layers=0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One column: what turns pictures into vectors.

    Args:
        name: of the column.
        origin: what kind it is.
        look: how it sees pictures.
        entrant: whose layer or twin it is; None for raw pixels.
        layer: the encoder's layer; of raw pixels, nothing.
    """

    name: str
    origin: Origin
    look: Look
    entrant: Entrant | None = None
    layer: Layer | None = None

    @property
    def is_baseline(self) -> bool:
        """Whether others have to beat it."""
        return self.origin in ("random init", "raw pixels")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sample:
    """The pictures that all sources embed.

    Args:
        ids: int64 [N], ascending.
        query_ids: int64 [Q], of the distorted copies' originals.
        queries: the copies, uint8 [Q, S, S, 3] for each look.
        caches: the pixels of each look.
    """

    ids: Ids
    query_ids: Ids
    queries: dict[Look, Pixels]
    caches: dict[Look, PixelCache]

    def pixels(self, look: Look) -> Iterator[Pixels]:
        """The pictures of ``ids``, block by block."""
        cache = self.caches[look]
        positions = np.searchsorted(cache.ids, self.ids)
        for start in range(0, len(positions), BLOCK_PICTURES):
            yield cache.read(positions[start : start + BLOCK_PICTURES])


def read_entrants(workspace: Workspace, names: Sequence[str]) -> list[Entrant]:
    """The encoders by their cards; ``MissingArtifactError`` names what there is."""
    entrants = []
    for name in names:
        folder = workspace.require(
            "encoders", name, door="card.json", make=f"lookalike pretrain RECIPE --name {name}"
        )
        card = open_door(folder, "encoder", door="card.json", verify="sizes")
        entrants.append(Entrant(name=name, card=card, config=config_of(card)))
    return entrants


def sources_of(entrants: Sequence[Entrant]) -> list[Source]:
    """All columns: layers of the encoders first, then a twin for each architecture, then pixels."""
    alone = len(entrants) == 1
    layers = [
        Source(
            name=(entrant.origin if alone else entrant.name)
            + (" projector" if layer == "projector" else ""),
            origin=entrant.origin,
            look=entrant.look,
            entrant=entrant,
            layer=layer,
        )
        for entrant in entrants
        for layer in entrant.layers
    ]
    twins: dict[EncoderConfig, Entrant] = {}
    for entrant in entrants:
        twins.setdefault(entrant.twin, entrant)
    untrained = [
        Source(
            name="random init" if len(twins) == 1 else f"random init of {entrant.name}",
            origin="random init",
            look=entrant.look,
            entrant=entrant,
            layer="backbone",
        )
        for entrant in twins.values()
    ]
    pixels = Source(name="raw pixels", origin="raw pixels", look=entrants[0].look)
    return [*layers, *untrained, pixels]


def draw_sample(
    catalog: Catalog,
    entrants: Sequence[Entrant],
    context: Context,
    *,
    num: tuple[int, int],
    seed: int,
    error_budget: float,
) -> Sample:
    """Choose pictures and distort some; the same for every set of encoders of a corpus.

    Args:
        catalog: the corpus.
        entrants: who will see them.
        context: of the job; pixels are built there when they are missing.
        num: the most pictures, and the most queries.
        seed: decides all draws.
        error_budget: share of pictures that may be undecodable.

    Raises:
        ErrorBudgetError: too many pictures failed.
        ValueError: fewer than two pictures can be read, or no query.
    """
    looks = {entrant.look: entrant.config.preprocess for entrant in reversed(entrants)}
    caches = {
        look: build_pixels(catalog, preprocess, context, error_budget=error_budget)
        for look, preprocess in looks.items()
    }
    every = iter(caches.values())
    shared = next(every).ids
    for cache in every:
        shared = np.intersect1d(shared, cache.ids, assume_unique=True)
    if len(shared) < 2:
        raise ValueError(
            f"corpus {catalog.door['name']!r}: {len(shared)} of its pictures can be read, and a "
            "comparison needs two. Add pictures and scan again."
        )
    rng = np.random.default_rng(seed)
    ids = shared[np.sort(rng.permutation(len(shared))[: num[0]])]
    asked = np.sort(rng.permutation(ids)[: num[1]])
    query_ids, queries = _distorted(catalog, asked, looks, seed)
    return Sample(ids=ids, query_ids=query_ids, queries=queries, caches=caches)


def embed_sources(
    sample: Sample, sources: Sequence[Source], workspace: Workspace, seed: int
) -> Iterator[tuple[Source, Vectors, Vectors]]:
    """Each source with the vectors of the pictures and of the queries: float32 [N, D], [Q, D]."""
    opened: dict[str, Encoder] = {}
    for source in sources:
        if source.entrant is None:
            embed: Callable[[Pixels], Vectors] = raw_pixel_vectors
        elif source.is_baseline:
            embed = Encoder.initialise(source.entrant.twin, seed).to(preferred_device()).embed
        else:
            name = source.entrant.name
            if name not in opened:
                opened.clear()  # before the next one is loaded, so that one is in memory
                encoder = workspace.open_very_encoder(name, source.entrant.card["id"])
                opened[name] = encoder.to(preferred_device())
            embed = partial(opened[name].embed, layer=source.layer or "backbone")
        vectors = np.concatenate([embed(pixels) for pixels in sample.pixels(source.look)])
        yield source, vectors, embed(sample.queries[source.look])


def _distorted(
    catalog: Catalog, ids: Ids, looks: dict[Look, PreprocessConfig], seed: int
) -> tuple[Ids, dict[Look, Pixels]]:
    """Ids and distorted copies, for each look; unreadable files are left out."""
    kept: list[int] = []
    copies: dict[Look, list[Pixels]] = {look: [] for look in looks}
    large = {look: min(look.size * QUERY_SCALE, DECODE_EDGE) for look in looks}
    squares_of = partial(
        _squares,
        looks=[replace(looks[look], size=large[look], decode_edge=DECODE_EDGE) for look in looks],
    )
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(ids), BLOCK_PICTURES):
            rows = catalog.rows(ids[start : start + BLOCK_PICTURES])
            pairs = zip(rows, pool.map(squares_of, rows), strict=True)
            found = [(row.id, squares) for row, squares in pairs if squares is not None]
            names = [picture_id for picture_id, _ in found]
            kept += names
            for place, look in enumerate(looks if found else ()):
                pixels = np.stack([squares[place] for _, squares in found])
                copies[look].append(distort(pixels, names, seed=seed, size=look.size))
    if not kept:
        raise ValueError(
            f"corpus {catalog.door['name']!r}: none of {len(ids)} sampled pictures can be read. "
            "If the files moved, run lookalike scan again."
        )
    return np.array(kept, np.int64), {look: np.concatenate(copies[look]) for look in looks}


def _squares(row: CatalogRow, looks: Sequence[PreprocessConfig]) -> list[Pixels] | None:
    image = read_picture(row).image
    return None if image is None else [to_square(image, look) for look in looks]
