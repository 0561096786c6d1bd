"""The jobs on several nodes, joined with --address."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.where import CHECKOUT

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(500)]

PROFILE = """
metadata:
  lookalike:
    profiles:
      nodes: {num_workers: 2, cpus_per_worker: 1, embed_actors: 2, cpus_per_actor: 1}
"""
TINY = "--epochs 1 --batch-size 8 --backbone.widths 8 16 --projector.hidden-dim 16"


def test_two_nodes_train_and_embed_what_one_machine_does(
    tmp_path: Path, pictures: Any, start_nodes: Any
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

    address = start_nodes(head_cpus=0, node_cpus=3).address
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
