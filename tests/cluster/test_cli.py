"""The command line as a newcomer and as a script meet it."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.cli import VERBS, main
from cluster.where import CHECKOUT


def test_help_lists_every_verb_without_importing_anything_heavy() -> None:
    heavy = "torch ray faiss gradio pyarrow tyro rich"
    code = (
        "import sys; from cluster.cli import main; main(['--help']);"
        f"sys.exit(' '.join(set(sys.modules) & set('{heavy}'.split())))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert ended.stderr.strip() == ""
    assert all(f"  {name} " in ended.stdout for name in VERBS)


@pytest.mark.bench
def test_help_answers_within_half_a_second() -> None:
    started_s = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "cluster", "--help"], cwd=CHECKOUT, capture_output=True, check=True
    )
    assert time.monotonic() - started_s < 0.5


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_every_field(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "--workspace" in shown
    assert "--json" in shown
    config = getattr(importlib.import_module(VERBS[verb].module), VERBS[verb].config)
    for field in dataclasses.fields(config):
        nested = dataclasses.is_dataclass(field.default_factory)
        name = field.name.replace("_", "-")
        assert nested or re.search(rf"-{name}\b|\b{name.upper()}\b|PICTURE", shown), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seek"], "'seek' is not a verb. Verbs: scan, pretrain"),
        (["pretrain", "simclr-smal"], "Did you mean 'simclr-small'?"),
        (["scan", ".", "--corpus", "a", "--lables", "folder"], "--labels"),
        (["scan", ".", "--corpus", "../a"], "corpus '../a'"),
        (["embed", "--corpus", "a"], "--encoder"),
        (["index", "--corpus", "a", "--encoder", "b", "--target-recall", "2"], "target_recall"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_is_allowed(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: object = main(arguments)
    except SystemExit as ended:
        status = ended.code
    captured = capsys.readouterr()
    assert status == 2
    assert message in captured.err + captured.out


def test_a_failure_exits_with_1_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = ["--workspace", str(tmp_path / "w")]
    assert main(["scan", str(tmp_path / "missing"), "--corpus", "a", *workspace]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_missing_artefact_names_what_exists_and_how_to_make_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["embed", "--corpus", "a", "--encoder", "b", "--workspace", str(tmp_path)]) == 1
    assert "Existing: none. Make it: lookalike scan FOLDER --corpus a" in capsys.readouterr().err


def test_json_is_the_only_thing_on_stdout(
    tmp_path: Path, pictures: object, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pictures(3)  # type: ignore[operator]
    workspace = ["--workspace", str(tmp_path / "w")]
    assert main(["scan", str(folder), "--corpus", "a", *workspace, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == {"total": 3, "ok": 3}


def test_a_read_only_workspace_is_a_plain_error(
    tmp_path: Path, pictures: object, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pictures(3)  # type: ignore[operator]
    blocked = tmp_path / "file"
    blocked.write_text("in the way of a folder")
    assert main(["scan", str(folder), "--corpus", "a", "--workspace", str(blocked)]) == 1
    assert capsys.readouterr().err.startswith("error: ")
