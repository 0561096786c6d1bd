"""compact: fold what was added to an index into its parts, and drop what was removed.

1. `index.update` looks how far the version in service has drifted. 2. It writes a new version
beside the old, with lists and codes as they are, or trained anew. 3. That one goes into service
once it answers its own queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster.changes import report_of
from cluster.context import Context
from cluster.part_tasks import part_filler
from cluster.relations import follow_relations
from cluster.workspace import check_name
from index.update import compact_index

__all__ = ["CompactConfig", "compact"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CompactConfig:
    """Fold what was added to an index into its parts, and drop what was removed from it."""

    index: str
    """Name of the index."""
    retrain: bool = False
    """Choose and train the index anew, from its own vectors; without, only where it has drifted."""

    def __post_init__(self) -> None:
        """Check the name."""
        check_name(self.index, what="index")


def compact(config: CompactConfig, context: Context) -> dict[str, Any]:
    """Make the version in service one layer again.

    Returns:
        What was done and why, and what the new version's card says.

    Raises:
        MissingArtifactError: there is no such index.
        CorruptArtifactError: the version in service is damaged.
        ValueError: another process is building or changing the index.
    """
    folder = context.workspace.require(
        "indexes",
        config.index,
        door="CURRENT",
        make="lookalike index --corpus CORPUS --encoder ENCODER",
    )
    done = compact_index(folder, retrain=config.retrain, fill=part_filler(context), say=context.say)
    relations = follow_relations(context, config.index, done)
    return report_of(done, config.index, folder, relations)
