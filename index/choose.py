"""What an index aims for, and which FAISS recipes may reach it at a given size.

Nothing is chosen here: these are the candidates. `index.contest` builds and measures them.

Recipes:

* exact    an exact scan over float16 codes
* ivf      inverted lists of float16 codes: only what lies in the lists not visited is missed
* pq       4-bit product quantisation scanned in registers, the best re-ranked on stored vectors
* ivf-pq   the same in inverted lists: the least memory in service
* hnsw     a graph over float16 codes: large, slow to build, the fastest where vectors have few
           dimensions of their own

Shapes: N rows, D embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from index.budget import MIN_ROWS_PER_LIST, Budget, parse_bytes

__all__ = ["Field", "IndexConfig", "Kind", "LeftOut", "Recipe", "candidates", "exact_recipe"]

Kind = Literal["exact", "ivf", "pq", "ivf-pq", "hnsw"]

EXACT_BELOW = 20_000
"""Below this an exact scan takes about a millisecond: nothing to gain by approximation."""

LARGE_FROM = 300_000
"""From here a scan of everything, even of short codes, is no candidate, and lists are finer."""

MAX_LISTS = 65_536
ROWS_PER_LIST = 64
HNSW_LINKS = 14
"""Of a row, twice as many in the lowest layer. Fewer take less memory, and as many comparisons for
the same recall: more rows are looked at, with fewer neighbours each."""
MIN_CODE_ROWS = 32
"""Vectors that 4-bit codes need: three quarters of them train 16 values a piece."""

CODE_VALUES = 16
"""That a piece of 4 bits can have: rows without which FAISS does not train them."""

CODE_TRAIN_ROWS = 8_192
"""Rows that 4-bit codes learn from; FAISS takes at most 256 for each of the 16 values. From as many
rows the time to build a graph is told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """What an index has to achieve."""

    target_recall: float = 0.95
    """Share of the true k nearest to find; its 95 % lower bound has to reach this."""
    k: int = 10
    """Results a query when recall is measured."""
    num_queries: int = 1000
    """Held-out queries: half choose index and setting, half judge what was chosen."""
    kind: Literal["auto", "exact", "ivf", "pq", "ivf-pq", "hnsw"] = "auto"
    """auto measures those that suit the size and keeps the best; else the one to build."""
    memory: str | None = None
    """Most memory, such as 512MB or 2GiB, that building may take in a process, and the index in
    service; no limit unless given."""
    latency_ms: float | None = None
    """Most time that 95 % of single queries may take on one thread; no limit unless given."""
    hnsw_build_s: float = 0.0
    """Let auto try hnsw as well where building it should take at most so many seconds."""
    train_rows_per_list: int = 128
    """Training rows a list, drawn over all shards."""
    part_rows: int = 2_000_000
    """Most rows of one index file; a memory limit may make them smaller."""
    seed: int = 0
    """Seed of the training sample, the queries and k-means."""

    def __post_init__(self) -> None:
        kinds = get_args(Kind)
        _require(0 < self.target_recall <= 1, "target_recall", self.target_recall, "0 < r <= 1")
        _require(self.k >= 1, "k", self.k, "at least 1")
        _require(self.num_queries >= 2, "num_queries", self.num_queries, "at least 2")
        _require(self.kind in ("auto", *kinds), "kind", self.kind, f"auto, {', '.join(kinds)}")
        if self.memory is not None:
            parse_bytes(self.memory, what="memory")
        if self.latency_ms is not None:
            _require(self.latency_ms > 0, "latency_ms", self.latency_ms, "above 0")
        _require(self.hnsw_build_s >= 0, "hnsw_build_s", self.hnsw_build_s, "at least 0")
        _require(
            MIN_ROWS_PER_LIST <= self.train_rows_per_list <= 256,
            "train_rows_per_list",
            self.train_rows_per_list,
            "39 to 256",
        )
        _require(self.part_rows >= 1, "part_rows", self.part_rows, "at least 1")

    def budget(self, dim: int) -> Budget:
        """The memory limit, for vectors of so many dimensions."""
        limit = None if self.memory is None else parse_bytes(self.memory, what="memory")
        return Budget(limit_bytes=limit, dim=dim, part_rows=self.part_rows)


def _require(holds: bool, field: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"index config: {field} is {value!r}, allowed is {allowed}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A FAISS index to build.

    Args:
        kind: see the top of this file.
        nlist: number of inverted lists; 1 where there are none.
        why: why it is a candidate, in a sentence.
    """

    kind: Kind
    nlist: int
    why: str

    @property
    def lossy(self) -> bool:
        """Whether visiting all there is in the index may still miss a neighbour."""
        return self.kind in ("pq", "ivf-pq")

    def factory(self, dim: int) -> str:
        """Its name in the language of ``faiss.index_factory``.

        >>> Recipe(kind="ivf-pq", nlist=64, why="").factory(128)
        'IVF64,PQ64x4fs'
        """
        if self.kind in ("pq", "ivf-pq"):
            return f"IVF{self.nlist},PQ{dim // 2}x4fs"
        if self.kind == "hnsw":
            return f"IDMap,HNSW{HNSW_LINKS},SQfp16"
        return "IDMap,SQfp16" if self.kind == "exact" else f"IVF{self.nlist},SQfp16"

    def row_bytes(self, dim: int) -> int:
        """Bytes of a row in memory: its code, its id, its links."""
        if self.kind in ("pq", "ivf-pq"):
            return math.ceil(dim / 4) + 8
        return 2 * dim + 8 + (8 * HNSW_LINKS + 12 if self.kind == "hnsw" else 0)

    def fixed_bytes(self, dim: int) -> int:
        """Bytes of a part without rows; 4-bit codes are kept in blocks of 32, so lists round up."""
        rounding = 32 * (dim // 4) if self.kind == "ivf-pq" else 0
        return self.nlist * (4 * dim + rounding) if self.nlist > 1 else 0

    def train_rows(self, config: IndexConfig) -> int:
        """Rows that it learns from."""
        lists = config.train_rows_per_list * self.nlist if self.nlist > 1 else 0
        return max(lists, 0 if self.kind in ("exact", "ivf") else CODE_TRAIN_ROWS)

    @property
    def least_train_rows(self) -> int:
        """Rows without which it cannot be trained."""
        return max(self.nlist, CODE_VALUES if self.kind in ("pq", "ivf-pq") else 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """A candidate that was not built.

    Args:
        kind: which.
        why: the reason in a sentence.
    """

    kind: Kind
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """Who takes part.

    Args:
        recipes: candidates, the simplest first.
        left_out: those that suit the size, and cannot or may not be built.
    """

    recipes: list[Recipe]
    left_out: list[LeftOut]


def candidates(num_rows: int, dim: int, config: IndexConfig) -> Field:
    """The recipes to measure for a corpus of this size.

    >>> [recipe.kind for recipe in candidates(200_000, 128, IndexConfig()).recipes]
    ['exact', 'ivf', 'pq', 'ivf-pq']

    Raises:
        ValueError: the one kind that was asked for cannot be built.
    """
    budget = config.budget(dim)
    kinds, reason = _kinds(num_rows, config)
    recipes, left_out = [], []
    for kind in kinds:
        recipe = Recipe(kind=kind, nlist=_num_lists(kind, num_rows, budget), why=reason)
        problem = _problem(recipe, num_rows, budget, asked_for=config.kind == kind)
        if problem is None:
            recipes.append(recipe)
        else:
            left_out.append(LeftOut(kind=kind, why=problem))
    if not recipes and config.kind != "auto":
        raise ValueError(
            f"index config: kind is {config.kind!r}, but {left_out[0].why}. Use another --kind, "
            "or auto."
        )
    return Field(recipes=recipes, left_out=left_out)


def exact_recipe(why: str) -> Recipe:
    """What always reaches the target."""
    return Recipe(kind="exact", nlist=1, why=why)


def _kinds(num_rows: int, config: IndexConfig) -> tuple[list[Kind], str]:
    if config.kind != "auto":
        return [config.kind], "asked for"
    if num_rows < EXACT_BELOW:
        return ["exact"], f"fewer than {EXACT_BELOW} rows"
    kinds: list[Kind] = ["ivf", "ivf-pq"]
    if num_rows < LARGE_FROM:
        kinds = ["exact", "ivf", "pq", "ivf-pq"]
    if config.hnsw_build_s:
        kinds.append("hnsw")
    return kinds, f"suits {num_rows} rows"


def _num_lists(kind: Kind, num_rows: int, budget: Budget) -> int:
    """4 sqrt(N) lists, 8 sqrt(N) of many rows; as many as there are rows to train."""
    if kind not in ("ivf", "ivf-pq"):
        return 1
    wanted = int((8 if num_rows >= LARGE_FROM else 4) * math.sqrt(num_rows))
    return max(1, min(wanted, num_rows // ROWS_PER_LIST, MAX_LISTS, budget.max_lists))


def _problem(recipe: Recipe, num_rows: int, budget: Budget, *, asked_for: bool) -> str | None:
    if recipe.kind in ("pq", "ivf-pq") and budget.dim % 2:
        return f"its codes take two dimensions each, and {budget.dim} is odd"
    if recipe.kind in ("pq", "ivf-pq") and num_rows < MIN_CODE_ROWS:
        return f"its codes need {MIN_CODE_ROWS} vectors to learn from, and there are {num_rows}"
    needed = num_rows * recipe.row_bytes(budget.dim) + recipe.nlist * 4 * budget.dim
    if budget.limit_bytes is not None and needed > budget.limit_bytes and not asked_for:
        return (
            f"it would take {needed / 1e6:.0f} MB in service, more than the "
            f"{budget.limit_bytes / 1e6:.0f} MB allowed"
        )
    return None
