"""What a run's folder says of its health: figures, warnings, pictures kept out of training."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cluster.context import Context
from cluster.pretrain_job import PretrainingStoppedError, PretrainJobConfig, pretrain
from cluster.run_watch import Pace, Warnings
from cluster.runlog import read_metrics, read_run
from cluster.scan_job import ScanConfig, scan
from cluster.workspace import Workspace
from encoders.doctor import Finding
from encoders.pretrain_config import PretrainConfig
from encoders.recipes import simclr_small, tiny
from index.folder import Folder
from ui.runs import FIGURES, RunBoard

NUM_PICTURES = 40


@pytest.fixture
def context(
    tmp_path: Path, local_ray: Any, train_here: Any, monkeypatch: pytest.MonkeyPatch
) -> Context:
    """An empty workspace; the worker runs in this process, not under Ray Train."""
    train_here(monkeypatch)
    return Context(Workspace.at(tmp_path / "workspace"), console=Console(file=io.StringIO()))


def train(context: Context, tmp_path: Path, training: PretrainConfig, *, copies: bool) -> Folder:
    """A run called r over noise of 24 px, or over copies of one picture; its folder."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (NUM_PICTURES, 24, 24, 3), dtype=np.uint8)
    (tmp_path / "pictures").mkdir()
    for number in range(NUM_PICTURES):
        image = Image.fromarray(pixels[0 if copies else number])
        image.save(tmp_path / "pictures" / f"{number:02d}.png")
    scan(ScanConfig(source=str(tmp_path / "pictures"), corpus="noise"), context)
    config = PretrainJobConfig(corpus="noise", name="r", training=training, log_every=7)
    pretrain(config, context)
    return context.workspace.folder("runs", "r")


def tiny_config(**changes: Any) -> PretrainConfig:
    return replace(tiny(simclr_small()), epochs=12, **changes)


@pytest.mark.ray
def test_a_run_keeps_pictures_out_and_writes_every_figure_of_its_checks(
    context: Context, tmp_path: Path
) -> None:
    training = tiny_config()
    training = replace(training, health=replace(training.health, held_out_share=0.8))
    folder = train(context, tmp_path, training, copies=False)
    run = read_run(folder)
    assert (run["num_pictures"], run["num_held_out"], run["num_examined"]) == (40, 32, 32)
    assert run["num_steps"] == 12, "one batch of the 8 pictures that are left"
    lines = {line["step"]: line for line in read_metrics(folder)}
    assert set(lines) == {2, 4, 6, 7, 8, 10, 12}, "checks are kept, whatever log_every is"
    expected = {"discrimination", "held_out_mi_bound", "update_ratio", "data_wait"}
    assert expected <= set(lines[2])
    assert 0 <= lines[2]["data_wait"] <= 1
    assert lines[2]["pictures_per_s"] > 0
    unknown = set(lines[2]) - set(FIGURES) - {"step", "epoch", "time_s"}
    assert unknown == set(), "the Runs page knows each figure"
    assert run["state"] == "done"


@pytest.mark.ray
def test_a_warning_is_kept_and_shown_and_the_run_goes_on(context: Context, tmp_path: Path) -> None:
    training = tiny_config()
    slow = replace(training, optim=replace(training.optim, lr=1e-12))
    folder = train(context, tmp_path, slow, copies=False)
    run = read_run(folder)
    assert run["state"] == "done"
    (warning,) = run["warnings"]
    assert warning["rule"] == "still"
    assert "Raise optim.lr" in warning["sentence"]
    said = [line["warnings"] for line in read_metrics(folder) if "warnings" in line]
    assert said == [[warning["sentence"]]]
    shown = RunBoard(context.workspace).metrics("r")["message"]
    assert shown == f"Warning: {warning['sentence']}"


@pytest.mark.ray
def test_a_corpus_of_copies_stops_the_run_and_says_why(context: Context, tmp_path: Path) -> None:
    with pytest.raises(PretrainingStoppedError, match=r"all 32 pictures looked at are the same"):
        train(context, tmp_path, tiny_config(), copies=True)
    run = read_run(context.workspace.folder("runs", "r"))
    assert run["state"] == "stopped"
    assert "scan others" in run["error"]


def test_pace_is_the_share_of_waiting_and_begins_anew_each_time() -> None:
    pace = Pace(batch_size=8)
    for _ in range(2):
        with pace.waiting():
            time.sleep(0.05)
    time.sleep(0.05)
    figures = pace.figures()
    assert 0.3 < figures["data_wait"] < 0.95
    assert 16 / 1.5 < figures["pictures_per_s"] < 16 / 0.15
    assert pace.figures() == {"data_wait": 0.0, "pictures_per_s": 0.0}


def test_a_warning_that_a_run_resumed_with_is_not_said_again(tmp_path: Path) -> None:
    old, new = (
        Finding(rule=rule, since=20, step=40, sentence=f"since step 20 {rule}.")
        for rule in ("still", "rushes")
    )
    warnings = Warnings(Folder.at(tmp_path), [old])
    assert warnings.keep([old]) == {}
    assert warnings.keep([old, new]) == {"warnings": ["since step 20 rushes."]}
    kept = read_run_warnings(tmp_path)
    assert [warning["rule"] for warning in kept] == ["still", "rushes"]


def read_run_warnings(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "run.json").read_text())["warnings"])
