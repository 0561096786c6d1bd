import numpy as np
import pytest
from scipy.stats import norm, t, ttest_rel

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
    a, b = rng.random(40), rng.random(40)
    found = Trials(scores=a).minus(Trials(scores=b))
    low, high = ttest_rel(a, b).confidence_interval(0.95)
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(a - b), low, high))
    assert found.n == 40
    back = Trials(scores=b).minus(Trials(scores=a))
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


def test_pairs_tell_apart_what_intervals_side_by_side_do_not():
    rng = np.random.default_rng(2)
    hard = rng.random(300)
    better, worse = Trials(scores=hard), Trials(scores=np.clip(hard - 0.02, 0, 1))
    assert worse.share().high > better.share().low
    assert better.minus(worse).low > 0
    assert (better.minus(better).low, better.minus(better).high) == (0, 0)


def test_a_difference_over_classes_weighs_each_class_the_same():
    codes = np.array([0] * 90 + [1] * 10)
    rng = np.random.default_rng(3)
    a, b = rng.random(100), rng.random(100)
    found = Trials(scores=a, classes=codes).minus(Trials(scores=b, classes=codes))
    gains = [(a - b)[codes == code] for code in (0, 1)]
    variance = sum(gain.var(ddof=1) / len(gain) for gain in gains) / 4
    assert found.value == pytest.approx(np.mean([gain.mean() for gain in gains]))
    half = t.ppf(0.975, 98) * np.sqrt(variance)
    assert found.high - found.value == pytest.approx(half)
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
