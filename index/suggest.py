"""Which picture to label next.

At first the typical and diverse ones, then those that the classifier hesitates over; every fourth
is drawn uniformly at random for the audit, from a quarter of the sample that is reserved for it, so
that the accuracy computed from audit pictures means the corpus and not the pictures we liked. Which
pictures those are follows from their ids, so that it stays the same as the corpus changes: drawn
anew, the reserve would be what was left over after the suggested ones had been labelled.

Shapes: N pictures of the working sample, D embedding, C classes, M candidates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import faiss as faiss_library
import numpy as np
from numpy.typing import NDArray

from index.chance import chance
from index.classifier import Classifier
from index.heads import centred
from index.labels import LabelSnapshot
from index.vector_sets import VectorSource
from index.vectors import Float16s, Floats, Ids

__all__ = ["Suggester", "Suggestion"]

faiss: Any = faiss_library  # its type stubs do not know Kmeans' arguments

SAMPLE_ROWS = 100_000
AUDIT_EVERY = 4
TYPICAL_ROWS = 2_000
"""Of so many pictures the typical ones are sought: all pairs are compared."""

NEIGHBOURS = 20
"""Neighbours that make a picture typical (Hacohen et al. 2022, section 3)."""

MAX_CLUSTERS = 500
"""As in Hacohen et al. 2022; more clusters would be too small to have a typical picture."""

MARGIN_FROM = 3
"""Labels per class, on average, from which on hesitation guides better than typicality."""

CANDIDATES = 10
"""Hesitant candidates per picture suggested; the most diverse of them are kept."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A picture to label.

    Args:
        picture_id: the picture.
        source: ``audit`` if drawn at random, else ``suggest``; to be kept in the label event.
        reason: ``random``, ``typical`` or ``uncertain``.
    """

    picture_id: int
    source: Literal["audit", "suggest"]
    reason: Literal["random", "typical", "uncertain"]


class Suggester:
    """Suggests from a fixed, seeded, uniform sample of the corpus. Stateless between calls.

    Args:
        ids: picture ids int64 [N] of the sample, in random order.
        features: ``centred`` features float16 [N, D].
    """

    def __init__(self, ids: Ids, features: Float16s, *, seed: int = 0) -> None:
        self._seed = seed
        reserved = chance(ids, seed + 1) < 1 / AUDIT_EVERY
        self._audit_ids = ids[reserved]
        self._ids = ids[~reserved]
        self._features = features[~reserved]
        typical = self._features[:TYPICAL_ROWS].astype(np.float32)
        self._typicality = _typicality(typical)

    @classmethod
    def over(
        cls, source: VectorSource, mean_D: Floats, *, rows: int = SAMPLE_ROWS, seed: int = 0
    ) -> Suggester:
        """Draw the working sample from a corpus in one streaming pass of bounded memory.

        A picture that is in the sample stays in it while the corpus does not grow.
        """
        keys = np.empty(0)
        ids = np.empty(0, np.int64)
        features = np.empty((0, len(mean_D)), np.float16)
        for batch_ids, vectors in source.iter_batches(16_384):
            keys = np.concatenate([keys, chance(batch_ids, seed)])
            ids = np.concatenate([ids, batch_ids])
            features = np.concatenate([features, centred(vectors, mean_D).astype(np.float16)])
            if len(keys) > rows:  # the smallest keys are a uniform sample
                kept = np.argpartition(keys, rows)[:rows]
                keys, ids, features = keys[kept], ids[kept], features[kept]
        order = np.argsort(keys)
        return cls(ids[order], features[order], seed=seed)

    def suggest(
        self,
        snapshot: LabelSnapshot,
        classifier: Classifier | None,
        *,
        count: int = 1,
        num_asked: int = 0,
        seen: Iterable[int] = (),
    ) -> list[Suggestion]:
        """The next pictures to label.

        Args:
            snapshot: the labels so far.
            classifier: trained on them, or None before there are two classes.
            count: pictures wanted; fewer come back when the sample is used up.
            num_asked: pictures asked before; every fourth question of all is an audit.
            seen: pictures not to show again, such as those that were skipped.
        """
        done = np.union1d(snapshot.ids, np.array(list(seen), np.int64))
        places = np.arange(num_asked, num_asked + count) % AUDIT_EVERY == AUDIT_EVERY - 1
        audit = iter(self._audit_ids[~np.isin(self._audit_ids, done)])
        open_rows = np.flatnonzero(~np.isin(self._ids, done))
        chosen: list[Suggestion] = []
        guided = iter(self._guided(snapshot, classifier, open_rows, count))
        for is_audit in places:
            suggestion = None if is_audit else next(guided, None)
            if suggestion is None and (picture := next(audit, None)) is not None:
                suggestion = Suggestion(int(picture), "audit", "random")
            suggestion = suggestion or next(guided, None)
            if suggestion is not None:
                chosen.append(suggestion)
        return chosen

    def _guided(
        self,
        snapshot: LabelSnapshot,
        classifier: Classifier | None,
        open_rows: NDArray[np.intp],
        count: int,
    ) -> list[Suggestion]:
        if not len(open_rows):
            return []
        num_classes = len(set(snapshot.labels))
        if classifier is not None and len(snapshot.labels) >= MARGIN_FROM * num_classes:
            rows = self._uncertain(classifier, open_rows, count)
            return [Suggestion(int(self._ids[row]), "suggest", "uncertain") for row in rows]
        rows = self._typical(snapshot, open_rows, count)
        return [Suggestion(int(self._ids[row]), "suggest", "typical") for row in rows]

    def _typical(
        self, snapshot: LabelSnapshot, open_rows: NDArray[np.intp], count: int
    ) -> list[int]:
        """The most typical picture of each of the largest clusters without a label.

        Source: Hacohen et al. 2022, "Active Learning on a Budget" (TypiClust), over a sample.
        """
        num_rows = len(self._typicality)
        labelled = np.flatnonzero(np.isin(self._ids[:num_rows], snapshot.ids))
        is_open = np.isin(np.arange(num_rows), open_rows)
        num_clusters = min(len(snapshot.ids) + count, MAX_CLUSTERS, num_rows)
        clusters = self._clusters(num_clusters)
        sizes = np.bincount(clusters, minlength=num_clusters).astype(float)
        covered = np.bincount(clusters[labelled], minlength=num_clusters)
        # Fewest labels first, then the largest: every cluster is visited before any is again.
        order = np.lexsort((-sizes, covered))
        rows: list[int] = []
        for cluster in order:
            members = np.flatnonzero((clusters == cluster) & is_open)
            if len(members):
                rows.append(int(members[self._typicality[members].argmax()]))
            if len(rows) == count:
                return rows
        rest = [int(row) for row in open_rows if int(row) not in set(rows)]
        return rows + rest[: count - len(rows)]

    def _clusters(self, num_clusters: int) -> NDArray[np.int64]:
        features = self._features[: len(self._typicality)].astype(np.float32)
        kmeans = faiss.Kmeans(
            features.shape[1],
            num_clusters,
            niter=10,
            seed=self._seed + 1,
            min_points_per_centroid=1,
        )
        kmeans.train(features)
        return np.asarray(kmeans.index.search(features, 1)[1][:, 0], np.int64)

    def _uncertain(
        self, classifier: Classifier, open_rows: NDArray[np.intp], count: int
    ) -> list[int]:
        """Small margin between the two likeliest classes, spread out by farthest-first choice."""
        margins = np.empty(len(open_rows), np.float32)
        for start in range(0, len(open_rows), 16_384):
            block = slice(start, start + 16_384)
            probabilities = classifier.proba_of_features(
                self._features[open_rows[block]].astype(np.float32)
            )
            best = -np.partition(-probabilities, 1, axis=1)
            margins[block] = best[:, 0] - best[:, 1]
        nearest = np.argsort(margins, kind="stable")[: CANDIDATES * count]
        rows = open_rows[nearest]
        return [int(row) for row in rows[_spread(self._features[rows].astype(np.float32), count)]]


def _typicality(features_ND: Floats) -> Floats:
    """Mean cosine to the nearest neighbours [N]: high in the middle of a dense group."""
    if len(features_ND) < 2:
        return np.zeros(len(features_ND), np.float32)
    scores = features_ND @ features_ND.T
    np.fill_diagonal(scores, -np.inf)
    k = min(NEIGHBOURS, len(features_ND) - 1)
    return np.asarray(-np.partition(-scores, k - 1, axis=1)[:, :k].mean(axis=1), np.float32)


def _spread(features_MD: Floats, count: int) -> list[int]:
    """Rows chosen one by one, each the least similar to those before; the first is row 0."""
    chosen = [0]
    similarity = features_MD @ features_MD[0]
    while len(chosen) < min(count, len(features_MD)):
        similarity[chosen] = np.inf
        chosen.append(int(similarity.argmin()))
        similarity = np.maximum(similarity, features_MD @ features_MD[chosen[-1]])
    return chosen
