"""``--start`` on the command line: whose network, whose settings, and what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cluster.cli import _parse, _recipe_config, main
from cluster.pretrain_job import PretrainJobConfig
from cluster.runlog import write_run
from cluster.starting import load_kept_start, settle_start
from cluster.workspace import Workspace
from encoders.encoder import Encoder
from encoders.recipes import RECIPES
from encoders.recipes_auto import auto_config
from encoders.warm_start import starting_config
from index.artifact import CorruptArtifactError


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    for number in range(9):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / f"{number}.png")
    assert main(["scan", str(tmp_path), "--corpus", "c", "--workspace", str(tmp_path / "w")]) == 0
    return Workspace.at(str(tmp_path / "w"))


@pytest.fixture
def first(workspace: Workspace, make_encoder: Any) -> Encoder:
    encoder: Encoder = make_encoder(workspace, "first")
    return encoder


def config_of(workspace: Workspace, recipe: str, *options: str) -> PretrainJobConfig:
    given = [recipe, "--corpus", "c", "--name", "r", "--workspace", workspace.location, *options]
    described, rest = _recipe_config(PretrainJobConfig, given)
    config, _, _ = _parse("pretrain", described, rest)
    assert isinstance(config, PretrainJobConfig)
    return config


def test_a_recipe_takes_the_network_of_the_encoder_and_keeps_its_own_settings(
    workspace: Workspace, first: Encoder, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(workspace, "simclr-small", "--start", "first", "--epochs", "3")
    expected = starting_config(RECIPES["simclr-small"](), first)
    assert config.training.backbone == expected.backbone != RECIPES["simclr-small"]().backbone
    assert [line.split()[0] for line in config.training.differences(expected.settings())] == [
        "epochs"
    ]
    said = capsys.readouterr().err
    assert f"Starting from encoder 'first' ({first.encoder_id[:12]}) with a fresh projector" in said


def test_an_automatic_recipe_chooses_all_but_the_network(
    workspace: Workspace, first: Encoder, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(workspace, "simclr-auto", "--start=first")
    chosen = auto_config("simclr", 9, 40, "cpu")
    assert config.training == starting_config(chosen.config, first)
    said = capsys.readouterr().err
    assert said.index(chosen.reasons[-1]) < said.index("Starting from encoder 'first'")


@pytest.mark.parametrize("given", [["--start", "none"], ["--start", "../first"]])
def test_an_encoder_that_is_not_there_is_refused(
    workspace: Workspace, first: Encoder, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--corpus", "c", "--name", "r", "--workspace", workspace.location]
    assert main(["pretrain", "simclr-small", *options, *given]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_another_network_on_the_command_line_is_refused(
    workspace: Workspace, first: Encoder, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(workspace, "simclr-small", "--start", "first", "--backbone.name", "resnet18")
    with pytest.raises(ValueError, match=r"--start first: its network .*Leave --backbone"):
        settle_start(workspace, "r", config.training, "first")


def test_the_kept_encoder_is_read_even_when_the_first_is_gone_and_checked(
    workspace: Workspace, first: Encoder
) -> None:
    config = config_of(workspace, "simclr-small", "--start", "first")
    encoder_id = settle_start(workspace, "r", config.training, "first")
    assert encoder_id == first.encoder_id
    folder = workspace.folder("runs", "r")
    write_run(folder, state="failed", start={"encoder": "first", "encoder_id": encoder_id})
    home = workspace.folder("encoders", "first")
    home.fs.delete_dir(home.path)
    assert config_of(workspace, "simclr-small", "--start", "first").training == config.training
    assert settle_start(workspace, "r", config.training, "first") == encoder_id
    with pytest.raises(CorruptArtifactError, match=r"holds encoder .* began from 000"):
        load_kept_start(folder, "0" * 64)
