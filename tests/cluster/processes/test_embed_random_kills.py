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
from collections.abc import Callable
from dataclasses import dataclass, field
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
KINDS = ("driver", "actor", "actor", "node", "raylet")
"""A node loses its power; a raylet dies alone, so that its actors work on for a while."""
NUM_ORIGINALS, NUM_PICTURES, SHARD_ROWS, EDGE = 120, 3000, 8, 400
"""So many that a set takes more kills than one."""
MOST_SHARDS = 10
IN_WORK = 0.9
"""Share of the strikes that wait for a shard to be under work; others may hit a start of Ray."""
WAIT_S = 900.0
PROFILE = """
metadata:
  lookalike:
    profiles:
      nodes: {cpus_per_worker: 1, embed_actors: 2, cpus_per_actor: 1}
"""


@pytest.fixture
def context(tmp_path: Path, pictures: Any, make_encoder: Any) -> Context:
    """A corpus in which each of some pictures has many names, and so many ids."""
    context = Context(Workspace.at(tmp_path / "workspace"), console=Console(file=io.StringIO()))
    folder = pictures(NUM_ORIGINALS, size=EDGE, formats=("png",))
    originals = sorted(folder.rglob("*.png"))
    for number in range(NUM_PICTURES - NUM_ORIGINALS):
        original = originals[number % NUM_ORIGINALS]
        original.with_stem(f"{original.stem}-{number}").hardlink_to(original)
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


@dataclass
class Strikes:
    """What was killed so far, and how often a shard was under work in that moment."""

    nodes: Any
    processes_below: Callable[..., list[int]]
    dice: random.Random = field(default_factory=lambda: random.Random(SEED))
    kills: Counter[str] = field(default_factory=Counter)
    num_in_work: int = 0

    @property
    def are_enough(self) -> bool:
        return self.kills.total() >= NUM_KILLS

    def strike(self, driver: Driver, shards: Shards) -> None:
        """Kill one of a random kind, if there is one."""
        kind = self.dice.choice(KINDS)
        in_work = shards.are_under_work()
        if kind == "driver":
            driver.kill_and_begin()
        elif kind == "actor":
            actors = self.processes_below(self.nodes.process.pid, "ShardActor")
            if not actors:
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.dice.choice(actors), signal.SIGKILL)
        else:
            self.nodes.lose(workers_too=kind == "node")
            self.nodes.add()
        self.kills[kind] += 1
        self.num_in_work += in_work
        logger.info(
            "kill %d: %s, with %d shards of %s done, one %sunder work",
            self.kills.total(),
            kind,
            shards.num_done(),
            shards.name,
            "" if in_work else "not ",
        )
        shards.begun_since_s = time.time()


class Shards:
    """The shards of a set as their files tell of them."""

    def __init__(self, workspace: Workspace, name: str) -> None:
        self.name = name
        self.begun_since_s = time.time()
        self._folder = workspace.folder("embeddings", name).local_path("shards")

    def num_done(self) -> int:
        """Shards that are committed."""
        return sum(name.endswith(".json") for name in self._names())

    def are_under_work(self) -> bool:
        """Whether an actor has begun one since the last kill, and not committed it."""
        for name in self._names():
            with contextlib.suppress(FileNotFoundError):
                if name.endswith(".attempts"):
                    begun_s = (self._folder / name).stat().st_mtime
                    if begun_s > self.begun_since_s:
                        return True
        return False

    def _names(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            return [entry.name for entry in entries]
        return []


def test_after_many_random_kills_every_set_is_that_of_a_clean_run(
    context: Context, start_nodes: Any, processes_below: Any, tmp_path: Path
) -> None:
    logger.info("seed %d, %d kills", SEED, NUM_KILLS)
    workspace, nodes = context.workspace, start_nodes(head_cpus=1, node_cpus=1)
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
    assert len({vector for _, vector in expected}) > NUM_ORIGINALS // 2
    strikes, num_sets = Strikes(nodes, processes_below), 0
    while not strikes.are_enough:
        name = f"set-{num_sets}"
        driver = Driver([*command, name])
        try:
            _fight(driver, Shards(workspace, name), strikes)
        finally:
            driver.kill()
        kills = dict(strikes.kills)
        assert multiset(workspace, name) == expected, f"{name}, seed {SEED}, after {kills}"
        num_sets += 1
    logger.info(
        "%d kills, %s, over %d sets; %d hit a shard under work",
        strikes.kills.total(),
        dict(strikes.kills),
        num_sets,
        strikes.num_in_work,
    )
    assert strikes.num_in_work > NUM_KILLS // 2


def _fight(driver: Driver, shards: Shards, strikes: Strikes) -> None:
    """Kill, at random moments, until enough was killed; then wait for the set to be whole."""
    until_s = time.monotonic() + WAIT_S
    while not driver.is_done:
        assert time.monotonic() < until_s, f"{shards.name}: no end, seed {SEED}, {strikes.kills}"
        if strikes.are_enough:
            time.sleep(0.2)
            continue
        dice, wait_s = strikes.dice, time.monotonic() + WAIT_S / 4
        target, in_work = shards.num_done() + dice.randint(0, MOST_SHARDS), dice.random() < IN_WORK
        while driver.process.poll() is None and time.monotonic() < wait_s:
            if shards.num_done() >= target and (shards.are_under_work() or not in_work):
                break
            time.sleep(0.01)
        time.sleep(dice.uniform(0.0, 0.1))
        if driver.process.poll() is None:
            strikes.strike(driver, shards)
            until_s = time.monotonic() + WAIT_S
