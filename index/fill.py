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

from index.budget import Budget, give_back
from index.choose import Recipe
from index.faiss_file import read_faiss, write_faiss
from index.folder import FileRecord, Folder
from index.part import Part
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
        mapped: see `VectorFile`.
    """

    folder: str
    template: str
    name: str
    start: int
    stop: int
    block_rows: int
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
    part = Part.fill(template, vectors.iter_batches(job.block_rows, start=job.start, stop=job.stop))
    return folder.write_hashed(job.name, part.write)


def fill_here(jobs: Sequence[PartJob]) -> list[FileRecord]:
    """Do the jobs in this process, one by one."""
    records = []
    for job in jobs:
        records.append(fill_part(job))
        give_back()
    return records
