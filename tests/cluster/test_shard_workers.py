"""Workers of shards that take long, or die before they have begun."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.context import Context
from cluster.decode_limit import DecodeLimit
from cluster.plan import Shard, ShardRow, write_plan
from cluster.shard_actor import ShardActor, ShardError
from cluster.shard_job import ShardJob
from cluster.workspace import Workspace

SHARD = Shard.of(0, "k", [ShardRow(0, "a.png", 1, 1)])
RECORD = {"rows": 1, "ok": 1, "failed": {}, "files": {}}


@pytest.fixture
def context(tmp_path: Path, quiet: Any) -> Context:
    made: Context = quiet(Workspace.at(tmp_path / "workspace"))
    return made


def test_a_worker_that_dies_three_times_before_it_has_begun_is_not_started_again(
    context: Context,
) -> None:
    folder = context.workspace.folder("pixels", "mine")
    plan = write_plan(folder, [SHARD])

    class DiedError(BaseException):
        pass

    def load() -> Any:
        raise DiedError

    def start() -> dict[str, Any]:
        actor = ShardActor(context.workspace.location, folder.path, load, {})
        return dict(json.loads(actor.do(plan, 0, 0)))

    for _ in range(3):
        with pytest.raises(DiedError):
            start()
    assert "its worker died 3 times as it started" in start()["error"]


@pytest.mark.ray
def test_the_job_ends_when_workers_die_before_they_have_begun(
    context: Context, local_ray: Any
) -> None:
    class Deadly:
        def __init__(self, **_: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    folder = context.workspace.folder("pixels", "mine")
    job = ShardJob("pixels", folder, [SHARD], Deadly, {}, 0.5)  # type: ignore[arg-type]
    with pytest.raises(ShardError, match="died 3 times as it started"):
        job.run(context)


@pytest.mark.ray
def test_a_shard_takes_as_long_as_it_takes(
    context: Context, local_ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.data import DataContext

    class Slow:
        def __init__(self, **_: Any) -> None:
            self.limit = DecodeLimit()

        def __call__(self, *_: Any) -> dict[str, Any]:
            time.sleep(8)
            return RECORD

    monkeypatch.setattr(DataContext.get_current(), "execution_no_progress_timeout_s", 4)
    folder = context.workspace.folder("pixels", "mine")
    (record,) = ShardJob("pixels", folder, [SHARD], Slow, {}, 0.5).run(context)
    assert record["ok"] == 1


def test_a_run_that_fails_leaves_no_plan_and_the_next_clears_what_a_kill_left(
    context: Context, shards_here: str
) -> None:
    folder = context.workspace.folder("pixels", "mine")
    home = folder / "shards"
    seen: list[str] = []

    class Failing:
        def __init__(self, **_: Any) -> None:
            self.limit = DecodeLimit()

        def __call__(self, *_: Any) -> dict[str, Any]:
            seen.extend(home.names())
            raise ValueError("cannot be done")

    left = ["plan-0123456789ab-ff.arrow", "00000-a-b.attempts", "00000-a-b.starts"]
    for name in [*left, "00000-a-b.parquet"]:
        home.write_atomic(name, b"1")
    job = ShardJob("pixels", folder, [SHARD], Failing, {}, 0.5)
    with pytest.raises(ShardError, match="cannot be done"):
        job.run(context)
    assert not set(left) & set(seen)
    assert "00000-a-b.parquet" in seen
    assert not [name for name in home.names() if name.startswith("plan-")]
