"""What remedy a drift calls for."""

import numpy as np
import pytest

from index.drift import Drift, imbalance


@pytest.mark.parametrize(
    ("changes", "remedy", "why"),
    [
        ({}, None, ""),
        ({"dead_share": 0.151}, "compact", "15% of its rows are dead"),
        ({"delta_rows": 51}, "compact", "its delta has 51 rows, over 50"),
        ({"growth": 2.1}, "retrain", "it has 2.1 times the rows that it was trained for"),
        ({"code_error": 1.2}, "retrain", "it fits what came at least 20% worse"),
        ({"imbalance": 2.5}, "retrain", "its lists are 2.5 times as uneven"),
        ({"effort": 2.5, "dead_share": 0.3}, "retrain", "the target recall takes 2.5 times the"),
    ],
)
def test_each_kind_of_drift_calls_for_its_remedy(changes, remedy, why):
    calm = {
        "dead_share": 0.15,
        "delta_rows": 50,
        "delta_bound": 50,
        "growth": 2.0,
        "code_error": None,
        "imbalance": 2.0,
        "effort": 2.0,
    }
    found = Drift(**(calm | changes))
    assert (found.remedy, found.why[: len(why)]) == (remedy, why)
    assert Drift.from_json(found.as_json()) == found


def test_unevenness_is_the_length_of_a_random_row_s_list():
    assert imbalance(np.array([3.0, 1.0, 0.0, 0.0])) == pytest.approx((9 + 1) / 4**2 * 4)
