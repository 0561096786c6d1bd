"""Symptoms: what came of training, seen on embeddings.

A rule compares with what the untrained network could do, or with chance, and not with what is usual
for a method, so that it holds for faults that nobody has thought of. Figures that begin with
``mean_`` are means over the last checks. Learning is judged in the second half of a run: some
healthy runs show nothing before.
"""

from __future__ import annotations

from encoders.checkup import CHANCE, Checkup, Rule

__all__ = ["SYMPTOMS"]

# Standard deviations from chance that are still taken for it, and beyond which a fall is no noise.
NEAR, FAR = 1.5, 5.0
# Share of what the untrained network lacks that learning has to gain.
LEAST_GAIN = 0.05
# How much better views may be told apart in training than in eval mode.
GAP = 0.3
# How near to chance the pairs of a batch are, and how much better held-out ones, to be unpaired.
UNPAIRED, PAIRED = 0.03, 0.06
HALF = 0.5
# Share of a run after which classes are told apart, if labels have to do with pictures.
LATE = 0.75


def _constant(check: Checkup) -> str | None:
    std, least = check.now["embedding_std"], check.config.min_std
    if not check.past_grace or std >= least:
        return None
    return (
        f"nearly all pictures get the same embedding: its std is {std:.4f} (at least {least} is "
        "healthy, 1 is ideal)"
    )


def _narrow(check: Checkup) -> str | None:
    if check.learns_classes or not check.past_grace:
        return None
    seen = (("effective_rank", check.num_pictures), ("batch_rank", check.batch_pictures))
    for figure, num_pictures in seen:
        rank, least = check.now[figure], check.least_rank(num_pictures)
        if rank < least:
            return (
                f"the embedding has collapsed to {rank:.1f} of {check.dim} dimensions: those of "
                f"{num_pictures} pictures lie along few directions (at least {least:.1f} is "
                "healthy; if the pictures differ no more, set health.min_rank_share to 0)"
            )
    return None


def _chance(check: Checkup) -> str | None:
    found, trained = check.now["mean_discrimination"], check.now["mean_batch_discrimination"]
    at_chance = found <= CHANCE + NEAR * check.chance
    if not check.can_tell or not at_chance or trained > CHANCE + NEAR * check.batch_chance:
        return None
    return (
        "nothing is learnt that tells one picture from another: the other view of a picture is "
        f"nearer than another picture in {found:.0%} of cases, where chance is 50 % and the "
        f"untrained network had {check.start['discrimination']:.0%}"
    )


def _no_gain(check: Checkup) -> str | None:
    if not check.can_tell or _has_gained(check):
        return None
    found, before = check.now["mean_discrimination"], check.start["discrimination"]
    return (
        "pictures are told apart no better than by the untrained network: the other view of a "
        f"picture is nearer than another picture in {found:.0%} of cases, then {before:.0%}"
    )


def _has_gained(check: Checkup) -> bool:
    """Whether anything is told apart better than before: pictures, those of a batch, or classes."""
    for figure in ("discrimination", "batch_discrimination", "class_discrimination"):
        before = check.start.get(figure)
        found = check.now.get(f"mean_{figure}")
        if before is None or found is None:
            continue
        if found >= before + LEAST_GAIN * (1 - before):
            return True
    return False


def _forgets(check: Checkup) -> str | None:
    found, best = check.now["mean_discrimination"], check.now["best_discrimination"]
    if check.learns_classes or not check.settled or found > best - FAR * check.chance:
        return None
    return (
        "the network forgets what it had learnt: the other view of a picture is nearer than "
        f"another picture in {found:.0%} of cases, and was in {best:.0%}"
    )


def _dead(check: Checkup) -> str | None:
    dead = check.now["dead_dimensions"]
    if not check.past_grace or dead <= HALF * check.dim:
        return None
    return f"{dead:.0f} of {check.dim} dimensions of the embedding are the same for all pictures"


def _unpaired(check: Checkup) -> str | None:
    trained, found = check.now["mean_batch_discrimination"], check.now["mean_discrimination"]
    if not check.can_tell or abs(trained - CHANCE) > UNPAIRED or found < trained + PAIRED:
        return None
    return (
        f"the pairs that the loss is given are not alike ({trained:.0%}, where 50 % is chance), "
        f"while two views of a held-out picture are ({found:.0%})"
    )


def _gap(check: Checkup) -> str | None:
    trained, found = check.now["mean_batch_discrimination"], check.now["mean_discrimination"]
    is_learnt = found >= check.start["discrimination"]
    if not check.can_tell or trained < found + GAP or is_learnt:
        return None
    return (
        f"views are told apart in training ({trained:.0%}) and not afterwards ({found:.0%}): by "
        "something else than what they show"
    )


def _labels_say_nothing(check: Checkup) -> str | None:
    found, before = check.now.get("mean_class_discrimination"), check.start
    is_late = check.progress >= LATE and check.can_tell
    if found is None or not is_late or found > CHANCE + NEAR * check.chance:
        return None
    return (
        "labels have nothing to do with what pictures show: one of the same class is nearer than "
        f"one of another in {found:.0%} of cases, where chance is 50 % and the untrained network "
        f"had {before.get('class_discrimination', CHANCE):.0%}"
    )


SYMPTOMS = (
    Rule(name="no_gain", sees=_no_gain),
    Rule(
        name="gap",
        sees=_gap,
        advice="Usual causes are BatchNorm that sees pairs together, and a corpus so small that it "
        "is learnt by heart. Raise method.key_groups for MoCo, or scan more pictures.",
    ),
    Rule(
        name="unpaired",
        sees=_unpaired,
        advice="The usual cause is that views, ids or labels of different pictures are put "
        "together. Look at how batches are made.",
    ),
    Rule(
        name="labels_say_nothing",
        sees=_labels_say_nothing,
        advice="The usual cause is a mistake in the labels, such as a shifted column; else a run "
        "too short or too slow. Look at the labels of the corpus, raise epochs or optim.lr, or "
        "train with simclr, which needs none.",
    ),
    Rule(name="forgets", sees=_forgets),
    Rule(name="dead", sees=_dead),
    Rule(name="constant", sees=_constant, stops=True),
    Rule(name="narrow", sees=_narrow, stops=True),
    Rule(name="chance", sees=_chance, stops=True),
)
