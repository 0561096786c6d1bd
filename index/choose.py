"""What an index aims for, and which FAISS recipe can reach it at a given size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["IndexConfig", "Recipe", "choose_recipe"]

EXACT_BELOW = 20_000
"""Below this an exact scan takes about a millisecond: nothing to gain by approximation."""

MAX_LISTS = 4096
"""k-means costs grow with the square of it; 4096 lists train in minutes on two cores."""

ROWS_PER_LIST = 64
"""At least so many training rows a list; FAISS warns below 39."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """What an index has to achieve."""

    target_recall: float = 0.95
    """Share of the true k nearest to find; its 95 % lower bound has to reach this."""
    k: int = 10
    """Results a query when recall is measured."""
    num_queries: int = 1000
    """Held-out queries: half choose the setting, half judge it."""
    kind: Literal["auto", "exact", "ivf"] = "auto"
    """auto: exact below 20,000 pictures, inverted lists above."""
    train_rows_per_list: int = 128
    """Training rows a list, drawn over all shards."""
    part_rows: int = 2_000_000
    """Rows of one index file, so that memory while building does not grow with the corpus."""
    seed: int = 0
    """Seed of the training sample, the queries and k-means."""

    def __post_init__(self) -> None:
        _require(0 < self.target_recall <= 1, "target_recall", self.target_recall, "0 < r <= 1")
        _require(self.k >= 1, "k", self.k, "at least 1")
        _require(self.num_queries >= 2, "num_queries", self.num_queries, "at least 2")
        _require(self.kind in ("auto", "exact", "ivf"), "kind", self.kind, "auto, exact or ivf")
        _require(
            39 <= self.train_rows_per_list <= 256,
            "train_rows_per_list",
            self.train_rows_per_list,
            "39 to 256",
        )
        _require(self.part_rows >= 1, "part_rows", self.part_rows, "at least 1")


def _require(holds: bool, field: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"index config: {field} is {value!r}, allowed is {allowed}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A FAISS index to build: an exact scan or inverted lists, both over float16 codes.

    Args:
        kind: ``exact`` or ``ivf``.
        nlist: number of inverted lists; 1 for an exact scan.
        why: the choice in a sentence.
    """

    kind: Literal["exact", "ivf"]
    nlist: int
    why: str

    @property
    def factory(self) -> str:
        """Its name in the language of ``faiss.index_factory``."""
        return "IDMap,SQfp16" if self.kind == "exact" else f"IVF{self.nlist},SQfp16"


def choose_recipe(num_rows: int, config: IndexConfig) -> Recipe:
    """The recipe for a corpus of this size.

    >>> choose_recipe(5_000, IndexConfig()).factory
    'IDMap,SQfp16'
    >>> choose_recipe(200_000, IndexConfig()).factory
    'IVF1788,SQfp16'
    """
    if config.kind == "exact" or (config.kind == "auto" and num_rows < EXACT_BELOW):
        why = "asked for" if config.kind == "exact" else f"fewer than {EXACT_BELOW} rows"
        return Recipe(kind="exact", nlist=1, why=why)
    nlist = min(int(4 * math.sqrt(num_rows)), num_rows // ROWS_PER_LIST, MAX_LISTS)
    return Recipe(
        kind="ivf",
        nlist=max(1, nlist),
        why=f"{num_rows} rows: 4 sqrt(N) lists, at least {ROWS_PER_LIST} rows each",
    )
