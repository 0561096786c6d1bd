"""Real kills at any moment: of workers, drivers and nodes, in mid-step and in mid-save."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray.train
import ray.train.torch
import torch
import yaml
from PIL import Image
from rich.console import Console

from cluster import pretrain_job
from cluster.context import Context
from cluster.pretrain_job import PretrainingCancelled, PretrainJobConfig, pretrain
from cluster.pretrain_worker import train_worker
from cluster.runlog import read_metrics, read_run
from cluster.scan_job import ScanConfig, scan
from cluster.verify_job import CALM, TOLERANCE
from cluster.where import CHECKOUT, Where
from cluster.workspace import Workspace
from encoders.recipes import simclr_small, tiny
from index.artifact import open_door
from index.folder import Folder

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

TINY = tiny(simclr_small())
OPTIM = replace(TINY.optim, lr=TINY.optim.lr * CALM)
NUM_EPOCHS, NUM_STEPS = 20, 100
EVERY = 8
WAIT_S = 400
DRIVER = """
import json, sys
from dataclasses import replace
from pathlib import Path
from rich.console import Console
from cluster.context import Context
from cluster.pretrain_job import PretrainJobConfig, pretrain
from cluster.where import Where
from cluster.workspace import Workspace
from encoders.optim import OptimConfig
from encoders.recipes import simclr_small, tiny
location, name, where = sys.argv[1:4]
recipe = tiny(simclr_small())
optim = replace(recipe.optim, lr=recipe.optim.lr * 0.1)
config = PretrainJobConfig(
    corpus="noise", name=name, training=replace(recipe, epochs=20, optim=optim),
    checkpoint_every=8, log_every=1, max_failures=9,
)
given = json.loads(where)
if "ray_config" in given:
    given["ray_config"] = Path(given["ray_config"])
where = Where(**given)
pretrain(config, Context(Workspace.at(location), where, console=Console(file=sys.stderr)))
"""


def config_of(name: str) -> PretrainJobConfig:
    return PretrainJobConfig(
        corpus="noise",
        name=name,
        training=replace(TINY, epochs=NUM_EPOCHS, optim=OPTIM),
        checkpoint_every=EVERY,
        log_every=1,
        max_failures=9,
    )


def context_at(folder: Path) -> Context:
    return Context(Workspace.at(folder), console=Console(file=io.StringIO()))


def with_profile(context: Context, folder: Path, **profile: int) -> Context:
    text = yaml.safe_dump({"metadata": {"lookalike": {"profiles": {"test": profile}}}})
    (folder / "where.yaml").write_text(text)
    return replace(context, where=Where(profile="test", ray_config=folder / "where.yaml"))


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory, local_ray: Any) -> Path:
    """A workspace with pictures of noise, and a run ``calm`` that nothing disturbed."""
    folder = tmp_path_factory.mktemp("kill")
    (folder / "pictures").mkdir()
    generator = np.random.default_rng(0)
    for number in range(40):
        pixels = generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number:02d}.png")
    context = context_at(folder / "workspace")
    scan(ScanConfig(source=str(folder / "pictures"), corpus="noise"), context)
    rank = SimpleNamespace(get_world_rank=lambda: 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray.train, "get_context", lambda: rank)
        patch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
        patch.setattr(pretrain_job, "fit", lambda plan, *_, **__: train_worker({"plan": plan}))
        pretrain(config_of("calm"), context)
    return folder / "workspace"


@pytest.fixture
def context(scanned: Path, tmp_path: Path) -> Context:
    shutil.copytree(scanned, tmp_path / "workspace")
    return context_at(tmp_path / "workspace")


def weights(context: Context, name: str) -> np.ndarray:
    state = context.workspace.open_encoder(name).backbone.state_dict()
    return np.concatenate([state[key].double().numpy().ravel() for key in sorted(state)])


def distance(context: Context, name: str, other: str) -> float:
    expected = weights(context, other)
    found = np.linalg.norm(weights(context, name) - expected) / np.linalg.norm(expected)
    return float(found)


def newest_step(folder: Folder) -> int:
    lines = read_metrics(folder) if folder.exists() else []
    return int(lines[-1]["step"]) if lines else 0


def is_saving(folder: Folder) -> bool:
    """Whether a checkpoint is under way: a folder without its door."""
    checkpoints = folder / "checkpoints"
    return any(not checkpoints.exists(f"{name}/checkpoint.json") for name in checkpoints.names())


def until(
    condition: Callable[[], bool], what: str, driver: subprocess.Popen[str] | None = None
) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if driver is not None and driver.poll() is not None:
            raise AssertionError(f"{what}: the driver ended: {driver.communicate()[1]}")
        assert time.monotonic() < deadline, f"{what}: waited {WAIT_S} s"
        time.sleep(0.002)


Kill = Callable[[int, random.Random], None]


@pytest.fixture
def kill_a_worker(processes_below: Any) -> Kill:
    """Kills one of the workers below a process, if there is one yet."""

    def kill(ancestor: int, dice: random.Random) -> None:
        workers = processes_below(ancestor, "RayTrainWorker")
        for pid in dice.sample(workers, min(1, len(workers))):
            os.kill(pid, signal.SIGKILL)

    return kill


def assert_little_was_lost(folder: Folder, num_kills: int) -> None:
    attempts = read_run(folder)["attempts"]
    assert len(attempts) >= 2, "no kill came in time"
    assert len(attempts) <= num_kills + 1
    assert max(attempt["lost_steps"] for attempt in attempts) <= EVERY
    steps = [line["step"] for line in read_metrics(folder)]
    assert steps == sorted(set(steps))


def test_a_worker_killed_in_mid_save_and_at_random_costs_an_interval_and_no_bit(
    context: Context, kill_a_worker: Kill
) -> None:
    folder = context.workspace.folder("runs", "killed")
    dice = random.Random(0)

    def kill_twice() -> None:
        until(lambda: newest_step(folder) > EVERY and is_saving(folder), "a save")
        kill_a_worker(os.getpid(), dice)
        begun = len(read_run(folder)["attempts"])
        until(lambda: len(read_run(folder)["attempts"]) > begun, "the next attempt")
        target = newest_step(folder) + dice.randint(1, 3 * EVERY)
        until(lambda: newest_step(folder) >= target, "progress")
        kill_a_worker(os.getpid(), dice)

    killer = threading.Thread(target=kill_twice)
    killer.start()
    report = pretrain(config_of("killed"), context)
    killer.join()
    assert report["steps"] == NUM_STEPS
    assert_little_was_lost(folder, num_kills=2)
    np.testing.assert_array_equal(weights(context, "killed"), weights(context, "calm"))


def test_two_of_three_workers_train_where_a_batch_divides_among_two(
    context: Context, tmp_path: Path
) -> None:
    elastic = with_profile(context, tmp_path, num_workers=3, min_workers=1, cpus_per_worker=1)
    pretrain(config_of("two"), elastic)
    (attempt,) = read_run(context.workspace.folder("runs", "two"))["attempts"]
    assert (attempt["workers"], attempt["waiting"]) == (2, 1)
    assert distance(context, "two", "calm") < TOLERANCE


@pytest.fixture
def start_driver(context: Context) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    drivers = []

    def start(name: str, **where: Any) -> subprocess.Popen[str]:
        arguments = [context.workspace.location, name, json.dumps(where)]
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, *arguments],
            cwd=CHECKOUT,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        drivers.append(driver)
        return driver

    yield start
    for driver in drivers:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
        driver.communicate()


def test_ctrl_c_ends_the_workers_at_a_step_with_an_encoder(context: Context) -> None:
    folder = context.workspace.folder("runs", "asked")

    def interrupt() -> None:
        until(lambda: newest_step(folder) > 3, "progress")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(PretrainingCancelled, match="the encoder so far is published"):
        pretrain(config_of("asked"), context)
    thread.join()
    assert read_run(folder)["state"] == "cancelled"
    door = open_door(context.workspace.folder("encoders", "asked"), "encoder", door="card.json")
    assert 3 < door["training"]["steps"] == newest_step(folder) < NUM_STEPS


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_leaves_an_encoder_and_the_run_goes_on_to_the_same_bits(
    context: Context, start_driver: Callable[..., subprocess.Popen[str]]
) -> None:
    """It reaches every process of the terminal's group, Ray's too."""
    folder = context.workspace.folder("runs", "asked")
    driver = start_driver("asked")
    until(lambda: newest_step(folder) > 3, "progress", driver)
    os.killpg(driver.pid, signal.SIGINT)
    _, said = driver.communicate(timeout=WAIT_S)
    run = read_run(folder)
    assert run["state"] == "cancelled", said
    assert "Ctrl-C again ends at once" in said
    assert "PretrainingCancelled: Stopped after step" in said
    door = open_door(context.workspace.folder("encoders", "asked"), "encoder", door="card.json")
    assert door["training"]["steps"] == newest_step(folder) < NUM_STEPS
    context.workspace.open_encoder("asked")
    report = pretrain(config_of("asked"), context)
    assert report["resumed_at"] == door["training"]["steps"]
    assert [attempt["lost_steps"] for attempt in read_run(folder)["attempts"]] == [0, 0]
    np.testing.assert_array_equal(weights(context, "asked"), weights(context, "calm"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_kills_of_workers_and_drivers_at_random_moments_cost_no_bit(
    context: Context,
    start_driver: Callable[..., subprocess.Popen[str]],
    kill_a_worker: Kill,
    seed: int,
) -> None:
    folder = context.workspace.folder("runs", "killed")
    dice = random.Random(seed)
    for _ in range(3):
        driver = start_driver("killed")
        for kill in (
            lambda driver=driver: kill_a_worker(driver.pid, dice),
            lambda driver=driver: os.killpg(driver.pid, signal.SIGKILL),
        ):
            before = newest_step(folder)
            begun = len(read_run(folder).get("attempts", []))
            until(
                lambda begun=begun: len(read_run(folder).get("attempts", [])) > begun,
                "the next attempt",
                driver,
            )
            target = before + dice.randint(1, 12)
            in_save = dice.random() < 0.5
            until(
                lambda target=target, in_save=in_save: (
                    newest_step(folder) >= min(target, 80) and (is_saving(folder) or not in_save)
                ),
                "progress",
                driver,
            )
            kill()
        driver.wait()
    pretrain(config_of("killed"), context)
    assert_little_was_lost(folder, num_kills=6)
    np.testing.assert_array_equal(weights(context, "killed"), weights(context, "calm"))


@pytest.mark.slow
@pytest.mark.parametrize("least", [1, 0], ids=["elastic", "fixed"])
def test_a_run_that_loses_a_node_goes_on_at_the_exact_step(
    context: Context,
    tmp_path: Path,
    start_nodes: Any,
    start_driver: Callable[..., subprocess.Popen[str]],
    least: int,
) -> None:
    """Elastic, with the worker that is left; otherwise when there is a node again."""
    placed = with_profile(
        context, tmp_path, num_workers=2, min_workers=least, cpus_per_worker=2, cpus_per_actor=1
    )
    where = {"profile": "test", "ray_config": str(placed.where.ray_config)}
    folder = context.workspace.folder("runs", "lost")
    nodes = start_nodes(head_cpus=0, node_cpus=2)
    driver = start_driver("lost", address=nodes.address, **where)
    until(lambda: newest_step(folder) > 2 * EVERY, "progress on two nodes", driver)
    nodes.lose()
    if not least:
        nodes.add()
    _, said = driver.communicate(timeout=WAIT_S)
    assert driver.returncode == 0, said
    attempts = read_run(folder)["attempts"]
    assert [attempt["workers"] for attempt in attempts] == [2, 1 if least else 2]
    assert attempts[1]["resumed_at"] > 0
    assert_little_was_lost(folder, num_kills=1)
    assert distance(context, "lost", "calm") < TOLERANCE
