"""Sabotaged runs are found out and healthy ones raise no alarm, on small pictures of digits."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from encoders.augment import AugmentConfig
from encoders.backbone import BackboneConfig
from encoders.batchnorm import SplitBatchNorm
from encoders.health import CollapseError, HealthConfig
from encoders.held_out import ExaminedPictures
from encoders.losses import unit_rows
from encoders.method import Batch
from encoders.momentum import MomentumConfig
from encoders.pretrain_config import PretrainConfig
from encoders.recipes import byol_small, moco_small, simclr_small, supcon_small, tiny
from encoders.training import Pretraining

RECIPES: dict[str, Callable[[], PretrainConfig]] = {
    "simclr": simclr_small,
    "moco": moco_small,
    "byol": byol_small,
    "supcon": supcon_small,
}
NUM_PICTURES = 640
NUM_STEPS = 120
WHOLE = AugmentConfig(
    crop_size=16,
    crop_scale=(1.0, 1.0),
    crop_ratio=(1.0, 1.0),
    flip_probability=0.0,
    jitter_probability=0.0,
    gray_probability=0.0,
)

Sabotage = Callable[[Pretraining], None]


def nothing(training: Pretraining) -> None:
    """No sabotage."""


def config_of(name: str, **changes: Any) -> PretrainConfig:
    """A tiny recipe in enough dimensions for the rank to say something."""
    config = tiny(RECIPES[name]())
    config = replace(
        config,
        backbone=BackboneConfig(widths=(8, 16)),
        projector=replace(config.projector, hidden_dim=64, output_dim=64),
        health=HealthConfig(every=4, grace_steps=40),
        batch_size=64,
        epochs=13,
    )
    return replace(config, **changes)


def corpus() -> tuple[np.ndarray, np.ndarray]:
    bunch = load_digits()
    gray = (bunch.images[:NUM_PICTURES, :, :, None] * 15.9).astype(np.uint8)
    return gray.repeat(2, axis=1).repeat(2, axis=2).repeat(3, axis=3), bunch.target.astype(np.int64)


class Run:
    """A run with held-out pictures, taken as far as it goes."""

    def __init__(
        self,
        config: PretrainConfig,
        sabotage: Sabotage = nothing,
        pixels: np.ndarray | None = None,
        labels: np.ndarray | None = None,
    ) -> None:
        digits, classes = corpus()
        self.pixels = digits if pixels is None else pixels
        self.labels = classes if labels is None else labels
        self.split = config.split(NUM_PICTURES)
        rows = self.split.examined
        examined = ExaminedPictures(self.pixels[rows], rows, self.labels[rows], config=config)
        self.training = Pretraining(config, len(self.split.trained), examined=examined)
        sabotage(self.training)

    def until(self, rule: str | None = None, num_steps: int = NUM_STEPS) -> str:
        """Train until a warning of this rule, or to the end; returns the warning."""
        while self.training.step_index < num_steps:
            rows = self.split.trained[self.training.next_rows()]
            self.training.train_step(self.pixels[rows], rows, self.labels[rows])
            for finding in self.training.findings:
                if finding.rule == rule:
                    return finding.sentence
        assert rule is None, [finding.rule for finding in self.training.findings]
        return ""


def faster(name: str, factor: float) -> PretrainConfig:
    config = config_of(name)
    return replace(config, optim=replace(config.optim, lr=factor * config.optim.lr))


def with_method(name: str, **changes: Any) -> PretrainConfig:
    config = config_of(name)
    return replace(config, method=replace(config.method, **changes))


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("simclr", 0),
        ("supcon", 0),
        ("supcon", 1),
        *(pytest.param(n, 0, marks=pytest.mark.slow) for n in ("moco", "byol")),
    ],
)
def test_a_healthy_run_raises_no_alarm(name: str, seed: int) -> None:
    """SupCon's rate is for batches of the recipe's size; at it, so short a run learns nothing.

    With seed 1 it starts with classes told apart worse than by chance.
    """
    run = Run(replace(faster(name, 3.0 if name == "supcon" else 1.0), seed=seed))
    run.until()
    assert run.training.findings == []
    assert run.training.is_healthy


def test_a_head_without_batchnorm_begins_narrow_and_is_left_to_learn() -> None:
    config = config_of("simclr")
    head = replace(config.projector, batch_norm=False)
    run = Run(replace(config, projector=head, seed=2))
    run.until()
    assert run.training.findings == []


# --- collapse: the run stops itself ---------------------------------------------------------------


def without_predictor(training: Any) -> None:
    training._method.predictor = nn.Identity()


def without_stop_gradient(training: Any) -> None:
    """Targets are the online network's own projections, and gradients flow through them."""
    method = training._method

    def compare(online: Any, targets: Any, batch: Batch) -> Any:
        a_ND, b_ND, predicted_a, predicted_b = online
        output = plain(online, targets, batch)
        pairs = ((predicted_a, b_ND), (predicted_b, a_ND))
        losses = [(unit_rows(x) - unit_rows(y)).square().sum(1).mean() for x, y in pairs]
        return replace(output, loss=losses[0] + losses[1])

    plain, method.compare = method.compare, compare


@pytest.mark.parametrize("name", ["simclr", "moco"])
def test_a_rate_300_times_too_high_is_stopped_and_the_rate_named(name: str) -> None:
    with pytest.raises(CollapseError, match=r"collapsed.* Divide optim\.lr by 3") as error:
        Run(faster(name, 300.0)).until()
    assert "weights are being overwritten" in str(error.value)
    assert "optim.lr" in str(error.value).split("stand out")[1]


@pytest.mark.parametrize("sabotage", [without_predictor, without_stop_gradient])
def test_byol_without_predictor_or_stop_gradient_is_stopped(sabotage: Sabotage) -> None:
    run = Run(config_of("byol"), sabotage)
    with pytest.raises(CollapseError, match=r"collapsed: since step .* BYOL"):
        run.until()
    assert not run.training.is_healthy


def upwards(training: Any) -> None:
    for parameter in training._trained:
        parameter.register_hook(torch.neg)


def test_a_run_that_climbs_the_loss_is_found_out() -> None:
    assert "loss of the wrong sign" in Run(config_of("byol"), upwards).until("worse_than_guessing")
    with pytest.raises(CollapseError, match="nats worse than guessing"):
        Run(config_of("simclr"), upwards).until()


def test_a_projection_to_one_dimension_is_stopped() -> None:
    config = config_of("simclr")
    config = replace(config, projector=replace(config.projector, output_dim=1))
    with pytest.raises(CollapseError, match=r"collapsed to 1\.0 of 1 dimensions"):
        Run(config).until()


def test_labels_that_are_shuffled_are_said_to_say_nothing() -> None:
    labels = np.random.default_rng(0).permutation(corpus()[1])
    run = Run(faster("supcon", 3.0), labels=labels)
    assert "mistake in the labels" in run.until("labels_say_nothing")


def nearly_copies(pixels: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).integers(-2, 3, pixels.shape)
    return np.clip(pixels[:1] + noise, 0, 255).astype(np.uint8)


def test_near_copies_of_one_picture_cannot_be_learnt_from() -> None:
    with pytest.raises(CollapseError, match=r"collapsed: since step"):
        Run(config_of("simclr"), pixels=nearly_copies(corpus()[0])).until()


@pytest.mark.parametrize("picture", ["a digit", "black"])
def test_pictures_that_are_all_the_same_stop_the_run_at_the_first_check(picture: str) -> None:
    digit = corpus()[0][:1] if picture == "a digit" else np.zeros((1, 16, 16, 3), np.uint8)
    run = Run(config_of("simclr"), pixels=digit.repeat(NUM_PICTURES, axis=0))
    with pytest.raises(CollapseError, match="all 32 pictures looked at are the same"):
        run.until()
    assert run.training.step_index == 4


def test_labels_that_are_all_equal_are_said_to_say_nothing() -> None:
    run = Run(config_of("supcon"), labels=np.zeros(NUM_PICTURES, np.int64))
    assert "mistake in the labels" in run.until("labels_say_nothing")


# --- faults: a warning names what is wrong --------------------------------------------------------


def test_a_rate_30_times_too_high_is_said_to_be() -> None:
    assert "learning rate that is too high" in Run(faster("simclr", 30.0)).until("rushes")


def test_a_rate_near_zero_is_said_to_move_nothing() -> None:
    assert "far too low" in Run(faster("simclr", 1e-9)).until("still", 12)


def frozen(training: Any) -> None:
    training._method.backbone.requires_grad_(False)
    training._trained = [p for p in training._trained if p.requires_grad]


def without_gradients(training: Any) -> None:
    for parameter in training._trained:
        parameter.register_hook(torch.zeros_like)


def too_large(training: Any) -> None:
    with torch.no_grad():
        for parameter in training._method.parameters():
            parameter.mul_(1e4)


@pytest.mark.parametrize("sabotage", [frozen, without_gradients])
def test_weights_that_do_not_move_are_seen(sabotage: Sabotage) -> None:
    assert "frozen" in Run(config_of("byol"), sabotage).until("still", 40)


def test_weights_out_of_all_proportion_are_seen() -> None:
    assert "root mean square" in Run(config_of("byol"), too_large).until("too_large", 4)


def test_weight_decay_that_eats_the_weights_is_named() -> None:
    config = config_of("byol")
    config = replace(config, optim=replace(config.optim, weight_decay=3.0))
    sentence = Run(config).until("fades", 80)
    assert "weight decay that is far too strong" in sentence
    assert "optim.weight_decay 3" in sentence


def one_group(training: Any) -> None:
    """Keys pass the networks in the order of their queries, all in one group."""
    method = training._method
    for module in method.modules():
        if isinstance(module, SplitBatchNorm):
            module.num_groups = 1
    method._encode_keys = lambda view, *_: unit_rows(
        method.key_projector(method.key_backbone(view))
    ).detach()


@pytest.mark.parametrize("how", ["setting", "code"])
def test_keys_that_batchnorm_gives_away_are_seen(how: str) -> None:
    config = with_method("moco", key_groups=1) if how == "setting" else config_of("moco")
    sentence = Run(config, one_group if how == "code" else nothing).until("leaks", 4)
    assert "BatchNorm gives keys away" in sentence
    assert "key_groups" in sentence


def keys_enter_too_early(training: Any) -> None:
    method = training._method
    plain = method.compare

    def compare(online: Any, targets: Any, batch: Batch) -> Any:
        method.queue.enqueue(targets[0], batch.ids + 1000)
        return plain(online, targets, batch)

    method.compare = compare


def queue_of_positives(training: Any) -> None:
    method = training._method
    plain = method.compare

    def compare(online: Any, targets: tuple[Tensor], batch: Batch) -> Any:
        num = len(method.queue.ids)
        method.queue.keys.copy_(targets[0][:num])
        method.queue.ids.fill_(10**6)
        return plain(online, targets, batch)

    method.compare = compare


@pytest.mark.parametrize("sabotage", [keys_enter_too_early, queue_of_positives])
def test_positives_among_the_negatives_are_seen(sabotage: Sabotage) -> None:
    assert "negatives of their own query" in Run(
        with_method("moco", queue_size=64), sabotage
    ).until("own_negative", 4)


@pytest.mark.parametrize("name", ["moco", "byol"])
@pytest.mark.parametrize(("start", "rule"), [(1.0, "target_rests"), (0.0, "target_copies")])
def test_a_target_that_rests_or_copies_is_seen(name: str, start: float, rule: str) -> None:
    momentum = MomentumConfig(start=start, schedule="constant")
    sentence = Run(with_method(name, momentum=momentum)).until(rule, 30)
    assert "method.momentum.start" in sentence


def same_views(training: Any) -> None:
    plain = training._batch

    def batch(*arguments: Any) -> Batch:
        made = plain(*arguments)
        return replace(made, view_b=made.view_a.clone())

    training._batch = batch


@pytest.mark.parametrize("how", ["setting", "code"])
def test_views_without_augmentation_are_seen(how: str) -> None:
    config = config_of("byol")
    if how == "setting":
        config = replace(config, view_a=WHOLE, view_b=WHOLE)
    sabotage = same_views if how == "code" else nothing
    assert "augmentation" in Run(config, sabotage).until("same_views", 4)


def views_of_others(training: Any) -> None:
    plain = training._batch

    def batch(*arguments: Any) -> Batch:
        made = plain(*arguments)
        return replace(made, view_b=made.view_b.roll(1, 0))

    training._batch = batch


def test_pixels_that_nobody_normalised_are_seen() -> None:
    def raw(training: Any) -> None:
        plain = training._batch

        def batch(*arguments: Any) -> Batch:
            made = plain(*arguments)
            views = [(view * 0.25 + 0.5) * 255 for view in (made.view_a, made.view_b)]
            return replace(made, view_a=views[0], view_b=views[1])

        training._batch = batch

    assert "not normalised" in Run(config_of("simclr"), raw).until("input", 4)


def test_two_pictures_in_turn_are_said_to_be_few() -> None:
    pixels = corpus()[0]
    two = pixels[np.arange(NUM_PICTURES) % 2]
    assert "only 2 differ" in Run(config_of("simclr"), pixels=two).until("few_distinct", 4)


@pytest.mark.slow
def test_a_temperature_that_makes_the_loss_absurd_is_named() -> None:
    with pytest.raises(CollapseError, match=r"stand out: method\.temperature 0\.001"):
        Run(with_method("simclr", temperature=1e-3)).until()


def test_pairs_of_different_pictures_are_seen_by_byol_too() -> None:
    run = Run(replace(config_of("byol"), seed=2), views_of_others)
    assert "not alike" in run.until("unpaired")
