"""Build the candidates, measure each, and keep the best: fastest within the limits, then smallest.

Rules, in order:

1. A candidate counts when the choosing half's lower bound reaches the target short of exact search.
2. It has to be within the limits of memory in service and of latency.
3. The fastest wins. Those at most 20 % slower tie with it; of these the smallest wins; of those at
   most 10 % larger than that, the simplest.
4. What the judging half raises beyond the latency limit gives way to the next, to which that half
   shows itself with what is left of the interval's 5 %.
5. If none is within the latency limit, the limit is dropped, and the card says so. If none reaches
   the target, exact search it is.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from index.budget import Budget, give_back
from index.candidate import Candidate, Tuned
from index.choose import Field, IndexConfig, LeftOut, Recipe, exact_recipe
from index.fill import FillParts, plan_parts, save_template
from index.folder import FileRecord, Folder
from index.hnsw import hnsw_seconds
from index.judge import Judgement, judge
from index.kmeans import train_centroids
from index.queries import QuerySet, Samples
from index.shelf import shelve_parts
from index.template import train_template
from index.tune import tune
from index.vectors import Floats, VectorFile

__all__ = ["Contender", "Contest", "Outcome", "choose"]

logger = logging.getLogger(__name__)

TIE_LATENCY = 1.2
TIE_BYTES = 1.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A candidate with what it cost and what it can do.

    Args:
        candidate: the index.
        files: its files' records.
        tuned: its best setting.
        build_s: seconds to train and fill it.
        service_bytes: of its files. Stored vectors are not counted: re-ranking reads a few rows.
    """

    candidate: Candidate
    files: Mapping[str, FileRecord]
    tuned: Tuned
    build_s: float
    service_bytes: int

    @property
    def recipe(self) -> Recipe:
        """What it is."""
        return self.candidate.recipe

    @property
    def p50(self) -> float:
        """Milliseconds of half the single queries."""
        return self.tuned.latency.p50 if self.tuned.latency else 0.0

    @property
    def p95(self) -> float:
        """The same for 95 %."""
        return self.tuned.latency.p95 if self.tuned.latency else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The contest's end.

    Args:
        winner: who goes into service.
        judgement: what the judging half says of it.
        contenders: all that were measured.
        left_out: those that were not.
        why: why the winner won, in a sentence.
    """

    winner: Contender
    judgement: Judgement
    contenders: list[Contender]
    left_out: list[LeftOut]
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Contest:
    """Builds and measures candidates in a version's folder.

    Args:
        folder: where their files go.
        vectors: the stored vectors.
        queries: with their exact answers.
        config: what to achieve.
        budget: memory for it.
        fill: does the jobs of parts.
    """

    folder: Folder
    vectors: VectorFile
    queries: QuerySet
    config: IndexConfig
    budget: Budget
    fill: FillParts

    def hold(self, field: Field, samples: Samples) -> Outcome:
        """Build and tune all recipes of the field, choose, judge; delete what lost."""
        templates, left_out = self._train(field, samples)
        give_back()
        contenders = [self._enter(recipe, *template) for recipe, template in templates]
        winner, judgement, why = self._judged(contenders)
        for loser in contenders:
            for name in loser.files if loser is not winner else ():
                self.folder.remove(name)
        return Outcome(
            winner=winner,
            judgement=judgement,
            contenders=contenders,
            left_out=left_out,
            why=why,
        )

    def _judged(self, contenders: list[Contender]) -> tuple[Contender, Judgement, str]:
        """The winner, judged, and why it won; exact search joins where nothing else will do."""
        judging, limit_ms = self.queries.half(judging=True), self.config.latency_ms or math.inf
        standing, looked = list(contenders), 0
        too_slow: tuple[Contender, Judgement, str] | None = None
        while True:
            winner, why = choose(standing, self.config, self.budget)
            if winner is None and too_slow:
                return too_slow
            if winner is None:
                fallback = exact_recipe("no candidate reached the target")
                template = train_template(fallback, self.budget.dim, np.empty((0, 1), np.float32))
                winner = self._enter(fallback, template, 0.0)
                contenders.append(winner)
            promised = winner.p95 <= limit_ms
            if too_slow and not promised:
                return too_slow
            judgement = judge(
                winner.candidate, winner.tuned, judging, self.config.target_recall, looked=looked
            )
            if not promised or _p95(judgement) <= limit_ms:
                return winner, judgement, why
            looked = judgement.looks
            slower = f"; judged, 95 % of its queries take {_p95(judgement):g} ms"
            too_slow = too_slow or (winner, judgement, f"{why}{slower}, {limit_ms:g} may be")
            standing.remove(winner)
            if not standing or self.config.kind != "auto":
                return too_slow

    def _train(
        self, field: Field, samples: Samples
    ) -> tuple[list[tuple[Recipe, tuple[Any, float]]], list[LeftOut]]:
        """Templates with their seconds; the sample is in memory for this time only."""
        sample = self.vectors.gather(samples.train_rows)
        left_out = list(field.left_out)
        centroids: dict[int, tuple[Floats, float]] = {}
        templates = []
        for recipe in field.recipes:
            if recipe.kind == "hnsw" and (problem := self._too_slow(sample)):
                left_out.append(LeftOut(kind="hnsw", why=problem))
                continue
            start, shared_s = time.perf_counter(), 0.0
            if recipe.nlist > 1 and recipe.nlist not in centroids:
                found = train_centroids(sample, recipe.nlist, seed=self.config.seed)
                centroids[recipe.nlist] = found, time.perf_counter() - start
            elif recipe.nlist > 1:
                shared_s = centroids[recipe.nlist][1]
            lists = centroids[recipe.nlist][0] if recipe.nlist > 1 else None
            template = train_template(recipe, self.budget.dim, sample, lists)
            templates.append((recipe, (template, time.perf_counter() - start + shared_s)))
        return templates, left_out

    def _too_slow(self, sample: Floats) -> str | None:
        """Whether a graph would take longer than it may, by the time that a small one took."""
        if self.config.kind == "hnsw":
            return None
        needed = hnsw_seconds(sample, len(self.vectors))
        if needed <= self.config.hnsw_build_s:
            return None
        return f"building it would take about {needed:.0f} s, {self.config.hnsw_build_s:.0f} may be"

    def _enter(self, recipe: Recipe, template: Any, train_s: float) -> Contender:
        start = time.perf_counter()
        saved = save_template(self.folder, recipe, template)
        jobs = plan_parts(self.folder, recipe, len(self.vectors), self.budget, saved)
        records = self.fill(jobs)
        self.folder.remove(saved)
        give_back()
        build_s = train_s + time.perf_counter() - start
        files = {job.name: record for job, record in zip(jobs, records, strict=True)}
        parts = shelve_parts([self.folder.local_path(name) for name in files])
        candidate = Candidate(recipe, parts, self.vectors)
        choosing = self.queries.half(judging=False)
        tuned = tune(candidate, choosing, self.config.target_recall)
        logger.info("%s: built in %.1f s, %s", recipe.factory(self.budget.dim), build_s, tuned)
        return Contender(
            candidate=candidate,
            files=files,
            tuned=tuned,
            build_s=build_s,
            service_bytes=sum(record["bytes"] for record in records),
        )


def _p95(judgement: Judgement) -> float:
    return judgement.latency.p95 if judgement.latency else 0.0


def choose(
    contenders: Sequence[Contender], config: IndexConfig, budget: Budget
) -> tuple[Contender | None, str]:
    """The winner, and why; None when exact search has to be built first."""
    if config.kind != "auto" or [one.recipe.kind for one in contenders] == ["exact"]:
        return contenders[0], contenders[0].recipe.why
    target = f"recall@{config.k} of {config.target_recall}"
    reached = [one for one in contenders if one.recipe.kind == "exact" or not one.tuned.exact]
    small = [
        one
        for one in reached
        if budget.limit_bytes is None or one.service_bytes <= budget.limit_bytes
    ]
    fast = [one for one in small if config.latency_ms is None or one.p95 <= config.latency_ms]
    if fast:
        return _best(fast, f"of {len(fast)} that reach a {target} within the limits")
    if small:
        late = f"none of which keeps 95 % of queries within {config.latency_ms} ms"
        return _best(small, f"of {len(small)} that reach a {target}, {late}")
    exact = next((one for one in contenders if one.recipe.kind == "exact"), None)
    return exact, f"no candidate reaches a {target} within the limits, so search is exact"


def _best(contenders: Sequence[Contender], among: str) -> tuple[Contender, str]:
    fastest = min(contenders, key=lambda one: one.p50)
    as_fast = [one for one in contenders if one.p50 <= TIE_LATENCY * fastest.p50]
    smallest = min(as_fast, key=lambda one: one.service_bytes)
    winner = next(one for one in as_fast if one.service_bytes <= TIE_BYTES * smallest.service_bytes)
    if len(as_fast) == 1:
        return winner, f"the fastest {among}"
    if winner is smallest:
        return winner, f"the smallest of {len(as_fast)} that tie as the fastest {among}"
    return winner, f"the simplest of {len(as_fast)} that tie as the fastest {among}"
