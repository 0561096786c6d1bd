"""Pretraining under Ray Train: any number of workers, killed anywhere."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cluster.context import Context
from cluster.pretrain_job import PretrainingStoppedError, PretrainJobConfig, pretrain
from cluster.runlog import read_metrics, read_run
from cluster.scan_job import ScanConfig, scan
from cluster.where import CHECKOUT, Where
from cluster.workspace import Workspace
from encoders.recipes import simclr_small, supcon_small, tiny

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

DRIVER = """
import io, sys
from rich.console import Console
from cluster.context import Context
from cluster.pretrain_job import PretrainJobConfig, pretrain
from cluster.workspace import Workspace
from dataclasses import replace
from encoders.recipes import simclr_small, tiny
training = replace(tiny(simclr_small()), epochs=150)
config = PretrainJobConfig(corpus="digits", name="killed", training=training, checkpoint_every=3)
pretrain(config, Context(Workspace.at(sys.argv[1]), console=Console(file=io.StringIO())))
"""


@pytest.fixture
def context(tmp_path: Path, pictures: Any) -> Context:
    context = Context(Workspace.at(tmp_path / "workspace"), console=Console(file=io.StringIO()))
    scan(ScanConfig(folder=str(pictures(40, size=24)), corpus="digits", labels="folder"), context)
    return context


def weights(context: Context, name: str) -> dict[str, np.ndarray]:
    state = context.workspace.open_encoder(name).backbone.state_dict()
    return {key: value.numpy() for key, value in state.items()}


def relative_difference(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """Distance of two weight vectors over the length of one."""
    flat_a, flat_b = (
        np.concatenate([state[key].ravel().astype(np.float64) for key in sorted(state)])
        for state in (a, b)
    )
    return float(np.linalg.norm(flat_a - flat_b) / np.linalg.norm(flat_a))


def test_two_workers_train_the_same_encoder_as_one(
    context: Context, tmp_path: Path, local_ray: Any
) -> None:
    profiles = tmp_path / "where.yaml"
    profiles.write_text(
        "metadata: {lookalike: {profiles: {two: {num_workers: 2, cpus_per_worker: 1}}}}"
    )
    two = Context(
        context.workspace, Where(profile="two", ray_config=profiles), console=context.console
    )
    training = tiny(simclr_small())
    one_report = pretrain(
        PretrainJobConfig(corpus="digits", name="one", training=training), context
    )
    two_report = pretrain(PretrainJobConfig(corpus="digits", name="two", training=training), two)
    assert relative_difference(weights(context, "one"), weights(two, "two")) < 1e-4
    assert one_report["loss"] == pytest.approx(two_report["loss"], rel=1e-4)
    assert one_report["knn"] is not None
    assert read_run(context.workspace.folder("runs", "two"))["state"] == "done"
    assert not context.workspace.folder("runs", "two").exists("ray")

    again = pretrain(PretrainJobConfig(corpus="digits", name="one", training=training), context)
    assert again["encoder_id"] == one_report["encoder_id"]
    with pytest.raises(ValueError, match="started with another configuration; different: method"):
        pretrain(
            PretrainJobConfig(corpus="digits", name="one", training=tiny(supcon_small())), context
        )


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights_to_the_bit(
    context: Context, local_ray: Any
) -> None:
    from dataclasses import replace

    training = replace(tiny(simclr_small()), epochs=150)
    whole = PretrainJobConfig(corpus="digits", name="whole", training=training, checkpoint_every=3)
    pretrain(whole, context)
    folder = context.workspace.folder("runs", "killed")
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, context.workspace.location],
        cwd=CHECKOUT,
        start_new_session=True,
    ) as driver:
        deadline = time.monotonic() + 120
        while len((folder / "checkpoints").names()) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(driver.pid, signal.SIGKILL)
    assert read_run(folder)["state"] == "running"
    report = pretrain(
        PretrainJobConfig(corpus="digits", name="killed", training=training, checkpoint_every=3),
        context,
    )
    assert report["resumed_at"] > 0
    assert relative_difference(weights(context, "whole"), weights(context, "killed")) == 0.0
    steps = [line["step"] for line in read_metrics(folder)]
    assert steps == sorted(set(steps))


def test_a_run_that_cannot_go_on_says_why_and_is_marked_stopped(
    context: Context, local_ray: Any
) -> None:
    from dataclasses import replace

    training = tiny(simclr_small())
    wild = replace(training, optim=replace(training.optim, lr=1e30), epochs=40)
    config = PretrainJobConfig(corpus="digits", name="wild", training=wild)
    with pytest.raises(PretrainingStoppedError, match=r"learning rate|collapsed"):
        pretrain(config, context)
    run = read_run(context.workspace.folder("runs", "wild"))
    assert run["state"] == "stopped"
    assert run["error"]
    assert context.workspace.names("encoders") == []
