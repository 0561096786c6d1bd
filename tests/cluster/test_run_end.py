"""Runs that end on their way: on request, by the clock, in collapse, on a full disk."""

from __future__ import annotations

import contextlib
import io
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from cluster import pretrain_worker, recorder
from cluster.checkpoints import Checkpoint, save_checkpoint
from cluster.context import Context
from cluster.pretrain_job import (
    PretrainingCancelled,
    PretrainingStoppedError,
    PretrainJobConfig,
    pretrain,
)
from cluster.pulse import Pulse, ask_to_stop
from cluster.ray_train import ASKED
from cluster.runlog import read_metrics, read_run, write_run
from cluster.scan_job import ScanConfig, scan
from cluster.workspace import Workspace
from encoders.doctor import Doctor
from encoders.health import CollapseError, HealthConfig
from encoders.recipes import simclr_small, tiny
from index.artifact import open_door
from index.folder import Folder

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

NUM_STEPS = 18
TRAINING = replace(tiny(simclr_small()), epochs=6, health=HealthConfig(every=1, grace_steps=0))
CONFIG = PretrainJobConfig(
    corpus="digits", name="run", training=TRAINING, checkpoint_every=4, log_every=1
)


def context_at(folder: Path) -> Context:
    return Context(Workspace.at(folder), console=Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, local_ray: Any, train_here: Any) -> Path:
    """A workspace with a run ``one`` that nothing disturbed."""
    folder = tmp_path_factory.mktemp("ends")
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (24, 24, 24, 3), dtype=np.uint8)
    (folder / "pictures").mkdir()
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / "pictures" / f"{number:02d}.png")
    context = context_at(folder / "workspace")
    scan(ScanConfig(source=str(folder / "pictures"), corpus="digits"), context)
    with pytest.MonkeyPatch.context() as patch:
        train_here(patch)
        pretrain(replace(CONFIG, name="one"), context)
    return folder / "workspace"


@pytest.fixture
def context(
    trained: Path, tmp_path: Path, train_here: Any, monkeypatch: pytest.MonkeyPatch
) -> Context:
    train_here(monkeypatch)
    shutil.copytree(trained, tmp_path / "workspace")
    return context_at(tmp_path / "workspace")


def run_folder(context: Context) -> Folder:
    return context.workspace.folder("runs", "run")


def weights(context: Context, name: str) -> np.ndarray:
    state = context.workspace.open_encoder(name).backbone.state_dict()
    return np.concatenate([state[key].double().numpy().ravel() for key in sorted(state)])


def training_card(context: Context) -> dict[str, Any]:
    folder = context.workspace.folder("encoders", "run")
    return dict(open_door(folder, "encoder", door="card.json")["training"])


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Any) -> None:
    """Do something when the run has made a step, and have the pulse notice at once."""
    note = Pulse.at

    def noted(self: Pulse, step: int, seconds: float) -> None:
        note(self, step, seconds)
        if step == number:
            act(self)

    monkeypatch.setattr(Pulse, "at", noted)


def assert_goes_on_to_the_same_bits(context: Context) -> None:
    report = pretrain(CONFIG, context)
    assert report["steps"] == NUM_STEPS
    assert read_run(run_folder(context))["state"] == "done"
    np.testing.assert_array_equal(weights(context, "run"), weights(context, "one"))
    steps = [line["step"] for line in read_metrics(run_folder(context))]
    assert steps == list(range(1, NUM_STEPS + 1))


def test_a_run_that_is_asked_to_stop_leaves_an_encoder_and_goes_on_to_the_same_bits(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        at_step(patch, 7, lambda pulse: setattr(pulse, "stop_reason", ASKED))
        with pytest.raises(PretrainingCancelled, match=r"step 8 of 18.*Run the same command"):
            pretrain(CONFIG, context)
    run = read_run(run_folder(context))
    assert (run["state"], run["error"]) == ("cancelled", None)
    assert run["note"].startswith("Stopped after step 8 of 18, since somebody asked it to")
    card = training_card(context)
    assert (card["steps"], card["num_steps"], card["cut_short"]) == (8, NUM_STEPS, ASKED)
    context.workspace.open_encoder("run")
    assert_goes_on_to_the_same_bits(context)
    assert training_card(context)["cut_short"] is None
    attempts = read_run(run_folder(context))["attempts"]
    assert [item["resumed_at"] for item in attempts] == [0, 8]
    assert [item["lost_steps"] for item in attempts] == [0, 0]


def test_a_wish_to_stop_is_heard_through_its_file_and_forgotten_by_the_next_command(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(pulse: Pulse) -> None:
        ask_to_stop(run_folder(context), ASKED)
        deadline = threading.Event()
        while pulse.stop_reason is None:
            assert not deadline.wait(0.05)

    with monkeypatch.context() as patch:
        at_step(patch, 3, ask)
        with pytest.raises(PretrainingCancelled):
            pretrain(CONFIG, context)
    assert training_card(context)["steps"] == 4
    assert_goes_on_to_the_same_bits(context)


def test_a_time_limit_ends_a_command_and_not_the_run(context: Context) -> None:
    report = pretrain(replace(CONFIG, stop_after_s=1e-9), context)
    assert "since its time was up" in report["note"]
    assert training_card(context)["steps"] == report["steps"] == 1
    assert pretrain(replace(CONFIG, stop_after_s=1e-9), context)["steps"] == 2
    assert_goes_on_to_the_same_bits(context)


def test_what_a_killed_run_has_learnt_can_be_published_without_training(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_publish = replace(CONFIG, stop_after_s=0)
    with pytest.raises(ValueError, match="newest healthy checkpoint, and there is none"):
        pretrain(only_publish, context)

    def die(pulse: Pulse) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        at_step(patch, 9, die)
        with pytest.raises(RuntimeError, match="killed"):
            pretrain(CONFIG, context)
    assert "run" not in context.workspace.names("encoders")
    report = pretrain(only_publish, context)
    assert report["resumed_at"] == training_card(context)["steps"] == 8
    assert training_card(context)["cut_short"] == "it was published from a checkpoint"
    assert_goes_on_to_the_same_bits(context)
    assert [item["lost_steps"] for item in read_run(run_folder(context))["attempts"]] == [0, 1]


def test_all_ranks_go_on_from_the_step_that_the_first_one_finds(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine may not see the newest checkpoint yet; here it sees one too many."""

    def die(_: Pulse) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        at_step(patch, 9, die)
        with pytest.raises(RuntimeError, match="killed"):
            pretrain(CONFIG, context)
    monkeypatch.setattr(pretrain_worker, "gather_rows", lambda own: torch.tensor([6]) + 0 * own)
    assert pretrain(CONFIG, context)["resumed_at"] == 6
    np.testing.assert_array_equal(weights(context, "run"), weights(context, "one"))


def test_a_stop_whose_workers_die_still_leaves_an_encoder(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask_and_die(_: Pulse) -> None:
        ask_to_stop(run_folder(context), ASKED)
        raise RuntimeError("node lost")

    at_step(monkeypatch, 9, ask_and_die)
    with pytest.raises(PretrainingCancelled, match="last healthy checkpoint, step 8, is pub"):
        pretrain(CONFIG, context)
    run = read_run(run_folder(context))
    assert run["state"] == "cancelled"
    assert "the workers ended before they could save (RuntimeError). The" in run["note"]
    assert training_card(context)["steps"] == 8


def collapse(monkeypatch: pytest.MonkeyPatch, *, ailing_from: int, at: int) -> None:
    ailing = []

    def conclude(self: Doctor, visit: object, step: int, metrics: object) -> dict[str, float]:
        ailing[:] = [step] if step >= ailing_from else []
        if step == at:
            raise CollapseError("training collapsed: nearly all pictures are the same.")
        return {}

    monkeypatch.setattr(Doctor, "conclude", conclude)
    monkeypatch.setattr(Doctor, "is_healthy", property(lambda _: not ailing))


def test_a_collapsed_run_leaves_the_encoder_of_its_last_healthy_checkpoint(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    collapse(monkeypatch, ailing_from=5, at=13)
    with pytest.raises(PretrainingStoppedError, match="last healthy checkpoint, step 4, is pub"):
        pretrain(CONFIG, context)
    card = training_card(context)
    assert card["steps"] == 4
    assert card["cut_short"].startswith("training collapsed")
    run = read_run(run_folder(context))
    assert run["state"] == "stopped"
    assert "step 4" in run["error"]


def test_a_run_that_collapsed_from_the_start_publishes_nothing(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    collapse(monkeypatch, ailing_from=1, at=7)
    with pytest.raises(PretrainingStoppedError, match="collapsed") as stopped:
        pretrain(CONFIG, context)
    assert "published" not in str(stopped.value)
    assert context.workspace.names("encoders") == ["one"]


def test_a_run_on_a_full_disk_stops_after_three_tries_and_loses_nothing_it_had(
    context: Context, monkeypatch: pytest.MonkeyPatch, full_disk: Any
) -> None:
    with monkeypatch.context() as patch, contextlib.ExitStack() as filled:
        # There is room for the first checkpoint, and later for metrics but for no state.
        at_step(patch, 4, lambda _: filled.enter_context(full_disk(12_000)))
        with pytest.raises(PretrainingStoppedError) as stopped:
            pretrain(CONFIG, context)
    for part in ("3 checkpoints in a row", "has to be able to save", "Make room", "from step 2"):
        assert part in str(stopped.value)
    run = read_run(run_folder(context))
    assert run["state"] == "stopped"
    assert "could not be written" in run["alert"]
    assert (run_folder(context) / "checkpoints").names() == ["step-000000002"]
    assert_goes_on_to_the_same_bits(context)
    assert read_run(run_folder(context))["alert"] is None


def test_steps_go_on_while_a_slow_disk_takes_a_checkpoint(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save that only ends once a later step is made would wait for ever in the loop."""
    later = threading.Event()
    overtaken = []

    def slow(folder: Folder, checkpoint: Checkpoint) -> None:
        if checkpoint.step == 2:
            overtaken.append(later.wait(60))
        save_checkpoint(folder, checkpoint)

    monkeypatch.setattr(recorder, "save_checkpoint", slow)
    at_step(monkeypatch, 3, lambda _: later.set())
    pretrain(CONFIG, context)
    assert overtaken == [True]


def test_an_alert_of_an_earlier_command_is_taken_back(context: Context) -> None:
    write_run(context.workspace.folder("runs", "one"), state="stopped", alert="not protected")
    pretrain(replace(CONFIG, name="one"), context)
    assert read_run(context.workspace.folder("runs", "one"))["alert"] is None


@pytest.mark.parametrize("limit", [-1.0, float("nan")])
def test_a_time_limit_below_zero_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match=r"stop_after_s is .*; it has to be 0 or more\. Leave"):
        replace(CONFIG, stop_after_s=limit)
