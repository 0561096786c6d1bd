"""Runs whose workspace is a bucket: checkpoints, pulse and encoder go to a real S3 server."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cluster.context import Context
from cluster.pretrain_job import PretrainJobConfig, pretrain
from cluster.pulse import Pulse
from cluster.runlog import read_run
from cluster.scan_job import ScanConfig, scan
from cluster.verify_job import CALM
from cluster.where import CHECKOUT
from cluster.workspace import Workspace
from encoders.recipes import simclr_small, tiny

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

RECIPE = tiny(simclr_small())
TRAINING = replace(RECIPE, epochs=4, optim=replace(RECIPE.optim, lr=RECIPE.optim.lr * CALM))
CONFIG = PretrainJobConfig(
    corpus="digits", name="run", training=TRAINING, checkpoint_every=4, log_every=1
)
NUM_STEPS = 12
WAIT_S = 600
DRIVER = """
import sys
from dataclasses import replace
from rich.console import Console
from cluster.context import Context
from cluster.pretrain_job import PretrainJobConfig, pretrain
from cluster.workspace import Workspace
from encoders.recipes import simclr_small, tiny
recipe = tiny(simclr_small())
optim = replace(recipe.optim, lr=recipe.optim.lr * 0.1)
config = PretrainJobConfig(
    corpus="digits", name="run", training=replace(recipe, epochs=100, optim=optim),
    checkpoint_every=4, log_every=1,
)
pretrain(config, Context(Workspace.at(sys.argv[1]), console=Console(file=sys.stderr)))
"""

Here = Callable[[str], Context]


@pytest.fixture
def scanned(pictures: Any, s3_options: str, tmp_path: Path) -> Here:
    """Scans the same pictures into a workspace on disk or in a bucket."""
    from pyarrow import fs as pafs

    source = str(pictures(24, size=24, formats=["png"]))

    def scan_into(place: str) -> Context:
        location = str(tmp_path / "workspace")
        if place != "disk":
            fs, _ = pafs.FileSystem.from_uri(
                f"s3://{place}?{s3_options}&allow_bucket_creation=true"
            )
            fs.create_dir(place)
            location = f"s3://{place}/workspace?{s3_options}"
        context = Context(Workspace.at(location), console=Console(file=io.StringIO()))
        scan(ScanConfig(source=source, corpus="digits"), context)
        return context

    return scan_into


def weights(context: Context) -> np.ndarray:
    state = context.workspace.open_encoder("run").backbone.state_dict()
    return np.concatenate([state[key].double().numpy().ravel() for key in sorted(state)])


def checkpoints(context: Context) -> list[int]:
    """Steps of the published checkpoints."""
    folder = context.workspace.folder("runs", "run") / "checkpoints"
    names = [name for name in folder.names() if folder.exists(f"{name}/checkpoint.json")]
    return sorted(int(name.removeprefix("step-")) for name in names)


def test_a_run_in_a_bucket_goes_on_after_a_kill_to_the_bits_of_one_on_disk(
    scanned: Here, train_here: Any, local_ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its newest checkpoint is damaged, too: the one before it serves."""
    train_here(monkeypatch)
    on_disk, in_bucket = scanned("disk"), scanned("runs-damaged")
    pretrain(CONFIG, on_disk)
    note = Pulse.at

    def die_at_step_9(self: Pulse, step: int, seconds: float) -> None:
        note(self, step, seconds)
        if step == 9:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Pulse, "at", die_at_step_9)
        with pytest.raises(RuntimeError, match="killed"):
            pretrain(CONFIG, in_bucket)
    *_, before, newest = checkpoints(in_bucket)
    folder = in_bucket.workspace.folder("runs", "run") / f"checkpoints/step-{newest:09d}"
    data = bytearray(folder.read_bytes("state.pt"))
    data[len(data) // 2] ^= 1
    folder.write_atomic("state.pt", bytes(data))
    report = pretrain(CONFIG, in_bucket)
    assert (report["resumed_at"], report["steps"]) == (before, NUM_STEPS)
    np.testing.assert_array_equal(weights(in_bucket), weights(on_disk))
    attempts = read_run(in_bucket.workspace.folder("runs", "run"))["attempts"]
    assert [item["lost_steps"] for item in attempts] == [0, 9 - before]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_driver_that_is_killed_is_gone_on_with_from_its_bucket(
    scanned: Here, local_ray: Any
) -> None:
    """Ray Train itself, in processes of its own: SIGKILL once there is a checkpoint to go on from.

    Its workers end with it, and the second command makes all steps once.
    """
    context = scanned("runs-killed")
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-c", DRIVER, context.workspace.location]
    driver = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + WAIT_S
        while not checkpoints(context):
            assert driver.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, "no checkpoint was written"
            time.sleep(0.2)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    reached = checkpoints(context)[-1]
    report = pretrain(replace(CONFIG, training=replace(TRAINING, epochs=100)), context)
    assert report["resumed_at"] >= reached
    assert report["steps"] == 300
