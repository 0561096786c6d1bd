"""Diversity against a naive loop, near-duplicates shown once, several examples as one query."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.examples import combine_examples
from index.ranking import Ranking, diverse, first_of_each
from index.vectors import unit


class Pairs:
    """Ids 5 and 8 are one group, 11 and 14 the next, ..."""

    def group_of(self, ids: np.ndarray) -> np.ndarray:
        return (ids - 5) // 6

    def copies_of(self, ids: np.ndarray) -> np.ndarray:
        first = 5 + 6 * self.group_of(ids)
        return np.setdiff1d(np.concatenate([first, first + 3]), ids)


class Same:
    def group_of(self, ids: np.ndarray) -> np.ndarray:
        return np.zeros_like(ids)

    def copies_of(self, ids: np.ndarray) -> np.ndarray:
        return np.setdiff1d(np.arange(3000), ids)


def naive_mmr(scores: np.ndarray, vectors: np.ndarray, k: int, diversity: float) -> list[int]:
    chosen = [max(range(len(scores)), key=lambda place: scores[place])]
    while len(chosen) < k:
        merits = {
            place: (1 - diversity) * scores[place]
            - diversity * max(vectors[place] @ vectors[other] for other in chosen)
            for place in range(len(scores))
            if place not in chosen
        }
        chosen.append(max(merits, key=lambda place: merits[place]))
    return chosen


@pytest.mark.parametrize("diversity", [0.0, 0.3, 0.8, 1.0])
def test_diversity_is_that_of_a_naive_loop(diversity: float) -> None:
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(40, 6))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = vectors @ vectors[0]
    found = diverse(scores, vectors, 12, diversity).tolist()
    assert found == naive_mmr(scores, vectors, 12, diversity)
    if diversity == 0:
        assert found == np.argsort(-scores)[:12].tolist()


def test_a_diverse_answer_reaches_beyond_the_nearest(shared_searcher: Any) -> None:
    """Reordering the k nearest would be no diversity."""
    query = shared_searcher.vectors_of(shared_searcher.ids[:1])
    near = shared_searcher.search(query, 8, exact=True)
    varied = shared_searcher.search(query, 8, exact=True, ranking=Ranking(diversity=0.6))
    assert varied.ids[0, 0] == near.ids[0, 0]
    assert len(set(varied.ids[0]) - set(near.ids[0])) >= 3

    def likeness(ids: np.ndarray) -> float:
        vectors = shared_searcher.vectors_of(ids)
        return float((vectors @ vectors.T).mean())

    assert likeness(varied.ids[0]) < likeness(near.ids[0]) - 0.1
    pool = shared_searcher.search(query, 50, exact=True)
    vectors = shared_searcher.vectors_of(pool.ids[0])
    expected = naive_mmr(pool.scores[0], vectors, 8, 0.6)
    assert varied.ids[0].tolist() == pool.ids[0, expected].tolist()


@pytest.mark.parametrize("diversity", [0.0, 0.5])
def test_of_each_group_the_nearest_is_shown(shared_searcher: Any, diversity: float) -> None:
    queries = shared_searcher.vectors_of(shared_searcher.ids[:3])
    ranking = Ranking(groups=Pairs(), diversity=diversity)
    hits = shared_searcher.search(queries, 20, ranking=ranking, exact=True)
    assert hits.ids.shape == (3, 20)
    assert hits.flags == frozenset()
    full = shared_searcher.search(queries, 600, exact=True)
    for row, everything in zip(hits.ids, full.ids, strict=True):
        groups = Pairs().group_of(row)
        assert len(set(groups)) == 20
        for picture, group in zip(row, groups, strict=True):
            members = everything[Pairs().group_of(everything) == group]
            assert picture == members[0]


def test_fewer_groups_than_asked_for_is_a_short_answer(shared_searcher: Any) -> None:
    queries = shared_searcher.vectors_of(shared_searcher.ids[:2])
    hits = shared_searcher.search(queries, 7, ranking=Ranking(groups=Same()))
    assert hits.ids.shape == (2, 1)
    assert hits.flags == {"short"}
    hits = shared_searcher.search(queries, 400, ranking=Ranking(groups=Pairs(), diversity=0.2))
    assert hits.ids.shape == (2, 300)
    assert hits.flags == {"short"}


@pytest.mark.parametrize("diversity", [-0.1, 1.1, float("nan")])
def test_a_diversity_out_of_range_is_refused(diversity: float) -> None:
    with pytest.raises(ValueError, match="allowed is 0"):
        Ranking(diversity=diversity)


def test_examples_combine_to_the_mean_difference_of_cosines(shared_searcher: Any) -> None:
    vectors = shared_searcher.vectors_of(shared_searcher.ids)
    likes, unlikes = vectors[[0, 30, 60]], vectors[[400]]
    query = combine_examples(7 * likes, unlikes, weights_P=[1, 2, 0.5], weights_M=[0.7])
    hits = shared_searcher.search(query, 25, exact=True)
    norms = np.linalg.norm(likes, axis=1), np.linalg.norm(unlikes, axis=1)
    merit = sum(
        weight * (vectors @ (like / norm)) / 3
        for like, norm, weight in zip(likes, norms[0], [1, 2, 0.5], strict=True)
    ) - 0.7 * (vectors @ (unlikes[0] / norms[1][0]))
    expected = shared_searcher.ids[np.argsort(-merit)[:25]]
    assert hits.ids[0].tolist() == expected.tolist()


def test_negatives_alone_find_what_is_least_like_them(shared_searcher: Any) -> None:
    vectors = shared_searcher.vectors_of(shared_searcher.ids)
    query = combine_examples(np.empty((0, 16)), vectors[:1])
    found = shared_searcher.search(query, 1, exact=True).ids[0, 0]
    assert found == shared_searcher.ids[np.argmin(vectors @ vectors[0])]


@pytest.mark.parametrize("size", [5e-324, 1e-310, 1e-9, 0.0005, 1e39, 1e307])
def test_weights_count_by_their_ratio_whatever_their_size(size: float) -> None:
    likes, unlikes = np.eye(4)[:2], np.eye(4)[2:3]
    np.testing.assert_array_equal(combine_examples(likes[:1], weights_P=[size]), likes[:1])
    same = combine_examples(likes, unlikes, weights_P=[1, 1], weights_M=[2])
    scaled = combine_examples(likes, unlikes, weights_P=[size, size], weights_M=[2 * size])
    np.testing.assert_array_equal(scaled, same)
    with pytest.raises(ValueError, match="cancel each other out"):
        combine_examples(likes[:1], likes[:1], weights_P=[size], weights_M=[size])


def test_a_small_weight_beside_a_large_one_is_a_small_part() -> None:
    query = combine_examples(np.eye(2), weights_P=[1e300, 1e297])
    np.testing.assert_allclose(query, [[1, 1e-3]], rtol=1e-5)
    opposite = combine_examples([[1.0, 0.0], [-1.0, 0.0]], weights_P=[1e300, 1e297])
    np.testing.assert_array_equal(opposite, [[1, 0]])


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (([],), {}, "no example"),
        (([[1.0, 0.0]], [[2.0, 0.0]]), {}, "cancel each other out"),
        (([[np.nan, 0.0]],), {}, "zero or not finite"),
        (([[0.0, 0.0]],), {}, "zero or not finite"),
        (([[1.0, 0.0]],), {"weights_P": [0.0]}, "above 0"),
        (([[1.0, 0.0]],), {"weights_P": [1, 2]}, "for 1 examples"),
        (([[1.0, 0.0]],), {"weights_P": [-1]}, "negative example"),
    ],
)
def test_examples_that_point_nowhere_are_refused(arguments: Any, options: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        combine_examples(*arguments, **options)


@pytest.mark.parametrize("diversity", [0.0, 0.4])
def test_one_answer_to_several_queries_ranks_by_the_best_score(
    shared_searcher: Any, diversity: float
) -> None:
    """Within a selection, tuned, exact and with variety: the brute-force maximum decides."""
    ids = shared_searcher.ids
    vectors = shared_searcher.vectors_of(ids)
    queries = unit(vectors[[4, 300, 599]])
    best = (queries @ vectors.T).max(axis=0)
    even = shared_searcher.select(ids[::2])
    for within, rows in ((None, np.arange(len(ids))), (even, np.arange(0, len(ids), 2))):
        order = rows[np.argsort(-best[rows], kind="stable")]
        hits = shared_searcher.search(
            queries, 12, within=within, ranking=Ranking(diversity=diversity, any_of=True)
        )
        assert hits.ids.shape == (1, 12)
        if not diversity:
            np.testing.assert_allclose(hits.scores[0], best[order[:12]], atol=1e-3)
        places = np.searchsorted(ids, hits.ids[0])
        np.testing.assert_allclose(hits.scores[0], best[places], atol=1e-3)
    everything = shared_searcher.search(queries, 1000, ranking=Ranking(any_of=True))
    assert (sorted(everything.ids[0]), everything.flags) == (ids.tolist(), {"short"})
    reach = shared_searcher.range_search(queries, 0.3, any_of=True)
    assert reach.num_matching.tolist() == [(best >= 0.3).sum()]
    assert set(reach.ids.tolist()) == set(ids[best >= 0.3].tolist())


class Told:
    """Groups by number, of ids 5, 8, 11, ..."""

    def __init__(self, groups: np.ndarray) -> None:
        self.ids, self.groups = np.arange(len(groups)) * 3 + 5, groups

    def group_of(self, ids: np.ndarray) -> np.ndarray:
        return self.groups[(ids - 5) // 3]

    def copies_of(self, ids: np.ndarray) -> np.ndarray:
        return np.setdiff1d(self.ids[np.isin(self.groups, self.group_of(ids))], ids)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_collapse_is_that_of_brute_force_however_large_groups_are(
    shared_searcher: Any, data: Any
) -> None:
    """With variety, several queries, one answer to all, a selection and excluded pictures."""
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    num_groups = data.draw(st.sampled_from([1, 3, 12, 100, 600]))
    ids = shared_searcher.ids
    groups = Told(rng.integers(0, num_groups, len(ids)) * rng.integers(0, 2, len(ids)))
    k, any_of = data.draw(st.sampled_from([1, 4, 15])), data.draw(st.booleans())
    diversity = data.draw(st.sampled_from([0.0, 0.4]))
    queries = rng.normal(size=(data.draw(st.integers(1, 3)), 16))
    exclude = rng.choice(ids, data.draw(st.sampled_from([0, 5, 100])), replace=False)
    within = shared_searcher.select(ids[::2]) if data.draw(st.booleans()) else None
    options = {"exact": True, "exclude_ids": exclude, "within": within}
    ranking = Ranking(groups=groups, any_of=any_of, diversity=diversity)
    hits = shared_searcher.search(queries, k, ranking=ranking, **options)
    everything = shared_searcher.search(
        queries, 600, ranking=Ranking(any_of=True) if any_of else None, **options
    )
    assert hits.num_searched == everything.num_searched
    assert hits.plan.is_exact
    for row, score, all_ids, all_scores in zip(
        hits.ids, hits.scores, everything.ids, everything.scores, strict=True
    ):
        first = first_of_each(groups.group_of(all_ids)[None])[0]
        pool = slice(max(5 * k, 50) if diversity else k)
        expected, cosines = all_ids[first][pool], all_scores[first][pool]
        if diversity:
            vectors = shared_searcher.vectors_of(expected)
            chosen = diverse(cosines, vectors, k, diversity)
            expected, cosines = expected[chosen], cosines[chosen]
        assert row.tolist() == expected.tolist()
        np.testing.assert_allclose(score, cosines, atol=1e-6)


def test_a_large_group_is_not_ranked_to_the_last_copy(shared_searcher: Any) -> None:
    """Five hundred of six hundred pictures are one group."""
    groups = Told(np.maximum(np.arange(600) - 499, 0))
    asked: list[int] = []

    def nearest(count: int, copies: np.ndarray, number: int | None) -> Any:
        asked.append(count)
        hits = shared_searcher.search(queries, count, exact=True, exclude_ids=copies)
        return hits.ids, hits.scores, None

    queries = shared_searcher.vectors_of(groups.ids[:1])
    ids, _, _ = Ranking(groups=groups).answer(4, nearest, shared_searcher.vectors_of)
    everything = shared_searcher.search(queries, 600, exact=True).ids[0]
    first = first_of_each(groups.group_of(everything)[None])[0]
    assert ids[0].tolist() == everything[first][:4].tolist()
    assert max(asked) <= 16
