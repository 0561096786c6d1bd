"""Embedding under fire: workers and drivers killed at random, and two drivers at once."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cluster.context import Context
from cluster.embed_job import EmbedConfig, embed
from cluster.scan_job import ScanConfig, scan
from cluster.where import CHECKOUT
from cluster.workspace import Workspace
from index.embeddings import EmbeddingStore

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

ACTOR = "ShardActor"
NUM_KILLS = 8
WAIT_S = 300


def vectors(workspace: Workspace, name: str) -> list[tuple[int, bytes]]:
    """Every (id, vector) of a set, as often as it is there."""
    store = EmbeddingStore.open(workspace.folder("embeddings", name))
    return sorted(
        (int(number), np.asarray(vector).tobytes())
        for ids, batch in store.iter_stored()
        for number, vector in zip(ids, batch, strict=True)
    )


@pytest.fixture
def context(tmp_path: Path, pictures: Any, make_encoder: Any) -> Context:
    context = Context(Workspace.at(tmp_path / "workspace"), console=Console(file=io.StringIO()))
    folder = pictures(60, size=24, formats=("png",))
    scan(ScanConfig(source=str(folder), corpus="digits"), context)
    make_encoder(context.workspace)
    return context


def test_workers_that_are_killed_in_mid_shard_change_nothing(
    context: Context, processes_below: Any, local_ray: Any
) -> None:
    embed(EmbedConfig(corpus="digits", encoder="tiny", shard_rows=4, name="whole"), context)
    config = EmbedConfig(corpus="digits", encoder="tiny", shard_rows=4, name="killed")
    ended: list[dict[str, Any]] = []
    job = threading.Thread(target=lambda: ended.append(embed(config, context)))
    job.start()
    killed: set[int] = set()
    until = time.monotonic() + WAIT_S
    while len(killed) < 2 and job.is_alive() and time.monotonic() < until:
        for number in set(processes_below(os.getpid(), ACTOR)) - killed:
            os.kill(number, signal.SIGKILL)
            killed.add(number)
        time.sleep(0.05)
    job.join(WAIT_S)
    assert len(killed) == 2
    assert ended[0]["pictures"] == {"ok": 60}
    assert vectors(context.workspace, "killed") == vectors(context.workspace, "whole")


def command(workspace: Workspace, name: str) -> list[str]:
    line = f"embed --corpus digits --encoder tiny --shard-rows 1 --name {name} --json"
    location = ["--workspace", workspace.location]
    return [sys.executable, "-m", "cluster", *line.split(), *location]


def num_committed(workspace: Workspace, name: str) -> int:
    folder = workspace.folder("embeddings", name) / "shards"
    return sum(file.endswith(".json") for file in folder.names())


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_whatever_is_killed_the_vectors_are_those_of_an_unharmed_run(
    context: Context, processes_below: Any
) -> None:
    """The driver with its whole Ray; in half of the cases, workers a moment before."""
    workspace = context.workspace
    subprocess.run(command(workspace, "whole"), cwd=CHECKOUT, capture_output=True, check=True)
    rng, num_kills = random.Random(0), 0
    for _ in range(NUM_KILLS):
        with subprocess.Popen(
            command(workspace, "killed"),
            cwd=CHECKOUT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as driver:
            until_s = time.monotonic() + WAIT_S
            target = num_committed(workspace, "killed") + rng.randint(0, 5)
            while num_committed(workspace, "killed") < target or not processes_below(
                driver.pid, ACTOR
            ):
                assert time.monotonic() < until_s
                if driver.poll() is not None:
                    break
            victims = processes_below(driver.pid, ACTOR) if rng.random() < 0.5 else []
            for number in victims:
                os.kill(number, signal.SIGKILL)
            if victims:
                time.sleep(rng.uniform(0.0, 2.0))
            if driver.poll() is None:
                os.killpg(driver.pid, signal.SIGKILL)
                num_kills += 1
    assert num_kills >= NUM_KILLS // 2
    done = subprocess.run(
        command(workspace, "killed"), cwd=CHECKOUT, capture_output=True, check=True
    )
    assert json.loads(done.stdout)["pictures"] == {"ok": 60}
    assert vectors(workspace, "killed") == vectors(workspace, "whole")
    store = EmbeddingStore.open(workspace.folder("embeddings", "killed"))
    records = {f"{shard['name']}.json" for shard in store.door["shards"]}
    data = {Path(name).name for name in store.door["files"]}
    assert set((store.folder / "shards").names()) == records | data


@pytest.mark.slow
def test_two_drivers_at_once_in_a_bucket_do_no_harm(
    s3_options: str, pictures: Any, make_encoder: Any
) -> None:
    from pyarrow import fs as pafs

    store, _ = pafs.FileSystem.from_uri(f"s3://twice?{s3_options}&allow_bucket_creation=true")
    store.create_dir("twice")
    context = Context(
        Workspace.at(f"s3://twice/w?{s3_options}"), console=Console(file=io.StringIO())
    )
    folder = pictures(24, size=24, formats=("png",))
    scan(ScanConfig(source=str(folder), corpus="digits"), context)
    make_encoder(context.workspace)
    drivers = [
        subprocess.Popen(
            command(context.workspace, "both"),
            cwd=CHECKOUT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    ended = [(driver.communicate(timeout=400), driver.returncode) for driver in drivers]
    assert [code for _, code in ended] == [0, 0], ended
    both = vectors(context.workspace, "both")
    assert [number for number, _ in both] == list(range(24))
    again = subprocess.run(
        command(context.workspace, "alone"), cwd=CHECKOUT, capture_output=True, check=True
    )
    assert json.loads(again.stdout)["pictures"] == {"ok": 24}
    assert vectors(context.workspace, "alone") == both
