"""Faults: where training goes wrong, seen on pictures, weights, target, queue and loss."""

from __future__ import annotations

import math

from encoders.checkup import Checkup, Rule
from encoders.split import FEWEST

__all__ = ["FAULTS"]

# Change of the log of the weights' norm in a step; the steepest healthy run seen had 0.003.
STEEP = 0.005
# Weights find their size in the first steps.
FIRST_STEPS = 20
# Root mean square of weights; fresh ones have 0.05 to 0.5.
LARGEST_WEIGHTS = 10.0
# Share of its norm by which a step has to move a network, at a twentieth of the peak rate or more.
STILL, STILL_RATE = 1e-6, 0.05
# A target closer than half an online step follows at once.
AT_ONCE = 0.5
# Cosine schedules of targets end at 1, where a float32 target may rightly stand still.
TARGET_RESTS = 0.9
# Views nearer than this share of the distance between pictures are the same.
SAME_VIEWS = 0.05
# Normalised pixels have a root mean square of about 1; white or black pictures of about 2.
LARGEST_INPUT = 8.0
# What a loss lies above that of guessing.
ABOVE_GUESSING = 0.3
HALF = 0.5


def _alike(check: Checkup) -> str | None:
    distinct = check.now["distinct_pictures"]
    if distinct > 1 or check.num_pictures < 2:
        return None
    return f"all {check.num_pictures} pictures looked at are the same, to the pixel"


def _few_distinct(check: Checkup) -> str | None:
    distinct, total = check.now["distinct_pictures"], check.num_pictures
    if total < FEWEST or not 1 < distinct <= HALF * total:
        return None
    return f"of {total} pictures looked at only {distinct:.0f} differ"


def _input(check: Checkup) -> str | None:
    scale = check.now["input_scale"]
    if scale <= LARGEST_INPUT:
        return None
    return f"pixels reach the network with a root mean square of {scale:.3g} (about 1 is usual)"


def _same_views(check: Checkup) -> str | None:
    if check.now["view_distance"] >= SAME_VIEWS:
        return None
    return (
        "both views of a picture are nearly the same pixels, so that they are matched without "
        f"learning anything: they differ by {check.now['view_distance']:.1%} of what two pictures "
        "do"
    )


def _still(check: Checkup) -> str | None:
    if check.rate < STILL_RATE:
        return None
    if check.now.get("grad_norm", 1) == 0:
        return "no gradient reaches any weight: training stands still"
    for figure, network in (("update_ratio", "backbone"), ("head_update_ratio", "projector")):
        moved = check.now.get(figure, 1.0)
        if moved < STILL:
            return (
                f"the weights of the {network} hardly move: a step changes them by {moved:.1g} of "
                "their norm (1e-4 to 1e-2 is usual)"
            )
    return None


def _rushes(check: Checkup) -> str | None:
    growth = _growth(check)
    so_far = math.log(max(check.now["weight_growth"], 1)) / check.step
    if check.step < FIRST_STEPS or growth < STEEP or so_far < STEEP / 2:
        return None
    return (
        f"the weights are being overwritten: their norm grows by {growth:.1%} a step (healthy runs "
        f"stay below {STEEP / 2:.2%}), a step changes them by {check.now['update_ratio']:.1%}"
    )


def _too_large(check: Checkup) -> str | None:
    size = check.now["weight_rms"]
    if size <= LARGEST_WEIGHTS:
        return None
    return (
        f"the weights are out of all proportion: their root mean square is {size:.3g} (below 1 is "
        "usual), so that no step can change what the network does"
    )


def _fades(check: Checkup) -> str | None:
    growth = _growth(check)
    if check.step < FIRST_STEPS or growth > -STEEP:
        return None
    return f"the weights fade: their norm falls by {-growth:.1%} a step"


def _growth(check: Checkup) -> float:
    """Of the log of the norm of the backbone's weights, a step."""
    now, then = check.now["weight_growth"], check.last["weight_growth"]
    if not (math.isfinite(now) and now > 0 and then > 0):
        return 0.0
    return math.log(now / then) / max(1, check.step - check.last_step)


def _target_rests(check: Checkup) -> str | None:
    moves = check.now.get("ema_update", 1) > 0 or check.now.get("update_ratio", 0) < STILL
    if moves or check.progress > TARGET_RESTS:
        return None
    return "the target network never moves, so it teaches what an untrained network knows"


def _target_copies(check: Checkup) -> str | None:
    drift, moved = check.now.get("ema_drift"), check.now.get("update_ratio", 0)
    if drift is None or moved < STILL or drift > AT_ONCE * moved:
        return None
    return (
        f"the target network follows at once: it is {drift:.1g} of the weights' norm away, a step "
        f"moves them by {moved:.1g}"
    )


def _leaks(check: Checkup) -> str | None:
    shared = check.now.get("shared_statistics", 0)
    if shared <= HALF:
        return None
    return (
        f"BatchNorm gives keys away: keys are normalised with {shared:.0%} of the pictures that "
        "their queries are normalised with, and can be found by that batch's statistics"
    )


def _own_negative(check: Checkup) -> str | None:
    share = check.now.get("keys_in_queue", 0)
    if share <= HALF:
        return None
    return (
        f"{share:.0%} of the keys stand in the queue as negatives of their own query, so that the "
        "loss asks for what cannot be"
    )


def _worse_than_guessing(check: Checkup) -> str | None:
    if not check.settled:
        return None
    if check.guess_loss is not None:
        excess, unit = check.now["loss"] - check.guess_loss, ""
    else:
        excess, unit = -check.now.get("mi_bound", 0), " nats"
    if excess < ABOVE_GUESSING:
        return None
    return f"the loss is {excess:.1f}{unit} worse than guessing"


_DATA = (
    "Usual causes are a corpus of copies, or pictures that all failed in the same way. Look at the "
    "pictures, and scan others."
)
_RATE = (
    "The usual cause is a learning rate that is too high. Divide optim.lr by 3 to 10, or raise "
    "optim.warmup_share."
)

FAULTS = (
    Rule(name="few_distinct", sees=_few_distinct, patience=1, advice=_DATA),
    Rule(
        name="input",
        sees=_input,
        patience=1,
        advice="The usual cause is pixels that are not normalised. Set preprocess.mean and "
        "preprocess.std to those of the pictures, as shares of 255.",
    ),
    Rule(
        name="same_views",
        sees=_same_views,
        patience=1,
        advice="The usual cause is augmentation that is switched off. Lower view_a.crop_scale and "
        "view_b.crop_scale to begin at 0.2, and raise their jitter_probability to 0.8.",
    ),
    Rule(
        name="leaks",
        sees=_leaks,
        patience=1,
        advice="Raise method.key_groups to 8.",
    ),
    Rule(
        name="own_negative",
        sees=_own_negative,
        patience=1,
        advice="Usual causes are keys that enter the queue before their queries are compared, and "
        "copies in the corpus. Take keys in after the loss, and copies out of the corpus.",
    ),
    Rule(
        name="target_rests",
        sees=_target_rests,
        advice="Set method.momentum.start to 0.99 for short runs and 0.996 for long ones.",
    ),
    Rule(
        name="target_copies",
        sees=_target_copies,
        advice="Set method.momentum.start to 0.99 for short runs and 0.996 for long ones.",
    ),
    Rule(
        name="still",
        sees=_still,
        patience=3,
        advice="Usual causes are a learning rate that is far too low, a layer that is frozen, "
        "weights that have grown out of proportion, and units that are dead. Raise optim.lr.",
    ),
    Rule(name="rushes", sees=_rushes, patience=2, advice=_RATE),
    Rule(name="too_large", sees=_too_large, patience=1, advice=_RATE),
    Rule(
        name="fades",
        sees=_fades,
        patience=2,
        advice="The usual cause is weight decay that is far too strong. Set optim.weight_decay to "
        "1e-4 for sgd, 1e-6 for lars, 0.05 for adamw.",
    ),
    Rule(
        name="worse_than_guessing",
        sees=_worse_than_guessing,
        advice="Usual causes are a temperature that is far too low, a learning rate that is too "
        "high, and a loss of the wrong sign. Set method.temperature to 0.1 to 0.5, or divide "
        "optim.lr by 3.",
    ),
    Rule(name="all_alike", sees=_alike, stops=True, patience=1, advice=_DATA),
)
