"""Exactly once: whatever is killed at whatever moment, an embedding set is that of a clean run.

``LOOKALIKE_KILLS`` and ``LOOKALIKE_KILL_SEED`` set how many kills, and which; with
``--log-cli-level=INFO`` pytest says how it goes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.context import Context
from cluster.scan_job import ScanConfig, scan
from cluster.where import CHECKOUT
from cluster.workspace import Workspace
from index.embeddings import EmbeddingStore

logger = logging.getLogger(__name__)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600)]

NUM_KILLS = int(os.environ.get("LOOKALIKE_KILLS", "50"))
SEED = int(os.environ.get("LOOKALIKE_KILL_SEED", "0"))
NUM_PICTURES, SHARD_ROWS, EDGE = 120, 2, 400
WAIT_S = 300.0
NODES = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(
    initialize_head=True,
    head_node_args={"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False},
)
add = lambda: cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
nodes = [add(), add()]
print(cluster.address, flush=True)
for line in sys.stdin:
    # The oldest goes: the youngest may not have been given any work yet.
    cluster.remove_node(nodes.pop(0), allow_graceful=False)
    nodes.append(add())
    print("done", flush=True)
cluster.shutdown()
"""
PROFILE = """
metadata:
  lookalike:
    profiles:
      nodes: {cpus_per_worker: 1, embed_actors: 2, cpus_per_actor: 1}
"""


class Nodes:
    """A head and two nodes of one CPU each, in a process of their own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", NODES],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()

    def replace_one(self) -> None:
        """Kill a node as a power cut does, and add another."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("replace\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == "done"


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    made = Nodes()
    yield made
    made.process.communicate(timeout=60)


@pytest.fixture
def context(tmp_path: Path, pictures: Any, make_encoder: Any) -> Context:
    context = Context(Workspace.at(tmp_path / "workspace"), console=Console(file=io.StringIO()))
    folder = pictures(NUM_PICTURES, size=EDGE, formats=("png",))
    scan(ScanConfig(source=str(folder), corpus="digits"), context)
    make_encoder(context.workspace)
    return context


def multiset(workspace: Workspace, name: str) -> Counter[tuple[int, str]]:
    """Every id with its vector's hash, as often as it is there; nothing else lies beside them."""
    store = EmbeddingStore.open(workspace.folder("embeddings", name))
    records = {f"{shard['name']}.json" for shard in store.door["shards"]}
    data = {Path(file).name for file in store.door["files"]}
    assert set((store.folder / "shards").names()) == records | data
    return Counter(
        (int(number), hashlib.sha256(vector.tobytes()).hexdigest())
        for ids, batch in store.iter_stored()
        for number, vector in zip(ids, batch, strict=True)
    )


def actors_below(ancestor: int) -> list[int]:
    """Processes that do shards, started by one of ours and not by another Ray on this machine."""
    listed = subprocess.run(
        ["ps", "-axo", "pid=,ppid=,command="], capture_output=True, text=True, check=True
    )
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
    parents = {int(pid): int(parent) for pid, parent, *_ in rows}

    def is_ours(pid: int) -> bool:
        return pid == ancestor or (pid in parents and is_ours(parents[pid]))

    return [int(row[0]) for row in rows if "ShardActor" in row[-1] and is_ours(int(row[0]))]


class Driver:
    """The verb in a process of its own, which may be killed and begun anew."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self.process = self._begin()

    def _begin(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command,
            cwd=CHECKOUT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    @property
    def is_done(self) -> bool:
        """Whether it has ended by itself; it must end well."""
        if self.process.poll() is None:
            return False
        _, said = self.process.communicate()
        assert self.process.returncode == 0, said
        return True

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def kill_and_begin(self) -> None:
        self.kill()
        self.process = self._begin()


def strike(kind: str, driver: Driver, nodes: Nodes, dice: random.Random) -> bool:
    """Kill one of a kind, if there is one."""
    if kind == "driver":
        driver.kill_and_begin()
        return True
    if kind == "node":
        nodes.replace_one()
        return True
    actors = actors_below(nodes.process.pid)
    if actors:
        with contextlib.suppress(ProcessLookupError):
            os.kill(dice.choice(actors), signal.SIGKILL)
    return bool(actors)


def progress(workspace: Workspace, name: str) -> int:
    """Shards that are committed."""
    folder = workspace.folder("embeddings", name) / "shards"
    return sum(file.endswith(".json") for file in folder.names())


def test_after_many_random_kills_every_set_is_that_of_a_clean_run(
    context: Context, nodes: Nodes, tmp_path: Path
) -> None:
    logger.info("seed %d, %d kills", SEED, NUM_KILLS)
    workspace, dice = context.workspace, random.Random(SEED)
    (tmp_path / "where.yaml").write_text(PROFILE)
    line = f"embed --corpus digits --encoder tiny --shard-rows {SHARD_ROWS} --json --profile nodes"
    command = [sys.executable, "-m", "cluster", *line.split(), "--workspace", workspace.location]
    command += ["--ray-config", str(tmp_path / "where.yaml"), "--address", nodes.address, "--name"]
    clean = subprocess.run(
        [*command, "clean"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert clean.returncode == 0, clean.stderr
    assert json.loads(clean.stdout)["pictures"] == {"ok": NUM_PICTURES}
    expected = multiset(workspace, "clean")
    assert len(expected) == NUM_PICTURES
    kills: Counter[str] = Counter()
    num_sets = 0
    while kills.total() < NUM_KILLS:
        name = f"set-{num_sets}"
        driver = Driver([*command, name])
        try:
            _fight(driver, nodes, workspace, name, dice, kills)
        finally:
            driver.kill()
        assert multiset(workspace, name) == expected, f"{name}, seed {SEED}, after {kills}"
        num_sets += 1
    logger.info("%d kills, %s, over %d sets", kills.total(), dict(kills), num_sets)


def _fight(
    driver: Driver,
    nodes: Nodes,
    workspace: Workspace,
    name: str,
    dice: random.Random,
    kills: Counter[str],
) -> None:
    """Kill, at random moments, until enough was killed; then wait for the set to be whole."""
    until_s = time.monotonic() + WAIT_S
    while not driver.is_done:
        assert time.monotonic() < until_s, f"{name}: no end, seed {SEED}, after {kills}"
        if kills.total() >= NUM_KILLS:
            time.sleep(0.2)
            continue
        # Some strikes hit the start of Ray or of an actor; most are to hit shards.
        target = progress(workspace, name) + dice.randint(0, 5)
        wait_s = time.monotonic() + 60
        while time.monotonic() < wait_s and progress(workspace, name) < target:
            if driver.process.poll() is not None:
                break
            time.sleep(0.01)
        time.sleep(dice.uniform(0.0, 0.2))
        kind = dice.choice(["driver", "actor", "actor", "node"])
        if driver.process.poll() is None and strike(kind, driver, nodes, dice):
            kills[kind] += 1
            until_s = time.monotonic() + WAIT_S
            done = progress(workspace, name)
            logger.info("kill %d: %s, with %d shards of %s done", kills.total(), kind, done, name)
