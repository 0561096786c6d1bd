"""Lists of picture ids, each an Arrow file of its own beside an index version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from index.vectors import Ids, numbers_of

__all__ = ["NO_IDS", "read_ids", "write_ids"]

NO_IDS: Ids = np.empty(0, np.int64)
NO_IDS.setflags(write=False)


def write_ids(path: str, ids: Ids) -> None:
    """Write ids int64, rising, as one column ``id``."""
    table = pa.table({"id": ids})
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def read_ids(path: Path) -> Ids:
    """Read a file of `write_ids`."""
    with pa.OSFile(str(path)) as source:
        found: Ids = numbers_of(pa.ipc.open_file(source).read_all()["id"].combine_chunks())
    return found
