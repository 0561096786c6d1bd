"""Whether a version of an index can be changed or compacted within the memory that its card states.

What finds no room is built anew (`index.budget`), which takes a quarter of that for a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from index.choose import IndexConfig

__all__ = ["no_room_to"]


def no_room_to(
    do: Literal["change", "compact"], door: Mapping[str, Any], num_named: int = 0
) -> str:
    """Why there is too little memory for it, in a sentence's part; empty if there is enough.

    Args:
        do: what is to be done.
        door: of the version.
        num_named: pictures that were named to be removed.
    """
    config, delta = IndexConfig(**door["config"]), door.get("delta")
    rows = sum(part["rows"] for part in door["parts"]) + (delta["rows"] if delta else 0)
    largest = max(door["files"][part["file"]]["bytes"] for part in door["parts"])
    removed = door["removed"]["rows"] if door.get("removed") else 0
    budget = config.budget(door["dim"])
    if budget.allows_change(rows, largest, num_removed=removed, num_named=num_named):
        return ""
    return f"to {do} it takes more than the memory that it may take, {config.memory}"
