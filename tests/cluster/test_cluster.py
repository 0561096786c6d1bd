"""The jobs on several nodes, joined with --address."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.where import CHECKOUT

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(500)]

NODES = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(
    initialize_head=True,
    head_node_args={"num_cpus": 0, "object_store_memory": 100 << 20, "include_dashboard": False},
)
for _ in range(2):
    cluster.add_node(num_cpus=3, object_store_memory=100 << 20)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
PROFILE = """
metadata:
  lookalike:
    profiles:
      nodes: {num_workers: 2, cpus_per_worker: 1, embed_actors: 2, cpus_per_actor: 1}
"""
TINY = "--epochs 1 --batch-size 8 --backbone.widths 8 16 --projector.hidden-dim 16"


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A head without CPUs and two nodes with three each, in a process of their own."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    with subprocess.Popen(
        [sys.executable, "-c", NODES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as nodes:
        assert nodes.stdout is not None
        yield nodes.stdout.readline().strip()
        nodes.communicate(timeout=60)


def test_two_nodes_train_and_embed_what_one_machine_does(
    tmp_path: Path, pictures: Any, address: str
) -> None:
    profiles = tmp_path / "where.yaml"
    profiles.write_text(PROFILE)

    def lookalike(line: str, *more: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "cluster", *line.split(), "--json", *more]
        command += ["--workspace", str(tmp_path / "workspace")]
        ended = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        report: dict[str, Any] = json.loads(ended.stdout)
        return report

    there = ("--address", address, "--profile", "nodes", "--ray-config", str(profiles))
    lookalike(f"scan {pictures(24, size=32)} --corpus digits")
    trained = lookalike(f"pretrain simclr-small --corpus digits --name enc {TINY}", *there)
    assert trained["steps"] == 3
    embed = "embed --corpus digits --encoder enc --shard-rows 8"
    embedded = lookalike(embed, *there)
    assert embedded["pictures"] == {"ok": 24}
    here = lookalike(f"{embed} --name again")
    assert here["embeddings_id"] == embedded["embeddings_id"]
    exact = lookalike("verify exactness --workers 1 2 --steps 5", *there)
    assert exact["ok"]
