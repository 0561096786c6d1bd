"""Pictures that kill whoever decodes them, found in a process that may die.

A decoder that dies by a signal takes its worker along, and everything the worker had begun; one
that never ends is killed by its limit (`cluster.decode_limit`). When a shard has lost a worker, its
next one has the pictures decoded here first, one by one, each announced before it is begun, under
the same limit. The last one announced is the suspect, and to blame if it ends another such process
alone: the first may have been killed from outside, as where memory ran short.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from cluster.decode_limit import DECODE_LIMIT_S, DecodeLimit
from cluster.plan import ShardRow
from cluster.shards import read_data
from encoders.picture import PictureError, load_formats, open_picture, thumbnail, to_square
from encoders.preprocess import DECODE_EDGE, LEAST_DECODE_EDGE, PreprocessConfig

__all__ = ["find_fatal"]

logger = logging.getLogger(__name__)

DONE = "done"


def find_fatal(rows: Sequence[ShardRow], decode_limit_s: float = DECODE_LIMIT_S) -> frozenset[int]:
    """Ids of the pictures whose decoding ends its process, or does not end.

    Cost: decodes every picture twice, and two seconds, or the limit, for each one found.
    """
    fatal: set[int] = set()
    left = list(rows)
    while left:
        announced, ended = _decode_elsewhere(left, decode_limit_s)
        expected = [*(str(row.id) for row in left), DONE]
        if announced == expected:
            break
        if not announced or announced != expected[: len(announced)]:
            logger.warning(
                "decoding %d to %d apart: cannot tell which picture is to blame, as the process "
                "ended with %d and said %.200r",
                *(left[0].id, left[-1].id, ended, " ".join(announced)),
            )
            break
        suspect, left = left[len(announced) - 1], left[len(announced) :]
        if ended == -signal.SIGALRM:
            logger.warning("%s: takes over %g s, it is left out", suspect.uri, decode_limit_s)
        elif DONE in _decode_elsewhere([suspect], decode_limit_s)[0]:
            logger.warning("%s: its decoder was killed, but not by it", suspect.uri)
            continue
        else:
            logger.warning("%s: kills its decoder, it is left out", suspect.uri)
        fatal.add(suspect.id)
    return frozenset(fatal)


def _decode_elsewhere(rows: Sequence[ShardRow], decode_limit_s: float) -> tuple[list[str], int]:
    """What a process says that decodes them, a line for each picture begun and one at the end.

    Beside it, how the process ended: minus the signal, if by one.
    """
    lines = "".join(json.dumps([row.id, row.uri, row.bytes, row.mtime_ns]) + "\n" for row in rows)
    # A worker's own path may differ from what a new interpreter starts with.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        # -P, or modules of the folder that the job runs in would come before ours.
        [sys.executable, "-P", "-m", "cluster.fatal_pictures", str(decode_limit_s)],
        input=lines,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
        check=False,
    )
    return done.stdout.split(), done.returncode


def main() -> None:
    """Decode what standard input names, announcing each picture."""
    limit = DecodeLimit(float(sys.argv[1]))
    load_formats()
    for line in sys.stdin:
        row = ShardRow(*json.loads(line))
        print(row.id, flush=True)  # noqa: T201 - this is what the process is for
        status, data = read_data(row)
        # At both ends of what encoders ask for: another scale is another path through a decoder.
        for decode_edge in (DECODE_EDGE, LEAST_DECODE_EDGE) if status == "ok" else ():
            with contextlib.suppress(PictureError), limit.watch():
                image = open_picture(data, decode_edge=decode_edge)
                to_square(image, PreprocessConfig())
                thumbnail(image)
    print(DONE, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
