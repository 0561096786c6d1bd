"""Checkpoints under kills, damage and full disks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
import torch

from cluster.checkpoints import (
    Checkpoint,
    host_copy,
    load_checkpoint,
    load_newest_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from index.artifact import CorruptArtifactError
from index.folder import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder.at(tmp_path / "run")


def save(folder: Folder, *steps: int, config_id: str = "config", **more: Any) -> None:
    for step in steps:
        state = {"weights": torch.full((3,), float(step)), "step": step}
        save_checkpoint(folder, Checkpoint(step=step, config_id=config_id, state=state, **more))


def newest(folder: Folder, **options: Any) -> int | None:
    loaded = load_newest_checkpoint(folder, "config", **options)
    return None if loaded is None else int(loaded["step"])


def names(folder: Folder) -> list[str]:
    return (folder / "checkpoints").names()


def test_the_newest_checkpoint_comes_back_to_the_bit(folder: Folder) -> None:
    save(folder, 10, 20)
    loaded = load_newest_checkpoint(folder, "config")
    assert loaded is not None
    assert torch.equal(loaded["weights"], torch.full((3,), 20.0))


def test_only_the_newest_checkpoints_are_kept(folder: Folder) -> None:
    save(folder, 10, 20, 30)
    assert names(folder) == ["step-000000020", "step-000000030"]


def test_the_newest_healthy_checkpoint_is_kept_beside_the_newest(folder: Folder) -> None:
    save(folder, 10, 20)
    save(folder, 30, 40, 50, healthy=False)
    assert names(folder) == ["step-000000020", "step-000000040", "step-000000050"]
    assert (newest(folder), newest(folder, healthy_only=True)) == (50, 20)
    save(folder, 60, 70)
    assert names(folder) == ["step-000000060", "step-000000070"]


def test_a_door_says_how_far_the_run_was_and_how_it_felt(folder: Folder) -> None:
    save(folder, 10, seconds=7.5, healthy=False)
    door = newest_checkpoint(folder, "config")
    assert door is not None
    assert (door["step"], door["seconds"], door["healthy"]) == (10, 7.5, False)


def test_a_checkpoint_that_a_kill_left_unpublished_is_passed_over(folder: Folder) -> None:
    save(folder, 10, 20)
    (folder / "checkpoints" / "step-000000020").remove("checkpoint.json")
    assert newest(folder) == 10


def test_what_a_kill_left_is_cleared_by_the_next_checkpoint(folder: Folder) -> None:
    save(folder, 10, 20)
    (folder / "checkpoints" / "step-000000015").make().write_atomic(".tmp-abc", b"half")
    (folder / "checkpoints" / "step-000000030").make().write_atomic("state.pt", b"half")
    save(folder, 30)
    assert names(folder) == ["step-000000020", "step-000000030"]
    assert newest(folder) == 30


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "door"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    folder: Folder, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(folder, 10, 20)
    own = folder.local_path("checkpoints/step-000000020")
    file = own / ("checkpoint.json" if damage == "door" else "state.pt")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content[:-7] if damage == "truncate" else content))
    if damage == "delete":
        file.unlink()
    assert newest(folder) == 10
    assert "is passed over" in caplog.text


def test_a_damaged_checkpoint_of_a_later_step_never_crowds_out_a_whole_one(folder: Folder) -> None:
    save(folder, 10, 90)
    folder.local_path("checkpoints/step-000000090/state.pt").write_bytes(b"x")
    save(folder, 20, 30)
    assert names(folder) == ["step-000000020", "step-000000030"]


def test_a_whole_checkpoint_is_not_written_again(folder: Folder) -> None:
    save(folder, 10)
    before = folder.local_path("checkpoints/step-000000010/state.pt").stat().st_ino
    save(folder, 10)
    assert folder.local_path("checkpoints/step-000000010/state.pt").stat().st_ino == before


def test_a_checkpoint_of_other_settings_is_neither_used_nor_counted(
    folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    save(folder, 10, 20)
    save(folder, 90, config_id="other")
    assert newest(folder) == 20
    assert "of other settings" in caplog.text
    save(folder, 30)
    assert names(folder) == [f"step-0000000{step}" for step in (20, 30, 90)]
    with pytest.raises(CorruptArtifactError, match=r"settings differ.*Run the same command again"):
        load_checkpoint(folder, "config", 90)


def test_what_changed_between_listing_and_loading_is_not_loaded(folder: Folder) -> None:
    save(folder, 10)
    file = folder.local_path("checkpoints/step-000000010/state.pt")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(CorruptArtifactError, match="sha256"):
        load_checkpoint(folder, "config", 10)


@pytest.mark.parametrize("is_local", [True, False])
def test_a_disk_that_fills_in_mid_save_leaves_the_older_checkpoints_and_no_parts(
    folder: Folder, full_disk: Any, is_local: bool
) -> None:
    if not is_local:
        folder = Folder(pafs.SubTreeFileSystem("/", pafs.LocalFileSystem()), folder.path)
    save(folder, 10)
    big = Checkpoint(step=20, config_id="config", state={"weights": torch.zeros(50_000)})
    with full_disk(20_000), pytest.raises(OSError, match=r"File too large|unexpected pos"):
        save_checkpoint(folder, big)
    assert names(folder) == ["step-000000010"]
    assert newest(folder) == 10


def test_a_host_copy_does_not_see_what_the_next_step_changes() -> None:
    module = torch.nn.BatchNorm1d(2)
    state = {"net": module.state_dict(), "list": [module.weight, 3], "text": "a"}
    copied, expected = host_copy(state), copy.deepcopy(state)
    with torch.no_grad():
        module.weight.add_(1)
        module.running_mean.add_(1)
    assert torch.equal(copied["net"]["weight"], expected["net"]["weight"])
    assert torch.equal(copied["net"]["running_mean"], torch.zeros(2))
    assert torch.equal(copied["list"][0], torch.ones(2))
    assert copied["net"]._metadata == module.state_dict()._metadata
    assert (copied["list"][1], copied["text"]) == (3, "a")


@pytest.mark.gpu
def test_a_host_copy_of_a_device_s_tensors_is_whole_and_here() -> None:
    weights = torch.arange(1 << 22, device="cuda", dtype=torch.float32)
    copied = host_copy({"weights": weights})["weights"]
    weights.zero_()
    torch.cuda.synchronize()
    assert copied.device.type == "cpu"
    assert torch.equal(copied, torch.arange(1 << 22, dtype=torch.float32))
