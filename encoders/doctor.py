"""The training doctor: looks at a run every so many steps, warns, and stops one that collapses.

It looks at pictures that the run never trains on, in eval mode, where there are any, and at the
training batch otherwise. What it finds depends on the state of the run alone, is the same on all
ranks, and changes nothing that training reads.

Shapes: N pictures of this rank, S edge in pixels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from encoders.checkup import Checkup, Rule
from encoders.examination import Examination, labelled_figures
from encoders.faults import FAULTS
from encoders.health import (
    CollapseError,
    NonFiniteError,
    health_metrics,
    information,
)
from encoders.held_out import ExaminedPictures
from encoders.leak import shared_statistics
from encoders.method import Batch, Method, MethodOutput
from encoders.moco import MoCo
from encoders.optim import peak_learning_rate
from encoders.pretrain_config import PretrainConfig
from encoders.suspects import suspects
from encoders.symptoms import SYMPTOMS

__all__ = ["RULES", "Doctor", "Finding"]

# What warns stands before what stops, so that a verdict can name what was seen before it.
RULES: tuple[Rule, ...] = tuple(sorted((*FAULTS, *SYMPTOMS), key=lambda rule: rule.stops))
# Of the held-out bound on information, for methods without one.
TEMPERATURE = 0.1
TINY = 1e-12
# Figures that rules need and that say nothing beside the others.
INTERNAL = frozenset({"distinct_pictures", "input_scale", "keys_in_queue", "weight_rms"})
NOISY = frozenset({"discrimination", "batch_discrimination", "class_discrimination"})
# Weight of the newest check in a mean, which is then over some six of them.
NEWEST = 0.3


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A warning: something is wrong, and the run goes on."""

    rule: str
    """Name of the rule."""
    since: int
    """Step at which it was first seen."""
    step: int
    """Step at which it was sure."""
    sentence: str
    """For a person: what is wrong, usual causes, what to change."""


class Doctor:
    """Watches one run.

    Args:
        config: of the run.
        method: its networks, with their first weights.
        num_steps: of the whole run.
        autocast: makes the context that networks run in.
        examined: pictures to look at; None looks at each step's batch.
    """

    def __init__(
        self,
        config: PretrainConfig,
        method: Method,
        num_steps: int,
        autocast: Callable[[], AbstractContextManager[Any]],
        examined: ExaminedPictures | None = None,
    ) -> None:
        self._config = config
        self._method = method
        self._num_steps = num_steps
        self._autocast = autocast
        self._examined = examined
        self._start: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._last_step = 0
        self._streaks: dict[str, list[int]] = {}
        self._findings: list[Finding] = []

    @property
    def findings(self) -> list[Finding]:
        """All warnings so far, oldest first."""
        return list(self._findings)

    @property
    def is_healthy(self) -> bool:
        """Whether no rule that stops a run saw anything at the last check."""
        return not any(rule.name in self._streaks for rule in RULES if rule.stops)

    def visit(self, step: int, batch: Batch, pixels: NDArray[np.uint8]) -> Examination | None:
        """Begin to look at step ``step``, counted from 0; None when it is not due.

        Args:
            step: about to be made.
            batch: this rank's share.
            pixels: uint8 [N, S, S, 3] that the batch was made from.
        """
        every = self._config.health.every
        is_first = not self._start
        if every > self._num_steps or not (is_first or (step + 1) % every == 0):
            return None
        examination = Examination(self._method, batch, pixels)
        if is_first and self._examined is not None:
            self._start = self._examine(self._examined, step)
        if isinstance(self._method, MoCo) and "shared_statistics" not in self._start:
            self._start["shared_statistics"] = shared_statistics(self._method, batch.chunks()[0])
        return examination

    def compared(self, examination: Examination, output: MethodOutput) -> None:
        """Go on, after the forward pass of the step and before anything moves."""
        examination.compared(output)
        if "batch_rank" not in self._start:
            # What the pictures that are examined say goes before what the batch says.
            self._start = {**examination.figures, **self._start}

    def conclude(
        self, examination: Examination, step: int, metrics: Mapping[str, float]
    ) -> dict[str, float]:
        """End a visit, after the step.

        Args:
            examination: what `visit` gave.
            step: optimiser steps made so far.
            metrics: of the step: ``lr``, ``grad_norm`` and, where there is one, ``mi_bound``.

        Returns:
            Figures of the check; nothing on the first step of a run, whose visit only learns what
            the untrained network can do.

        Raises:
            CollapseError: the run is beyond hope; the message says why, since when, and what to
                change.
            NonFiniteError: the networks make NaN or infinity of the examined pictures.
        """
        moved = examination.moved()
        self._start.setdefault("weight_rms", moved["weight_rms"])
        if step % self._config.health.every:
            return {}
        figures = {**examination.figures, **moved}
        figures["weight_growth"] = moved["weight_rms"] / max(self._start["weight_rms"], TINY)
        if self._examined is not None:
            figures |= self._examine(self._examined, step)
        if "discrimination" not in figures:
            return figures  # The batch overflowed in float16, and its step was left out.
        check = self._checkup(examination, step, {**metrics, **figures, **self._means(figures)})
        self._last, self._last_step = dict(check.now), step
        self._judge(check)
        return {name: value for name, value in figures.items() if name not in INTERNAL}

    def _means(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Of what is noisy, over the last checks, and the best of them."""
        means = {}
        for name in NOISY & figures.keys():
            before = self._last.get(f"mean_{name}", figures[name])
            means[f"mean_{name}"] = before + NEWEST * (figures[name] - before)
        best = self._last.get("best_discrimination", 0.0)
        return {**means, "best_discrimination": max(best, means["mean_discrimination"])}

    def _examine(self, examined: ExaminedPictures, step: int) -> dict[str, float]:
        """Figures of the examined pictures, the same on every rank."""
        views = examined.encode(self._method, self._autocast)
        if not all(bool(torch.isfinite(view).all()) for view in views):
            raise NonFiniteError(
                f"step {step}: the networks make NaN or infinity of pictures that they are "
                "examined on, in eval mode, though the loss is finite. Running statistics of "
                "BatchNorm are the usual cause. Lower optim.lr or use precision fp32, and start a "
                "run under a new name."
            )
        temperature = getattr(self._config.method, "temperature", TEMPERATURE)
        figures = health_metrics(*views)
        figures["held_out_mi_bound"] = float(information(*views, temperature))
        figures["held_out_mi_ceiling"] = math.log(examined.num_pictures)
        figures["distinct_pictures"] = float(examined.num_distinct)
        if self._method.needs_labels and examined.labels is not None:
            figures |= labelled_figures(*views, examined.labels)
        return figures

    def _checkup(self, examination: Examination, step: int, now: Mapping[str, float]) -> Checkup:
        config, examined = self._config, self._examined
        num_pictures = examination.num_pictures if examined is None else examined.num_pictures
        warmup = config.optim.warmup_share * self._num_steps
        return Checkup(
            step=step,
            last_step=self._last_step,
            progress=step / self._num_steps,
            settled=step >= max(config.health.grace_steps, warmup),
            rate=now["lr"] / peak_learning_rate(config.optim, config.batch_size),
            now={**now, "shared_statistics": self._start.get("shared_statistics", 0.0)},
            last={**self._start, "weight_growth": 1.0, **self._last},
            start=self._start,
            num_pictures=num_pictures,
            batch_pictures=examination.num_pictures,
            dim=examination.dim,
            guess_loss=self._method.guess_loss,
            learns_classes=self._method.needs_labels,
            config=config.health,
        )

    def _judge(self, check: Checkup) -> None:
        """Count for each rule the checks in a row that saw something, and act on those sure."""
        for rule in RULES:
            what = rule.sees(check)
            if what is None:
                self._streaks.pop(rule.name, None)
                continue
            streak = self._streaks.setdefault(rule.name, [0, check.step])
            streak[0] += 1
            patience = check.config.patience if rule.patience is None else rule.patience
            if rule.stops and streak[0] >= patience:
                raise CollapseError(self._verdict(rule, streak[1], check.step, what))
            if streak[0] == patience:
                sentence = self._warning(rule, streak[1], what)
                self._findings.append(
                    Finding(rule=rule.name, since=streak[1], step=check.step, sentence=sentence)
                )

    def _warning(self, rule: Rule, since: int, what: str) -> str:
        parts = [f"since step {since} {what}.", rule.advice or self._method.collapse_advice]
        return " ".join([*parts, suspects(self._config)]).strip()

    def _verdict(self, rule: Rule, since: int, step: int, what: str) -> str:
        """Why the run stops, and what was seen before."""
        parts = [f"training collapsed: since step {since} {what}, now at step {step}."]
        parts += [rule.advice or self._method.collapse_advice, suspects(self._config)]
        if self._findings:
            seen = "; ".join(finding.sentence.split(". ")[0] for finding in self._findings)
            parts.append(f"Seen before that: {seen}.")
        return " ".join(part for part in parts if part)

    def state_dict(self) -> dict[str, Any]:
        """What the next verdict depends on; numbers and text alone."""
        return {
            "start": dict(self._start),
            "last": dict(self._last),
            "last_step": self._last_step,
            "streaks": copy.deepcopy(self._streaks),
            "findings": [asdict(finding) for finding in self._findings],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._start, self._last = dict(state["start"]), dict(state["last"])
        self._last_step = state["last_step"]
        self._streaks = copy.deepcopy(state["streaks"])
        self._findings = [Finding(**finding) for finding in state["findings"]]
