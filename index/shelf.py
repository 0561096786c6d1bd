"""Parts that are in memory only while they are searched, and what parts share.

Shapes: Q queries, D embedding, K results a query.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from index.coarse import Coarse
from index.part import Part
from index.vectors import Floats, Ids

__all__ = ["AnyPart", "ShelvedPart", "open_parts", "shelve_parts"]


class ShelvedPart:
    """A part that is in memory only while it is searched, so that a build needs room for one.

    Args:
        path: a file of ``Part.write``.

    Attributes:
        coarse: a copy of its many centroids, which are not taken up anew for each search; None of
            few.
    """

    def __init__(self, path: Path) -> None:
        opened = Part.open(path)
        self.path = path
        self.num_rows, self.nlist = opened.num_rows, opened.nlist
        self.lossy, self.is_graph = opened.lossy, opened.is_graph
        self.coarse: Coarse | None = None
        if opened.coarse is not None and opened.coarse.may_code:
            self.coarse = opened.coarse.apart()

    def search(
        self,
        queries_QD: Floats,
        k: int,
        *,
        nprobe: int,
        selector: object = None,
        nearest: tuple[Floats, Ids] | None = None,
    ) -> tuple[Floats, Ids]:
        """As `Part.search`."""
        opened = self.open()
        return opened.search(queries_QD, k, nprobe=nprobe, selector=selector, nearest=nearest)

    def open(self) -> Part:
        """The part, in memory for as long as it is held."""
        return Part.open(self.path, self.coarse)


AnyPart = Part | ShelvedPart


def open_parts(paths: Sequence[Path]) -> list[Part]:
    """Open parts, which share what they know of centroids that they have in common."""
    parts: list[Part] = []
    for path in paths:
        parts.append(Part.open(path))
        _share(parts)
    return parts


def shelve_parts(paths: Sequence[Path]) -> list[ShelvedPart]:
    """As `open_parts`, but shelved."""
    parts: list[ShelvedPart] = []
    for path in paths:
        parts.append(ShelvedPart(path))
        _share(parts)
    return parts


def _share(parts: Sequence[AnyPart]) -> None:
    """Have the last take the first's centroids, if they are the same."""
    first, last = parts[0].coarse, parts[-1].coarse
    if first is not None and last is not None and first is not last and first.is_like(last):
        parts[-1].coarse = first
