"""What verbs that change an index report: what was done, why, and what it should be followed by."""

from __future__ import annotations

from typing import Any

from index.build import PAGE
from index.folder import Folder
from index.update import Updated

__all__ = ["report_of"]


def report_of(
    done: Updated, name: str, folder: Folder, relations: str | None = None
) -> dict[str, Any]:
    """What a verb says of an index that it changed, or left as it is.

    Args:
        done: what was done.
        name: of the index.
        folder: where it lies.
        relations: what became of neighbours, near-duplicates and map; None if there were none.
    """
    door = done.door
    delta, dead = door.get("delta"), door.get("dead")
    return {
        "index": name,
        "version": done.version,
        "action": done.action,
        "why": done.why,
        "rows": door["rows"],
        "delta_rows": delta["rows"] if delta else 0,
        "dead_rows": dead["rows"] if dead else 0,
        "removed": door["removed"]["rows"] if door.get("removed") else 0,
        "recall": door["recall"],
        "relations": relations,
        "advice": _advice(done, name),
        "card": f"{folder}/{done.version}/{PAGE}",
        "path": str(folder),
    }


def _advice(done: Updated, name: str) -> str | None:
    """What to do next, if anything."""
    drift = done.drift
    if drift is None or drift.remedy is None:
        return None
    what = "Fold it in" if drift.remedy == "compact" else "Train it anew"
    return f"{what}: lookalike compact --index {name} ({drift.why})"
