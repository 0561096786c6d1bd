"""Pictures that kill whoever decodes them, found in a process that may die.

A decoder that dies by a signal takes its worker along, and everything the worker had begun. When a
shard has done so, its next worker has the pictures decoded here first, one by one, each announced
before it is begun: the last one announced is the culprit.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence

from cluster.plan import ShardRow
from cluster.shards import read_picture

__all__ = ["find_fatal"]

logger = logging.getLogger(__name__)

DONE = "done"


def find_fatal(rows: Sequence[ShardRow]) -> frozenset[int]:
    """Ids of the pictures whose decoding ends its process.

    Cost: decodes every picture once, and a second for each one found.
    """
    fatal: set[int] = set()
    left = list(rows)
    while left:
        announced = _decode_elsewhere(left)
        if not announced or announced[-1] == DONE:
            break
        position = len(announced) - 1
        logger.warning("%s: kills its decoder, it is left out", left[position].uri)
        fatal.add(left[position].id)
        left = left[position + 1 :]
    return frozenset(fatal)


def _decode_elsewhere(rows: Sequence[ShardRow]) -> list[str]:
    """What a process says that decodes them: a line for each picture begun, and one at the end."""
    lines = "".join(json.dumps([row.id, row.uri, row.bytes, row.mtime_ns]) + "\n" for row in rows)
    # A worker's own path may differ from what a new interpreter starts with.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-m", "cluster.fatal_pictures"],
        input=lines,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
        check=False,
    )
    return done.stdout.split()


def main() -> None:
    """Decode what standard input names, announcing each picture."""
    for line in sys.stdin:
        row = ShardRow(*json.loads(line))
        print(row.id, flush=True)  # noqa: T201 - this is what the process is for
        read_picture(row)
    print(DONE, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
