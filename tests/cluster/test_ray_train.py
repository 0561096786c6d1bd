"""What workers of Ray Train are given; what they do is tested where it is used."""

from __future__ import annotations

import io
import os
import signal
import threading
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
from index.folder import Folder


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


def test_progress_goes_on_after_a_request_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store out of reach for a moment, or a file that a resumed run cuts as it is read."""
    finished = threading.Event()
    answers: list[Any] = [[], OSError("Cannot seek past end of file"), [{"step": 7, "loss": 1.5}]]
    shown = []

    class Tail:
        def __init__(self, _: Any) -> None:
            pass

        def refresh(self) -> Any:
            answer = answers.pop(0)
            if not answers:
                finished.set()
            if isinstance(answer, Exception):
                raise answer
            return answer

    monkeypatch.setattr(ray_train, "MetricsTail", Tail)
    monkeypatch.setattr(ray_train, "POLL_S", 0.0)
    line = SimpleNamespace(start_at=lambda _: None, set=lambda step, _: shown.append(step))
    follow: Any = ray_train._follow
    follow(Folder.at(tmp_path), line, print, finished)
    assert shown == [7]
