"""Each rule on figures made up for it: what it sees, when it keeps quiet, and what it says."""

import re
from dataclasses import replace
from typing import Any

import pytest

from encoders.checkup import Checkup
from encoders.doctor import RULES, Doctor, Finding
from encoders.health import CollapseError, HealthConfig
from encoders.moco import MoCoConfig
from encoders.momentum import MomentumConfig
from encoders.pretrain_config import PretrainConfig
from encoders.recipes import RECIPES, simclr_small, tiny
from encoders.suspects import suspects
from encoders.training import Pretraining

WELL = {
    "lr": 0.1,
    "grad_norm": 1.0,
    "mi_bound": 1.0,
    "distinct_pictures": 128.0,
    "embedding_std": 0.8,
    "effective_rank": 30.0,
    "batch_rank": 30.0,
    "dead_dimensions": 0.0,
    "discrimination": 0.9,
    "mean_discrimination": 0.9,
    "mean_batch_discrimination": 0.9,
    "best_discrimination": 0.9,
    "view_distance": 0.8,
    "input_scale": 1.0,
    "update_ratio": 1e-2,
    "head_update_ratio": 1e-2,
    "weight_growth": 1.2,
    "weight_rms": 0.2,
    "ema_drift": 0.05,
    "ema_update": 1e-3,
}
START = {"discrimination": 0.6, "batch_discrimination": 0.6, "weight_growth": 1.0}
SICK = {
    "all_alike": {"distinct_pictures": 1.0},
    "few_distinct": {"distinct_pictures": 2.0},
    "input": {"input_scale": 120.0},
    "same_views": {"view_distance": 0.0},
    "leaks": {"shared_statistics": 1.0},
    "own_negative": {"keys_in_queue": 1.0},
    "target_rests": {"ema_update": 0.0},
    "target_copies": {"ema_drift": 0.0},
    "still": {"update_ratio": 0.0},
    "rushes": {"weight_growth": 4.0},
    "too_large": {"weight_rms": 100.0},
    "fades": {"weight_growth": 0.9},
    "worse_than_guessing": {"mi_bound": -2.0},
    "no_gain": {"mean_discrimination": 0.6, "mean_batch_discrimination": 0.6},
    "gap": {"mean_discrimination": 0.55},
    "unpaired": {"mean_batch_discrimination": 0.5},
    "labels_say_nothing": {"mean_class_discrimination": 0.5},
    "forgets": {"best_discrimination": 0.99, "mean_discrimination": 0.7},
    "dead": {"dead_dimensions": 70.0},
    "constant": {"embedding_std": 0.001},
    "narrow": {"effective_rank": 2.1},
    "chance": {"mean_discrimination": 0.5, "mean_batch_discrimination": 0.5},
}
# Rules that see the same thing from another side.
ALSO = {"gap": {"forgets"}, "chance": {"no_gain", "forgets"}, "no_gain": {"forgets"}}


def checkup(now: dict[str, float] | None = None, **changes: Any) -> Checkup:
    figures = WELL | (now or {})
    facts: dict[str, Any] = {
        "step": 400,
        "last_step": 380,
        "progress": 0.8,
        "settled": True,
        "rate": 0.5,
        "now": figures,
        "last": {"weight_growth": 1.19},
        "start": START,
        "num_pictures": 128,
        "batch_pictures": 128,
        "dim": 128,
        "guess_loss": None,
        "learns_classes": False,
        "config": HealthConfig(),
    }
    return Checkup(**facts | changes)


def seen_by(check: Checkup) -> set[str]:
    return {rule.name for rule in RULES if rule.sees(check) is not None}


def test_a_healthy_checkup_is_seen_by_no_rule():
    assert seen_by(checkup()) == set()


@pytest.mark.parametrize("name", [rule.name for rule in RULES])
def test_each_fault_is_seen_by_its_rule_and_by_no_other(name):
    found = seen_by(checkup(SICK[name]))
    assert name in found
    assert found <= {name} | ALSO.get(name, set())


@pytest.mark.parametrize("name", ["constant", "narrow", "dead"])
def test_embeddings_may_spread_out_first(name):
    assert seen_by(checkup(SICK[name], step=80, last_step=60)) == set()


@pytest.mark.parametrize("name", ["no_gain", "chance", "unpaired", "labels_say_nothing"])
@pytest.mark.parametrize("changes", [{"progress": 0.4}, {"settled": False}, {"num_pictures": 31}])
def test_learning_is_judged_late_and_on_enough_pictures(name, changes):
    now = SICK[name] | {"effective_rank": 25.0}
    assert name not in seen_by(checkup(now, **changes))


def test_supcon_may_gather_classes_on_a_line_and_not_in_one_point():
    line = {"effective_rank": 1.2, "batch_rank": 1.2, "best_discrimination": 0.99}
    assert seen_by(checkup(line | {"mean_discrimination": 0.75}, learns_classes=True)) == set()
    assert "constant" in seen_by(checkup(SICK["constant"], learns_classes=True))


def test_what_is_learnt_in_classes_or_in_the_batch_is_a_gain():
    start = START | {"class_discrimination": 0.5}
    now = {"mean_discrimination": 0.6, "mean_batch_discrimination": 0.6}
    assert "no_gain" in seen_by(checkup(now, start=start))
    classes = now | {"mean_class_discrimination": 0.9}
    assert "no_gain" not in seen_by(checkup(classes, start=start))


def test_the_schedule_may_bring_weights_and_targets_to_rest():
    assert "still" not in seen_by(checkup(SICK["still"], rate=0.01))
    assert "target_rests" not in seen_by(checkup(SICK["target_rests"], progress=0.95))


def test_the_norm_may_grow_as_far_over_more_steps_and_find_its_size_at_first():
    assert "rushes" in seen_by(checkup({"weight_growth": 4.0}))
    assert "rushes" not in seen_by(checkup({"weight_growth": 4.0}, last_step=0))
    assert "rushes" not in seen_by(checkup({"weight_growth": 1.4}))
    assert "rushes" not in seen_by(checkup({"weight_growth": 2.0}, step=18, last_step=16))


# --- counting, and what is said -------------------------------------------------------------------


class Judged:
    """A doctor that is given figures."""

    def __init__(self, **health: Any) -> None:
        config = replace(tiny(simclr_small()), health=HealthConfig(**health))
        self.doctor: Doctor = Pretraining(config, 16)._doctor
        self.config = config.health

    def check(self, step: int, now: dict[str, float] | None = None) -> list[Finding]:
        self.doctor._judge(checkup(now, step=step, last_step=step - 20, config=self.config))
        return self.doctor.findings


def test_a_collapse_stops_the_run_and_says_since_when_and_what_to_do():
    judged = Judged(patience=3, grace_steps=0)
    judged.check(20)
    judged.check(40, SICK["narrow"])
    assert not judged.doctor.is_healthy
    judged.check(60, SICK["narrow"])
    with pytest.raises(CollapseError) as error:
        judged.check(80, SICK["narrow"])
    said = str(error.value)
    assert "since step 40 the embedding has collapsed to 2.1 of 128 dimensions" in said
    assert "now at step 80" in said
    assert "Usual causes with SimCLR" in said
    assert "Divide optim.lr by 3" in said


def test_a_run_that_recovers_goes_on_and_is_healthy_again():
    judged = Judged(patience=2, grace_steps=0)
    for step in range(40, 240, 40):
        judged.check(step, SICK["constant"])
        assert not judged.doctor.is_healthy
        judged.check(step + 20)
        assert judged.doctor.is_healthy
    assert judged.doctor.findings == []


def test_a_warning_is_said_once_for_as_long_as_it_lasts():
    judged = Judged(patience=2)
    for step in range(120, 240, 20):
        judged.check(step, SICK["forgets"])
    (finding,) = judged.doctor.findings
    assert (finding.rule, finding.since, finding.step) == ("forgets", 120, 140)
    assert finding.sentence.startswith("since step 120 the network forgets")
    assert judged.doctor.is_healthy, "a warning is no collapse"


def test_the_verdict_names_what_was_seen_before():
    judged = Judged(patience=2, grace_steps=0)
    judged.check(20, SICK["rushes"])
    judged.check(40, SICK["rushes"])
    judged.check(60, SICK["constant"])
    with pytest.raises(CollapseError, match="Seen before that: since step 20 the weights are"):
        judged.check(80, SICK["constant"])


def test_a_restored_doctor_continues_counting():
    first, second = (Judged(patience=2, grace_steps=0) for _ in range(2))
    first.check(20, SICK["rushes"])
    first.check(40, SICK["rushes"] | SICK["constant"])
    second.doctor.load_state_dict(first.doctor.state_dict())
    assert second.doctor.findings == first.doctor.findings != []
    with pytest.raises(CollapseError, match="since step 40 nearly all pictures"):
        second.check(60, SICK["constant"])


@pytest.mark.parametrize("name", RECIPES)
def test_no_setting_of_a_recipe_stands_out(name):
    assert suspects(RECIPES[name]()) == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"temperature": 1e-3}, r"method\.temperature 0\.001 \(0\.02 to 1 is usual\)"),
        ({"key_groups": 1}, r"method\.key_groups 1"),
        ({"momentum": MomentumConfig(start=1.0)}, r"method\.momentum\.start 1"),
    ],
)
def test_a_setting_far_from_usual_is_named(changes, said):
    config = PretrainConfig(method=replace(MoCoConfig(), **changes))
    assert re.search(said, suspects(config))
