"""Shards with failed pictures done again: killed on the way, nothing that is done is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.context import Context
from cluster.embed_job import EmbedConfig, embed
from cluster.embed_work import EmbedWork
from cluster.plan import Shard
from cluster.retry import RETRY
from cluster.scan_job import ScanConfig, scan
from cluster.workspace import Workspace
from index.folder import Folder

pytestmark = pytest.mark.usefixtures("no_fsync", "shards_here")

ALL = EmbedConfig(corpus="mine", encoder="tiny", shard_rows=4, name="set", error_budget=0.5)
RETRY_FAILED = replace(ALL, retry_failed=True)


@pytest.fixture
def context(tmp_path: Path, pictures: Any, make_encoder: Any, quiet: Any) -> Context:
    """Sixteen pictures in four shards, all embedded; the first of each but the last is broken."""
    folder = pictures(16, size=16, formats=("png",))
    context: Context = quiet(Workspace.at(tmp_path / "workspace"))
    for path in sorted(folder.rglob("*.png"))[:12:4]:  # ids go by name
        path.write_bytes(path.read_bytes()[:-40])
    scan(ScanConfig(source=str(folder), corpus="mine"), context)
    make_encoder(context.workspace)
    assert embed(ALL, context)["pictures"]["ok"] == 13
    return context


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the shards that work was begun on."""
    return watched(monkeypatch, lambda _: None)


def watched(monkeypatch: pytest.MonkeyPatch, happens: Callable[[list[int]], None]) -> list[int]:
    numbers: list[int] = []
    work = EmbedWork.__call__

    def noted(self: EmbedWork, shard: Shard, crashed: frozenset[int]) -> dict[str, Any]:
        numbers.append(shard.number)
        happens(numbers)
        return work(self, shard, crashed)

    monkeypatch.setattr(EmbedWork, "__call__", noted)
    return numbers


def interrupt_retry(monkeypatch: pytest.MonkeyPatch, context: Context, count: int) -> None:
    """Press Ctrl-C as it begins its ``count``-th shard."""

    def happens(numbers: list[int]) -> None:
        if len(numbers) == count:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        watched(patch, happens)
        with pytest.raises(KeyboardInterrupt):
            embed(RETRY_FAILED, context)


def shard_folder(context: Context) -> Folder:
    return context.workspace.folder("embeddings", "set") / "shards"


def test_shards_with_failed_pictures_are_done_again_once_for_each_time_they_are_asked_for(
    context: Context, begun: list[int]
) -> None:
    for _ in range(2):
        embed(RETRY_FAILED, context)
        assert begun == [0, 1, 2]
        assert not shard_folder(context).exists(RETRY)
        begun.clear()


def test_a_retry_that_was_interrupted_goes_on_where_it_was(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_retry(monkeypatch, context, 3)
    begun = watched(monkeypatch, lambda _: None)
    embed(RETRY_FAILED, context)
    assert begun == [2]


def test_a_retry_that_was_interrupted_costs_the_next_plain_run_nothing(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_retry(monkeypatch, context, 1)
    begun = watched(monkeypatch, lambda _: None)
    assert embed(ALL, context)["pictures"]["ok"] == 13
    assert begun == []


def test_a_retry_with_other_settings_begins_anew(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_retry(monkeypatch, context, 3)
    begun = watched(monkeypatch, lambda _: None)
    embed(replace(RETRY_FAILED, decode_limit_s=600), context)
    assert begun == [0, 1, 2]


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}"])
def test_a_retry_that_is_not_readable_begins_anew(
    context: Context, begun: list[int], content: bytes
) -> None:
    shard_folder(context).write_atomic(RETRY, content)
    embed(RETRY_FAILED, context)
    assert begun == [0, 1, 2]
