"""What `lookalike pretrain` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from cluster.run_labels import LabelSettings, LabelSource
from cluster.shard_job import check_error_budget
from cluster.trackers import TrackerName
from cluster.workspace import check_name
from encoders.pretrain_config import PretrainConfig

__all__ = ["PretrainJobConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainJobConfig:
    """Train an encoder on a corpus; run again to resume."""

    corpus: str
    """Name of the corpus to learn from."""
    name: str
    """Name of the run, and of the encoder that it makes."""
    training: Annotated[PretrainConfig, tyro.conf.arg(name="")] = field(
        default_factory=PretrainConfig
    )
    """What to compute; the recipe sets it, single fields can be overridden."""
    start: str | None = None
    """Name of an encoder to train on from, made here or imported; from nothing unless given."""
    labels: LabelSource | None = None
    """corpus: those of the scan; given: those of the Label tab and of imported files;
    both: the given ones, and the corpus' own of all others. Both unless given, but for methods that
    learn from labels, which learn the corpus' own."""
    held_out: float = 0.2
    """Share of the labels, at most 512, that no method learns and accuracy is measured by."""
    checkpoint_every: int = 200
    """Steps of work that a kill can cost at most; a checkpoint is written at every half of it."""
    stop_after_s: float | None = None
    """Seconds of training after which to end with the encoder so far; run again to go on. 0 only
    publishes that of the newest checkpoint."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    probe_every: int = 5
    """Epochs between measuring kNN and linear probe accuracy, when there are labels."""
    trackers: tuple[TrackerName, ...] = ("tensorboard",)
    """Where the numbers go besides metrics.jsonl; mlflow and wandb are extras to be installed."""
    max_failures: int = 3
    """How often Ray may restart the workers before the run is given up."""
    error_budget: float = 0.25
    """Share of undecodable pictures at which the job stops."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        check_name(self.corpus, what="corpus")
        check_name(self.name, what="encoder")
        for field_name, least in _LEAST.items():
            value = getattr(self, field_name)
            if value < least:
                raise ValueError(
                    f"{field_name} is {value}; it has to be {least} or more. "
                    "Leave it out for the default."
                )
        if self.stop_after_s is not None and not self.stop_after_s >= 0:
            raise ValueError(
                f"stop_after_s is {self.stop_after_s}; it has to be 0 or more. "
                "Leave it out to train to the end."
            )
        check_error_budget(self.error_budget)
        if self.start is not None:
            check_name(self.start, what="encoder --start")
        if not 0 <= self.held_out < 1:
            raise ValueError(
                f"held_out is {self.held_out}; it has to be a share from 0 to below 1. "
                "Leave it out for the default, or use 0 to learn all labels and measure nothing."
            )

    @property
    def label_settings(self) -> LabelSettings:
        """Which labels the run takes, and what for."""
        return LabelSettings(
            source=self.labels, share=self.held_out, to_learn=self.training.learns_labels
        )


_LEAST = {"checkpoint_every": 1, "log_every": 1, "probe_every": 1, "max_failures": 0}
