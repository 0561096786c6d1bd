"""A run's folder under kills and damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.runlog import (
    MetricsLog,
    load_newest_checkpoint,
    read_metrics,
    read_run,
    save_checkpoint,
    write_run,
)
from index.artifact import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder.at(tmp_path / "run")


def state(step: int) -> dict[str, Any]:
    return {"weights": torch.full((3,), float(step)), "step": step}


def step_of(loaded: dict[str, Any] | None) -> int | None:
    return None if loaded is None else int(loaded["step"])


def test_the_newest_checkpoint_comes_back_to_the_bit(folder: Folder) -> None:
    for step in (10, 20):
        save_checkpoint(folder, step, state(step), "config", keep=2)
    loaded = load_newest_checkpoint(folder, "config")
    assert loaded is not None
    assert torch.equal(loaded["weights"], torch.full((3,), 20.0))


def test_only_the_newest_checkpoints_are_kept(folder: Folder) -> None:
    for step in (10, 20, 30):
        save_checkpoint(folder, step, state(step), "config", keep=2)
    assert (folder / "checkpoints").names() == ["step-000000020", "step-000000030"]


def test_a_checkpoint_that_a_kill_left_unpublished_is_passed_over(folder: Folder) -> None:
    for step in (10, 20):
        save_checkpoint(folder, step, state(step), "config", keep=2)
    (folder / "checkpoints" / "step-000000020").remove("checkpoint.json")
    assert step_of(load_newest_checkpoint(folder, "config")) == 10


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    folder: Folder, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (10, 20):
        save_checkpoint(folder, step, state(step), "config", keep=2)
    file = folder.local_path("checkpoints/step-000000020/state.pt")
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content[:-7] if damage == "truncate" else content))
    if damage == "delete":
        file.unlink()
    assert step_of(load_newest_checkpoint(folder, "config")) == 10
    assert "an older checkpoint is used" in caplog.text


def test_a_checkpoint_of_another_configuration_is_not_used(folder: Folder) -> None:
    save_checkpoint(folder, 10, state(10), "config", keep=2)
    assert load_newest_checkpoint(folder, "other") is None


def test_metrics_after_the_resumed_step_are_written_only_once(folder: Folder) -> None:
    log = MetricsLog(folder, resume_step=0)
    for step in (1, 2, 3):
        log.append({"step": step, "loss": step / 10})
    MetricsLog(folder, resume_step=2).append({"step": 3, "loss": 9.0})
    assert [(line["step"], line["loss"]) for line in read_metrics(folder)] == [
        (1, 0.1),
        (2, 0.2),
        (3, 9.0),
    ]


def test_a_line_cut_short_by_a_kill_is_left_out(folder: Folder) -> None:
    MetricsLog(folder, resume_step=0).append({"step": 1, "loss": 0.5})
    with folder.local_path("metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "lo')
    assert read_metrics(folder) == [{"step": 1, "loss": 0.5}]


def test_run_fields_change_one_by_one(folder: Folder) -> None:
    assert read_run(folder) == {}
    write_run(folder, state="running", num_steps=7)
    write_run(folder, state="done")
    assert read_run(folder) == {"state": "done", "num_steps": 7}
