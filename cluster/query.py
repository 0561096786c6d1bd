"""What can be asked of an index: examples, a filter, and how the answer is chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass

from encoders.picture import Box
from index.ranking import Ranking
from index.vectors import MAX_ID

__all__ = ["Example", "SearchQuery"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A picture that results should be like, or unlike: by its id or by its file's bytes.

    Args:
        id: of a picture in the index.
        picture: the bytes of a picture file; instead of the id.
        weight: above 0; how much it counts.
        box: left, top, right, bottom in pixels: the part of ``picture`` that counts; None for all.
    """

    id: int | None = None
    picture: bytes | None = None
    weight: float = 1.0
    box: Box | None = None

    def __post_init__(self) -> None:
        if (self.id is None) == (self.picture is None):
            raise ValueError("an example is an id or a picture: give one of them, and one only.")
        if self.id is not None and not 0 <= self.id <= MAX_ID:
            raise ValueError(
                f"picture {self.id}: ids go from 0 to {MAX_ID}. They are those that a search shows."
            )
        if self.box is not None and self.picture is None:
            raise ValueError(
                f"crop {self.box} of picture {self.id}: only a picture file can be cropped, since "
                "the index keeps vectors. Search with the file itself."
            )
        if not 0 < self.weight < math.inf:
            raise ValueError(
                f"weight is {self.weight}; allowed is a number above 0. What results should be "
                "unlike is given as such."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchQuery:
    """A search for one answer.

    Args:
        like: examples that results should be like.
        unlike: examples that they should not be like.
        k: how many results; at least 1.
        where: a filter on the catalog's columns; see ``index.filter_syntax``.
        min_score: lowest score of a result, found exactly; None for the k nearest, however near.
        diversity: 0 for the nearest, up to 1 for the most different ones.
        exact: compare with every picture that may be a result.
        collapse_duplicates: show of near-duplicates only the nearest.
    """

    like: tuple[Example, ...] = ()
    unlike: tuple[Example, ...] = ()
    k: int = 10
    where: str | None = None
    min_score: float | None = None
    diversity: float = 0.0
    exact: bool = False
    collapse_duplicates: bool = False

    def __post_init__(self) -> None:
        Ranking(diversity=self.diversity)

    @property
    def ids(self) -> list[int]:
        """Examples that are in the index; they are no results of their own search."""
        return [example.id for example in (*self.like, *self.unlike) if example.id is not None]
