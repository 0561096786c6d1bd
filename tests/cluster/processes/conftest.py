"""Processes that tests kill: listed below one of ours, or a Ray of several nodes of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Protocol

import pytest

from cluster.where import CHECKOUT


def processes_below(ancestor: int, title: str = "") -> list[int]:
    """Processes that one of ours began, or that those began; not of another Ray on this machine.

    Args:
        ancestor: the one at the top, which is not listed.
        title: what their command line contains.
    """
    listed = subprocess.run(
        ["ps", "-axo", "pid=,ppid=,command="], capture_output=True, text=True, check=True
    )
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
    parents = {int(pid): int(parent) for pid, parent, *_ in rows}

    def is_below(pid: int) -> bool:
        parent = parents.get(pid)
        return parent is not None and (parent == ancestor or is_below(parent))

    return [int(row[0]) for row in rows if title in row[-1] and is_below(int(row[0]))]


ProcessesBelow = Callable[..., list[int]]


@pytest.fixture(scope="session", name="processes_below")
def provide_processes_below() -> ProcessesBelow:
    """Lists the processes that one of ours began; see the function of this name."""
    return processes_below


NODES = """
import contextlib, sys, time
import ray._private.services as services
from ray.cluster_utils import Cluster

get_node = services.get_node

def get_node_in_the_end(*given):
    # Ray waits half a minute for a node to come; on a busy machine, or one that slept, it is late.
    until_s = time.monotonic() + 300
    while time.monotonic() < until_s:
        with contextlib.suppress(RuntimeError):
            return get_node(*given)
        time.sleep(0.1)
    return get_node(*given)

services.get_node = get_node_in_the_end

scratch, head_cpus, node_cpus = sys.argv[1:]

def settings(name, cpus):
    # A folder of its own, as a machine has: for every node that joins, Ray unpacks the driver's
    # program anew, and in a shared folder takes it away from under the workers of the others.
    folder = f"{scratch}/{name}"
    return {"temp_dir": folder, "num_cpus": int(cpus), "object_store_memory": 100 << 20}

head = {**settings("head", head_cpus), "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=head)
print(cluster.address, flush=True)
nodes = {}
for number, line in enumerate(sys.stdin):
    if line.strip() == "add":
        node = cluster.add_node(wait=False, **settings(number, node_cpus))
        pid = node.all_processes["raylet"][0].process.pid
        nodes[pid] = node
        print(pid, flush=True)
    else:
        cluster.remove_node(nodes.pop(int(line)), allow_graceful=False)
        print("gone", flush=True)
cluster.shutdown()
"""


class Nodes:
    """A Ray of a head and nodes, each with a folder of its own, begun by another process.

    Args:
        scratch: where their folders are; its path has to be short, for the sockets in it.
        head_cpus: CPUs of the head, to which drivers connect.
        node_cpus: CPUs of each node.
    """

    def __init__(self, scratch: str, *, head_cpus: int, node_cpus: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", NODES, scratch, str(head_cpus), str(node_cpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        )
        self.address = self._answer()
        self._raylets: list[int] = []

    def _answer(self) -> str:
        assert self.process.stdout is not None
        said = self.process.stdout.readline().strip()
        assert said, "the process of the nodes ended"
        return said

    def _ask(self, order: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()
        return self._answer()

    def add(self) -> None:
        """Start another node, and wait for it to have joined."""
        self._raylets.append(int(self._ask("add")))

    def lose(self, *, workers_too: bool = True) -> None:
        """Kill the oldest node, which surely has work: all of it at once, as a power cut does.

        Without ``workers_too`` only its raylet, as if it were cut off: workers outlive it a while.
        """
        raylet = self._raylets.pop(0)
        for pid in [raylet, *(processes_below(raylet) if workers_too else [])]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._ask(str(raylet))

    def close(self) -> None:
        """End them all."""
        self.process.communicate(timeout=60)


class StartNodes(Protocol):
    """Starts a Ray of several nodes; see `Nodes`."""

    def __call__(self, *, head_cpus: int, node_cpus: int) -> Nodes: ...


@pytest.fixture
def start_nodes() -> Iterator[StartNodes]:
    """Starts a Ray of a head and two nodes, which ends with the test."""
    with contextlib.ExitStack() as until_end:

        def start(*, head_cpus: int, node_cpus: int) -> Nodes:
            scratch = until_end.enter_context(
                tempfile.TemporaryDirectory(prefix="nodes-", ignore_cleanup_errors=True)
            )
            nodes = Nodes(scratch, head_cpus=head_cpus, node_cpus=node_cpus)
            until_end.callback(nodes.close)
            for _ in range(2):
                nodes.add()
            return nodes

        yield start
