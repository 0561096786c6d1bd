from pathlib import Path

import pytest
from PIL import Image

from cluster.auto_recipe import choose, facts_of
from cluster.catalog import open_corpus
from cluster.cli import _parse, _recipe_config, main
from cluster.pretrain_job import PretrainJobConfig
from cluster.runlog import write_run
from cluster.workspace import Workspace
from encoders.recipes_auto import auto_config


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A corpus of 9 pictures whose shorter edges are 20, 30 and 40 px."""
    for number in range(9):
        size = (20 + 10 * (number % 3), 50)
        Image.new("RGB", size, (number, 0, 0)).save(tmp_path / f"{number}.png")
    assert main(["scan", str(tmp_path), "--corpus", "c", "--workspace", str(tmp_path / "w")]) == 0
    return Workspace.at(str(tmp_path / "w"))


def test_the_facts_are_the_catalogs(workspace: Workspace) -> None:
    assert facts_of(open_corpus(workspace, "c")) == {"num_pictures": 9, "edge": 30}
    assert choose("moco-auto-gpu", "c", "run", workspace) == auto_config("moco", 9, 30, "gpu")


def test_a_run_that_has_begun_keeps_its_settings_when_the_corpus_grows(
    workspace: Workspace,
) -> None:
    begun = {"num_pictures": 500, "edge": 64}
    write_run(workspace.folder("runs", "run"), state="running", corpus="c", corpus_facts=begun)
    assert choose("simclr-auto", "c", "run", workspace) == auto_config("simclr", 500, 64, "cpu")
    # A run of another corpus, or one from before runs knew their facts, says nothing.
    write_run(workspace.folder("runs", "other"), state="running", corpus="d", corpus_facts=begun)
    write_run(workspace.folder("runs", "early"), state="running", corpus="c")
    for run in ("other", "early"):
        assert choose("simclr-auto", "c", run, workspace) == auto_config("simclr", 9, 30, "cpu")


def test_options_take_the_place_of_what_was_chosen_and_the_reasons_are_said(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["moco-auto", "--corpus", "c", "--name", "r", "--workspace", workspace.location]
    given = [*arguments, "--epochs", "3", "--method.queue-size", "6", "--seed", "7"]
    described, rest = _recipe_config(PretrainJobConfig, given)
    config, _, _ = _parse("pretrain", described, rest)
    chosen = auto_config("moco", 9, 30, "cpu")
    assert [line.split()[0] for line in config.training.differences(chosen.config.settings())] == [
        "epochs",
        "method.queue_size",
        "seed",
    ]
    said = capsys.readouterr().err
    assert all(reason in said for reason in chosen.reasons)


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"--corpus": "d"}, 1, "lookalike scan FOLDER --corpus d"),
        ({"--corpus": "../c"}, 1, "corpus '../c'"),
        ({"--epocs": "3"}, 2, "--epochs"),
    ],
)
def test_wrong_names_and_options_are_refused_as_with_any_recipe(
    workspace: Workspace,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    status: int,
    message: str,
) -> None:
    options = {"--corpus": "c", "--name": "r", "--workspace": workspace.location} | changes
    try:
        found: object = main(["pretrain", "simclr-auto", *sum(options.items(), ())])
    except SystemExit as ended:
        found = ended.code
    said = capsys.readouterr()
    assert found == status
    assert message in said.err + said.out
