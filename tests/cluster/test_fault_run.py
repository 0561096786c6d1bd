"""A run's folder and the encoder it makes: killed at every step, every file damaged."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.checkpoints import Checkpoint, load_newest_checkpoint, save_checkpoint
from cluster.pulse import ask_to_stop, read_pulse, stop_reason
from cluster.runlog import MetricsLog, read_metrics, read_run, write_run
from cluster.workspace import Workspace
from index.artifact import CorruptArtifactError
from index.folder import Folder
from index.sealed import write_sealed

pytestmark = pytest.mark.usefixtures("no_fsync")

TRAIN = """
    import torch

    from cluster.checkpoints import Checkpoint, save_checkpoint
    from cluster.runlog import write_run
    from cluster.workspace import Workspace
    from encoders.backbone import BackboneConfig
    from encoders.encoder import Encoder, EncoderConfig
    from encoders.heads import ProjectorConfig
    from encoders.preprocess import PreprocessConfig

    torch.set_num_threads(1)

    def run(home):
        workspace = Workspace.at(home)
        folder = workspace.folder("runs", "mine")
        write_run(folder, state="running")
        state = {"weights": torch.full((3,), 20.0), "step": 20}
        save_checkpoint(folder, Checkpoint(step=20, config_id="config", state=state), keep=1)
        config = EncoderConfig(
            backbone=BackboneConfig(widths=(4, 8, 16)),
            projector=ProjectorConfig(hidden_dim=8, output_dim=8),
            preprocess=PreprocessConfig(size=16),
        )
        workspace.publish_encoder("tiny", Encoder.initialise(config, seed=1), {"versions": {}})
        write_run(folder, state="done")
"""
LOG = """
    from cluster.runlog import MetricsLog
    from index.artifact import CorruptArtifactError
    from index.folder import Folder

    def run(home):
        log = MetricsLog(Folder.at(home), resume_step=2)
        for step in (3, 4):
            log.append({"step": step, "loss": step / 7})
        log.close(done=True)
"""
LINES = [{"step": step, "loss": step / 7} for step in range(1, 5)]


@pytest.fixture
def home(tmp_path: Path, make_encoder: Any) -> Path:
    """A workspace with an encoder and a run that has a checkpoint of step 10."""
    workspace = Workspace.at(tmp_path / "workspace")
    make_encoder(workspace)
    folder = workspace.folder("runs", "mine")
    write_run(folder, state="stopped", num_steps=20)
    state = {"weights": torch.full((3,), 10.0), "step": 10}
    save_checkpoint(folder, Checkpoint(step=10, config_id="config", state=state))
    return tmp_path / "workspace"


def newest(folder: Folder) -> int:
    found = load_newest_checkpoint(folder, "config")
    assert found is not None
    assert torch.equal(found["weights"], torch.full((3,), float(found["step"])))
    return int(found["step"])


def encoder_id(home: Path) -> str:
    return Workspace.at(home).open_encoder("tiny").encoder_id


@pytest.mark.slow
def test_a_killed_run_keeps_a_state_a_checkpoint_and_an_encoder(home: Path, forge: Any) -> None:
    before = encoder_id(home)
    whole = shutil.copytree(home, home.with_name("whole"))
    assert forge.run(TRAIN, whole)["ended"] == "done"
    after = encoder_id(whole)
    assert after != before

    def check(home: Path, is_done: bool) -> None:
        folder = Workspace.at(home).folder("runs", "mine")
        run = read_run(folder)
        assert run["num_steps"] == 20
        assert run["state"] in (["done"] if is_done else ["stopped", "running", "done"])
        assert newest(folder) in ([20] if is_done else [10, 20])
        assert encoder_id(home) in ([after] if is_done else [before, after])

    assert forge.walk(TRAIN, home, check) > 25


@pytest.mark.slow
def test_a_killed_log_holds_whole_lines_and_is_gone_on_with(tmp_path: Path, forge: Any) -> None:
    home = tmp_path / "run"
    log = MetricsLog(Folder.at(home), resume_step=0)
    for line in LINES[:3]:
        log.append(line)

    def check(home: Path, is_done: bool) -> None:
        found = read_metrics(Folder.at(home))
        assert found in ([LINES] if is_done else [LINES[:2], LINES[:3], LINES])

    assert forge.walk(LOG, home, check, full=False) >= 4


def test_all_damage_to_an_encoder_is_noticed(home: Path, assert_noticed: Any) -> None:
    assert len(assert_noticed(home / "encoders" / "tiny", lambda: encoder_id(home))) == 3


def test_damage_to_a_run_is_an_error(home: Path, every_damage: Any) -> None:
    folder = Workspace.at(home).folder("runs", "mine")
    oracle = read_run(folder)
    refused = 0
    for path, damage in every_damage(home / "runs" / "mine", removed=False):
        if path.name != "run.json":
            continue
        try:
            found = read_run(folder)
        except CorruptArtifactError as error:
            refused += "move the run's folder away" in str(error)
            continue
        # What turned the seal's own name into another changed no value.
        assert {name: found.get(name) for name in oracle} == oracle, damage
    assert refused >= 12


def test_damage_to_metrics_costs_single_lines(home: Path, every_damage: Any) -> None:
    folder = Folder.at(home.with_name("logged"))
    log = MetricsLog(folder, resume_step=0)
    for line in LINES:
        log.append(line)
    lengths = set()
    for _, damage in every_damage(folder.local_path(), removed=False):
        found = [{name: line.get(name) for name in LINES[0]} for line in read_metrics(folder)]
        assert all(line in LINES for line in found), damage
        lengths.add(len(found))
    assert lengths >= {0, 2, 3}


def test_a_damaged_pulse_or_wish_is_none(home: Path, every_damage: Any) -> None:
    folder = Folder.at(home.with_name("beating"))
    ask_to_stop(folder, "somebody pressed Ctrl-C")
    write_sealed(folder, "pulse.json", {"step": 17, "seconds": 2.5})
    for _, damage in every_damage(folder.local_path()):
        assert read_pulse(folder) in ((17, 2.5), (0, 0.0)), damage
        assert stop_reason(folder) in ("somebody pressed Ctrl-C", None), damage


def test_damage_to_a_checkpoint_costs_only_that(home: Path, every_damage: Any) -> None:
    folder = Workspace.at(home).folder("runs", "mine")
    state = {"weights": torch.full((3,), 20.0), "step": 20}
    save_checkpoint(folder, Checkpoint(step=20, config_id="config", state=state))
    found = set()
    for path, damage in every_damage(home / "runs/mine/checkpoints/step-000000020"):
        found.add((path.name, newest(folder)))
        assert found <= {(name, step) for name, _ in found for step in (10, 20)}, damage
    assert {("checkpoint.json", 10), ("state.pt", 10)} <= found
