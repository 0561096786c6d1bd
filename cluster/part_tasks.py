"""Parts of an index as Ray tasks, where a profile has more than this machine for them.

On one machine FAISS's own threads already use all cores, and one part at a time keeps to the
memory limit; so parts are filled here unless several actors embed or a cluster was joined. The
limit holds for each process. Where a part is filled changes no byte of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.context import Context
from index.fill import FillParts, PartJob, fill_here, fill_part
from index.folder import FileRecord
from index.part import set_threads

__all__ = ["part_filler"]

MAX_RETRIES = 3
"""A task whose process died starts again so often: its file is the same each time."""


def part_filler(context: Context) -> FillParts:
    """Who fills the parts of an index: this process, or Ray's."""
    side_by_side = context.where.profile_settings().embed_actors > 1
    if not side_by_side and context.where.address is None:
        return fill_here
    return lambda jobs: fill_here(jobs) if len(jobs) < 2 else _fill_on_ray(jobs, context)


def _fill_on_ray(jobs: Sequence[PartJob], context: Context) -> list[FileRecord]:
    with context.ray() as profile, context.progress("filling parts", len(jobs), "parts") as line:
        import ray

        task = ray.remote(_fill_with).options(
            num_cpus=profile.cpus_per_actor,
            max_retries=MAX_RETRIES,
            label_selector=profile.data_labels,
        )
        records: dict[int, FileRecord] = {}
        running: dict[Any, int] = {}
        pending = list(enumerate(jobs))
        while pending or running:
            while pending and len(running) < profile.embed_actors:
                number, job = pending.pop(0)
                running[task.remote(job, profile.cpus_per_actor)] = number
            done, _ = ray.wait(list(running), num_returns=1)
            records[running.pop(done[0])] = ray.get(done[0])
            line.advance(1)
        return [records[number] for number in range(len(jobs))]


def _fill_with(job: PartJob, threads: int) -> FileRecord:
    set_threads(threads)  # OpenMP would take all cores of the node, for each task
    return fill_part(job)
