import numpy as np
import pytest
from scipy.stats import multinomial, norm, t, ttest_rel

from index.measure import Proportion
from index.trials import Trials


def test_queries_have_wilsons_interval_and_draws_students():
    hits = np.array([1.0] * 81 + [0.0] * 182)
    assert Trials(scores=hits).share() == Proportion.wilson(81, 263)
    draws = np.array([0.41, 0.44, 0.39, 0.47])
    share = Trials(scores=draws, unit="draws").share()
    half = t.ppf(0.975, 3) * draws.std(ddof=1) / 2
    assert share.value == pytest.approx(draws.mean())
    assert (share.low, share.high) == pytest.approx((draws.mean() - half, draws.mean() + half))
    assert share.n == 4


def test_one_draw_says_nothing_about_others():
    one, other = (Trials(scores=np.array([value]), unit="draws") for value in (0.4, 0.6))
    assert (one.share().low, one.share().high) == (0, 1)
    assert (one.minus(other).low, one.minus(other).high) == (-1, 1)
    assert one.sd == 0


def test_classes_count_alike_however_large():
    trials = Trials(scores=np.array([1.0, 1, 1, 1, 0]), classes=np.array([7, 7, 7, 7, 2]))
    assert trials.mean == 0.5
    assert trials.by_class()[[7, 2]].tolist() == [1, 0]
    assert trials.share().value == 0.5
    assert trials.share().n == 5


def test_the_interval_of_classes_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    sizes, shares = [200, 40, 15], [0.9, 0.6, 0.3]
    codes = np.repeat(np.arange(3), sizes)
    covered = []
    for _ in range(600):
        hits = rng.random(len(codes)) < np.array(shares)[codes]
        share = Trials(scores=hits.astype(float), classes=codes).share()
        covered.append(share.low <= np.mean(shares) <= share.high)
    assert 0.92 < np.mean(covered) < 0.98


def test_all_right_is_not_certain():
    share = Trials(scores=np.ones(30), classes=np.arange(30) % 3).share()
    assert share.value == share.high == 1
    assert share.low == pytest.approx(Proportion.wilson(30, 30).low)
    # A small class counts as much as the others and tells less.
    uneven = Trials(scores=np.ones(30), classes=np.array([0] * 28 + [1] * 2)).share()
    assert uneven.low < share.low


def test_the_interval_of_a_difference_is_that_of_a_paired_t_test():
    rng = np.random.default_rng(1)
    for unit, n, tolerance in (("draws", 40, 1e-9), ("queries", 40, 0.01), ("queries", 400, 5e-4)):
        a, b = rng.random(n), rng.random(n)
        found = Trials(scores=a, unit=unit).minus(Trials(scores=b, unit=unit))
        low, high = ttest_rel(a, b).confidence_interval(0.95)
        expected = np.mean(a - b), low, high
        assert (found.value, found.low, found.high) == pytest.approx(expected, abs=tolerance)
        assert found.n == n
        back = Trials(scores=b, unit=unit).minus(Trials(scores=a, unit=unit))
        assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


def test_pairs_tell_apart_what_intervals_side_by_side_do_not():
    rng = np.random.default_rng(2)
    hard = rng.random(300)
    better, worse = Trials(scores=hard), Trials(scores=np.clip(hard - 0.02, 0, 1))
    assert worse.share().high > better.share().low
    assert better.minus(worse).low > 0


def test_a_few_trials_set_nothing_apart_for_certain_and_make_nothing_equal():
    def minus(wins, losses, n, unit="queries"):
        own = np.array([1.0] * wins + [0.0] * losses + [0.7] * (n - wins - losses))
        other = np.array([0.0] * wins + [1.0] * losses + [0.7] * (n - wins - losses))
        return Trials(scores=own, unit=unit).minus(Trials(scores=other, unit=unit))

    for unit in ("queries", "draws"):
        assert minus(3, 0, 3, unit).low < 0 < minus(3, 0, 3, unit).high == 1
        alike = minus(0, 0, 5, unit)
        assert alike.value == 0
        assert -0.6 < alike.low < -0.3
        assert 0.3 < alike.high < 0.6
        assert minus(0, 0, 1000, unit).high < 0.005
    # As the sign test does: six of six tell, five of five do not.
    assert minus(5, 0, 5).low < 0 < minus(6, 0, 6).low
    assert minus(0, 6, 6).high < 0 < minus(0, 5, 5).high
    # Half a trial each: less than whole ones set apart, more than none.
    halves = Trials(scores=np.full(3, 0.75)).minus(Trials(scores=np.full(3, 0.25)))
    assert -0.5 < halves.low < 0
    assert halves.high > 0.75


def test_the_interval_of_paired_shares_is_that_of_bonett_and_price():
    own = np.repeat([0.0, 0.0, 1.0, 1.0], [12, 4, 26, 6])
    other = np.repeat([0.0, 1.0, 0.0, 1.0], [12, 4, 26, 6])
    found = Trials(scores=own).minus(Trials(scores=other))
    # ci.prop.ps(.05, 12, 4, 26, 6) of the R package statpsych; by the normal distribution.
    half = 0.09448809 * t.ppf(0.975, 47)
    assert (found.low, found.high) == pytest.approx((0.44 - half, 0.44 + half), abs=0.003)


CHANCES = ((0, 0), (0.02, 0), (0.1, 0.1), (0.5, 0.5), (0.7, 0.3), (0.3, 0.1), (0.9, 0.05), (1, 0))
"""Of a trial to be won, and to be lost."""


@pytest.mark.parametrize("n", [2, 3, 4, 6, 12, 20])
def test_the_interval_of_a_difference_covers_the_truth_however_seldom_trials_differ(n):
    counts = np.array([(won, lost) for won in range(n + 1) for lost in range(n + 1 - won)])
    ends = []
    for won, lost in counts:
        own, other = np.arange(n) < won, np.arange(n) >= n - lost
        found = Trials(scores=own.astype(float)).minus(Trials(scores=other.astype(float)))
        ends.append((found.low, found.high))
    lows, highs = np.transpose(ends)
    for won, lost in CHANCES:
        chances = multinomial.pmf(
            np.column_stack([counts, n - counts.sum(axis=1)]), n, [won, lost, 1 - won - lost]
        )
        covers = (lows <= won - lost) & (won - lost <= highs)
        assert chances[covers].sum() > 0.94, (won, lost)


@pytest.mark.parametrize("sizes", [[12, 12, 12], [28, 2], [2] * 12])
def test_so_does_that_of_a_difference_over_classes(sizes):
    rng = np.random.default_rng(4)
    codes = np.repeat(np.arange(len(sizes)), sizes)
    for won, lost in CHANCES:
        covered = []
        for _ in range(400):
            drawn = rng.random(sum(sizes))
            own = Trials(scores=(drawn < won).astype(float), classes=codes)
            other = Trials(scores=(drawn >= 1 - lost).astype(float), classes=codes)
            found = own.minus(other)
            covered.append(found.low <= won - lost <= found.high)
        assert np.mean(covered) > 0.93, (won, lost)


def test_draws_that_are_all_alike_are_not_certain_either():
    alike = Trials(scores=np.ones(10), unit="draws").share()
    assert alike == Proportion.wilson(10, 10)


def test_a_difference_over_classes_weighs_each_class_the_same():
    codes = np.array([0] * 90 + [1] * 10)
    rng = np.random.default_rng(3)
    a, b = rng.random(100), rng.random(100)
    found = Trials(scores=a, classes=codes).minus(Trials(scores=b, classes=codes))
    gains = [(a - b)[codes == code] for code in (0, 1)]
    variance = sum(gain.var(ddof=1) / len(gain) for gain in gains) / 4
    assert found.value == pytest.approx(np.mean([gain.mean() for gain in gains]))
    half = t.ppf(0.975, 98) * np.sqrt(variance)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)
    assert half == pytest.approx(norm.ppf(0.975) * np.sqrt(variance), rel=0.02)


def test_a_class_of_one_trial_varies_as_the_others_do():
    trials = Trials(scores=np.array([0.2, 0.4, 0.9]), classes=np.array([0, 0, 1]))
    half = trials.minus(Trials(scores=np.zeros(3), classes=np.array([0, 0, 1])))
    variance = (0.02 / 2 + 0.02) / 4
    assert half.high - half.value == pytest.approx(
        min(t.ppf(0.975, 1) * np.sqrt(variance), 1 - half.value)
    )
    alone = Trials(scores=np.array([0.2, 0.4]), classes=np.array([0, 1])).share()
    assert alone.low < 0.2
    assert alone.high > 0.4


@pytest.mark.parametrize(
    "other",
    [
        Trials(scores=np.zeros(4)),
        Trials(scores=np.zeros(3), classes=np.array([0, 1, 1])),
    ],
)
def test_other_trials_are_not_paired(other):
    with pytest.raises(ValueError, match="3 trials cannot be paired with"):
        Trials(scores=np.zeros(3)).minus(other)
