"""What workers of Ray Train are given; what they do is tested where it is used."""

from __future__ import annotations

import io
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from cluster import ray_train
from cluster.context import Context
from cluster.ray_train import fit
from cluster.workspace import Workspace


@pytest.mark.ray
def test_a_wish_to_stop_before_any_worker_trains_waits_for_none(
    tmp_path: Path, local_ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait_for_room(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(ray_train, "run_workers", wait_for_room)
    context = Context(Workspace.at(tmp_path), console=Console(file=io.StringIO()))
    plan: Any = SimpleNamespace(name="run")
    with pytest.raises(KeyboardInterrupt, match="before training began"):
        fit(plan, context, num_steps=1, max_failures=0)
