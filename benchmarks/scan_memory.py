"""Time and memory of scanning and planning, with a listing that is simulated: no file is opened.

``python -m benchmarks.scan_memory --rows 10000000``: a first scan, a scan of the same with one
picture in a hundred changed and one in a hundred gone, and a plan of shards. Each step is a process
of its own; its peak is what it took beyond what it had when it began.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.catalog import Catalog
from cluster.catalog_writer import CatalogWriter, open_for_scan
from cluster.comparison import Comparison
from cluster.plan import plan_shards, write_plan
from cluster.sources import Listed
from index.folder import Folder

BATCH = 1024
SHARD_ROWS = 2048
STEPS = ("scan", "again", "plan")


def listing(rows: int, *, again: bool) -> Iterator[Listed]:
    """Files of 64 folders, with paths of 60 letters; a second time with changes."""
    for number in range(rows):
        if again and number % 100 == 1:
            continue
        uri = f"/pictures/of/many/holidays/folder-{number % 64:03d}/picture-{number:012d}.jpeg"
        time_ns = 1_700_000_000_000_000_000 + number + (again and number % 100 == 0)
        yield Listed(uri, 100_000 + number % 1000, time_ns, label=f"folder-{number % 64:03d}")


def look(_: Listed, row: dict[str, Any], __: float) -> dict[str, Any]:
    """What a header would say."""
    return {**row, "status": "ok", "format": "JPEG", "width": 1024, "height": 768}


def scan(folder: Folder, rows: int, *, again: bool) -> None:
    """The steps of `cluster.scan_job.scan` on a simulated listing."""
    writer = CatalogWriter(folder, "many", {"metadata": {}}, open_for_scan(folder))
    comparison = Comparison(writer, 1e8, {}, look)
    batch: list[Listed] = []
    for listed in listing(rows, again=again):
        batch.append(listed)
        if len(batch) == BATCH:
            comparison.take(batch)
            batch = []
    comparison.take(batch)
    comparison.retire_vanished((), keep_files=False, allow_most=False, name="the listing")
    comparison.close()
    writer.publish(comparison.containers)


def plan(folder: Folder) -> None:
    """What the driver of an embedding job holds and writes before its workers begin."""
    catalog = Catalog.open(folder)
    shards = plan_shards(catalog, key="k", shard_rows=SHARD_ROWS)
    write_plan(folder, shards)


def step(name: str, folder: Folder, rows: int) -> dict[str, float]:
    """Time of one step, and its memory beyond what the process had before."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started_s = time.monotonic()
    if name == "plan":
        plan(folder)
    else:
        scan(folder, rows, again=name == "again")
    seconds = time.monotonic() - started_s
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": round(seconds, 2), "peak_mib": round((peak - before) / 1024, 1)}


def measure(rows: int) -> dict[str, Any]:
    """All steps, each in a process of its own."""
    found: dict[str, Any] = {"rows": rows}
    with tempfile.TemporaryDirectory() as scratch:
        for name in STEPS:
            command = [sys.executable, "-m", "benchmarks.scan_memory", "--rows", str(rows)]
            done = subprocess.run(
                [*command, "--step", name, "--folder", scratch], capture_output=True, check=True
            )
            found[name] = json.loads(done.stdout)
        found["catalog_mib"] = round(
            sum(path.stat().st_size for path in Path(scratch).glob("catalog-*")) / 2**20, 1
        )
    return found


def main() -> None:
    """Read the command line; print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--step", choices=STEPS)
    parser.add_argument("--folder")
    given = parser.parse_args()
    if given.step:
        print(json.dumps(step(given.step, Folder.at(given.folder), given.rows)))
    else:
        print(json.dumps(measure(given.rows)))


if __name__ == "__main__":
    main()
