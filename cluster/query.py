"""What can be asked of an index: examples, a filter, and how the answer is chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_args

import tyro

from encoders.picture import Box
from index.examples import Combine
from index.ranking import Ranking
from index.vectors import MAX_ID

__all__ = ["Example", "SearchOptions", "SearchQuery", "check_id"]


def check_id(number: int) -> None:
    """``ValueError`` unless it is a number that a picture may have."""
    if not 0 <= number <= MAX_ID:
        raise ValueError(
            f"picture {number}: ids go from 0 to {MAX_ID}. They are those that a search shows."
        )


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
        if self.id is not None:
            check_id(self.id)
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
class SearchOptions:
    """What may be asked of a search beside its examples, from a terminal and in Python alike."""

    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    """How many pictures to return."""
    combine: Combine = "mean"
    """With several examples: mean for what is like all of them, best for what is like any."""
    where: str | None = None
    """Only pictures of which this holds, such as "width >= 1024 and label in ('cat', 'dog')"."""
    min_score: float | None = None
    """Only pictures whose cosine is at least this; compared with all, so none is missed."""
    diversity: float = 0.0
    """0 for the nearest; up to 1, more and more for pictures unlike the results before them."""
    exact: bool = False
    """Compare with every picture, instead of the share that reaches the index's recall."""
    collapse_duplicates: bool = False
    """Show of near-duplicates only the nearest; lookalike graph finds them."""

    def options(self) -> dict[str, Any]:
        """These options by name, for another search."""
        return {each.name: getattr(self, each.name) for each in fields(SearchOptions)}


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchQuery(SearchOptions):
    """A search for one answer.

    Args:
        like: examples that results should be like.
        unlike: examples that they should not be like.
    """

    like: tuple[Example, ...] = ()
    unlike: tuple[Example, ...] = ()

    def __post_init__(self) -> None:
        Ranking(diversity=self.diversity)
        if self.combine not in get_args(Combine):
            allowed = " or ".join(get_args(Combine))
            raise ValueError(f"combine is {self.combine!r}; allowed is {allowed}. Correct it.")

    @property
    def ids(self) -> list[int]:
        """Examples that are in the index; they are no results of their own search."""
        return [example.id for example in (*self.like, *self.unlike) if example.id is not None]
