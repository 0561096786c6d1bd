"""What a rule of the doctor looks at, and what a rule is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from encoders.health import HealthConfig, possible_rank
from encoders.split import FEWEST

__all__ = ["CHANCE", "Checkup", "Rule"]

CHANCE = 0.5
# Standard deviation of `discrimination` by chance, times the root of the number of pictures.
CHANCE_SPREAD = 1 / math.sqrt(12)
HALF = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkup:
    """All that a rule may look at."""

    step: int
    """Optimiser steps made."""
    last_step: int
    """That of the check before, or 0."""
    progress: float
    """Share of the run's steps that are made."""
    settled: bool
    """Whether warm-up and the steps of grace are over."""
    rate: float
    """The learning rate over the peak of its schedule."""
    now: Mapping[str, float]
    """Figures of this check."""
    last: Mapping[str, float]
    """Figures of the check before, or of the untrained network."""
    start: Mapping[str, float]
    """Figures of the untrained network."""
    num_pictures: int
    """How many pictures the figures are of."""
    batch_pictures: int
    """How many pictures a batch has."""
    dim: int
    """Dimensions of the embedding."""
    guess_loss: float | None
    """The loss of guessing, of methods whose loss bounds no information."""
    learns_classes: bool
    """Whether pictures of one class may rightly end in one point, all classes on few lines."""
    config: HealthConfig
    """Thresholds."""

    @property
    def past_grace(self) -> bool:
        """Whether embeddings have had time to spread out."""
        return self.step >= self.config.grace_steps

    @property
    def can_tell(self) -> bool:
        """Whether learning has had its time, and there are pictures enough to see it."""
        return self.settled and self.progress >= HALF and self.num_pictures >= FEWEST

    @property
    def chance(self) -> float:
        """Standard deviation of `discrimination` by chance."""
        return CHANCE_SPREAD / math.sqrt(self.num_pictures)

    @property
    def batch_chance(self) -> float:
        """The same for the pictures of a batch."""
        return CHANCE_SPREAD / math.sqrt(self.batch_pictures)

    def least_rank(self, num_pictures: int) -> float:
        """The effective rank of so many pictures below which they lie along few directions.

        Not above half of what the untrained network had in a batch: without BatchNorm in its head
        a network begins narrow, and has not collapsed.
        """
        wide = self.config.min_rank_share * possible_rank(num_pictures, self.dim)
        before = self.start.get("batch_rank", math.inf)
        return max(self.config.min_rank, min(wide, HALF * before))


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One symptom."""

    name: str
    """For state and tests; never changes."""
    sees: Callable[[Checkup], str | None]
    """What is wrong, as the rest of a sentence; None when nothing is."""
    stops: bool = False
    """Whether it stops the run; otherwise it warns."""
    advice: str = ""
    """Usual causes and what to do; empty leaves them to the method."""
    patience: int | None = None
    """Checks in a row that have to see it; None leaves it to the configuration."""
