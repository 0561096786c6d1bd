"""Parts of an index version: each filled from a slice of the stored vectors, in its own time.

A part is a job that needs no other: what it reads and where it writes are files, so jobs may run
one by one here, or side by side on other machines that see the same disk. The bytes are the same.

Shapes: N rows, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from index.budget import Budget, give_back
from index.choose import Recipe
from index.faiss_file import read_faiss, write_faiss
from index.folder import FileRecord, Folder
from index.nearness import rows_by_nearness
from index.part import Part
from index.vector_sets import iter_rows
from index.vectors import VECTORS, VectorFile

__all__ = ["FillParts", "PartJob", "fill_here", "fill_part", "plan_parts", "save_template"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PartJob:
    """One part to write.

    Args:
        folder: path of the version's folder.
        template: name of the file of the trained, empty index.
        name: of the part's file.
        start: first row.
        stop: row before which it ends.
        block_rows: rows to add at once.
        is_graph: whether it is a graph that is to be filled.
        mapped: see `VectorFile`.
    """

    folder: str
    template: str
    name: str
    start: int
    stop: int
    block_rows: int
    is_graph: bool
    mapped: bool


FillParts = Callable[[Sequence[PartJob]], list[FileRecord]]
"""Does jobs, and gives their files' records in the same order."""


def plan_parts(
    folder: Folder, recipe: Recipe, num_rows: int, budget: Budget, template: str
) -> list[PartJob]:
    """The jobs of a recipe: rows divided into parts that fit the budget."""
    row_bytes, fixed_bytes = recipe.row_bytes(budget.dim), recipe.fixed_bytes(budget.dim)
    rows = budget.rows_per_part(row_bytes, fixed_bytes, num_rows)
    return [
        PartJob(
            folder=str(folder.local_path()),
            template=template,
            name=f"part-{recipe.kind}-{number:05d}.faiss",
            start=start,
            stop=min(start + rows, num_rows),
            block_rows=budget.block_rows,
            is_graph=recipe.kind == "hnsw",
            mapped=budget.mapped,
        )
        for number, start in enumerate(range(0, num_rows, rows))
    ]


def save_template(folder: Folder, recipe: Recipe, template: Any) -> str:
    """Write the empty index that parts are copies of; returns the file's name."""
    name = f"template-{recipe.kind}.faiss"
    folder.write_with(name, lambda path: write_faiss(template, path))
    return name


def fill_part(job: PartJob) -> FileRecord:
    """Do one job.

    Cost: one pass over its rows. Memory: twice the part, and a block.
    """
    folder = Folder.at(job.folder)
    template = read_faiss(folder.local_path(job.template))
    vectors = VectorFile(Path(job.folder) / VECTORS, mapped=job.mapped)
    if job.is_graph:
        part = _fill_graph(template, vectors, job)
    else:
        batches = vectors.iter_batches(job.block_rows, start=job.start, stop=job.stop)
        part = Part.fill(template, batches)
    return folder.write_hashed(job.name, part.write)


def _fill_graph(template: Any, vectors: VectorFile, job: PartJob) -> Part:
    """Rows join in an order by chance, since a region that comes late is badly linked to others.

    Then they are laid out so that near ones lie together.
    """
    drawn = np.random.default_rng(0).permutation(job.stop - job.start)
    part = Part.fill(template, iter_rows(vectors, job.start + drawn, job.block_rows))
    places = np.empty(len(drawn), np.int64)
    places[drawn] = np.arange(len(drawn))
    by_nearness = rows_by_nearness(vectors, job.start, job.stop, job.block_rows)
    part.lay_out(places[by_nearness - job.start])
    return part


def fill_here(jobs: Sequence[PartJob]) -> list[FileRecord]:
    """Do the jobs in this process, one by one."""
    records = []
    for job in jobs:
        records.append(fill_part(job))
        give_back()
    return records
