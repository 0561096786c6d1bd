"""The command line as a newcomer and as a script meet it."""

from __future__ import annotations

import ast
import dataclasses
import errno
import importlib
import inspect
import itertools
import json
import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.cli import VERBS, main
from cluster.run_end import PretrainingCancelled
from cluster.where import CHECKOUT


@pytest.mark.parametrize("verb", [[], ["search"]], ids=["overview", "search"])
def test_who_stops_reading_help_gets_no_error(verb: list[str]) -> None:
    command = [sys.executable, "-m", "cluster", *verb, "--help"]
    read, write = os.pipe()
    os.close(read)  # as head does, before anything was written
    ended = subprocess.run(
        command, cwd=CHECKOUT, stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert ended.stderr == ""


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


def settings_of(config: type) -> Iterator[type]:
    """A config and the dataclasses in it."""
    yield config
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(field.default_factory):
            yield from settings_of(field.default_factory)


def documented(config: type) -> Iterator[str]:
    """The docstrings of a dataclass's own fields, as they stand in the source."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    for field, below in itertools.pairwise(node.body):
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and is_text:
            yield below.value.value


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"pretrain"}))
def test_help_flows_whatever_lines_the_source_breaks_it_into(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "4000")
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    shown = capsys.readouterr().out
    config = getattr(importlib.import_module(VERBS[verb].module), VERBS[verb].config)
    written = [" ".join(text.split()) for each in settings_of(config) for text in documented(each)]
    # Those of settings that hold others are titles, or not shown.
    explained = [text for text in written if text[:20] in shown]
    assert len(explained) > len(written) // 2
    for text in explained:
        assert text in shown, "in one line, which a narrower window wraps anew"


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
        named = rf"-{name}\b|\b{name.upper()}\b|PICTURE|\[\{{exactness"
        assert nested or re.search(named, shown), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seek"], "'seek' is not a verb. Verbs: scan, pretrain"),
        (["--workspace", "w", "scan"], "demo. Options come after the verb."),
        (["pretrain", "simclr-smal"], "Did you mean 'simclr-small'?"),
        (["scan", ".", "--corpus", "a", "--lables", "folder"], "--labels"),
        (["scan", ".", "--corpus", "../a"], "corpus '../a'"),
        (["embed", "--corpus", "a"], "--encoder"),
        (["index", "--corpus", "a", "--encoder", "b", "--target-recall", "2"], "target_recall"),
        (["versions", "--index", "a", "--rollback", "1"], "such as v000001"),
        (["versions", "--index", "a", "--keep", "3"], "Add --collect"),
        (["versions", "--index", "a", "--keep", "0", "--collect"], "at least 1"),
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


def write_profiles(folder: Path, storage: Path) -> Path:
    path = folder / "mine.yaml"
    path.write_text(f"metadata: {{lookalike: {{profiles: {{team: {{storage: '{storage}'}}}}}}}}")
    return path


NEEDS_NO_RAY = sorted(name for name, verb in VERBS.items() if not verb.uses_ray)


def test_verbs_that_need_no_ray_are_these() -> None:
    assert NEEDS_NO_RAY == [
        "classify",
        "export",
        "graph",
        "import",
        "scan",
        "search",
        "ui",
        "versions",
    ]


@pytest.mark.parametrize("verb", NEEDS_NO_RAY)
@pytest.mark.parametrize("address", [["--address", "auto"], ["--address=10.0.0.1:6379"]])
def test_an_address_is_wrong_usage_where_no_ray_is_used(
    verb: str, address: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, *address]) == 2
    said = capsys.readouterr().err
    assert f"{verb} {address[0]}: this verb uses no Ray" in said
    assert "pretrain, embed, index, remove, compact, evaluate, verify, doctor, demo" in said


@pytest.mark.parametrize("verb", sorted(set(VERBS) - set(NEEDS_NO_RAY)))
def test_an_address_is_explained_where_ray_is_used(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert "--address" in capsys.readouterr().out


def test_the_profiles_storage_is_the_workspace_unless_one_is_given(
    tmp_path: Path, pictures: object, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pictures(3)  # type: ignore[operator]
    config = write_profiles(tmp_path, tmp_path / "shared")
    given = ["--profile", "team", "--ray-config", str(config), "--json"]
    assert main(["scan", str(folder), "--corpus", "a", *given]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(tmp_path / "shared/corpora/a")
    assert main(["scan", str(folder), "--corpus", "a", *given, "--workspace", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(tmp_path / "corpora/a")


@pytest.mark.parametrize("verb", [["scan", "."], ["embed", "--encoder", "b"]])
def test_a_wrong_profile_is_refused_even_when_the_workspace_is_given(
    verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--corpus", "a", "--workspace", str(tmp_path), "--profile", "labtop"]
    assert main([*verb, *given]) == 2
    assert "Did you mean 'laptop'?" in capsys.readouterr().err


def test_a_workspace_that_is_no_uri_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan", ".", "--corpus", "a", "--workspace", "s4://key:secret@bucket"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: s4://bucket: cannot be opened")
    assert "secret" not in said


@pytest.mark.parametrize(
    ("number", "path", "words"),
    [
        (errno.EACCES, "w/corpora/a", "permissions there, or choose another --workspace."),
        (errno.EROFS, "w", "or choose another --workspace"),
        (errno.EACCES, "w-other/file", "correct the permissions there, or give another path."),
        (errno.ENOSPC, "w/corpora/a", "or choose another --workspace, and run the same command"),
        (errno.ENOSPC, None, "or choose another --workspace, and run the same command"),
        (errno.ENOSPC, "elsewhere", "free some space there and run the same command"),
        (errno.EIO, "w/corpora/a", "w/corpora/a'\n"),
    ],
)
def test_an_error_of_the_disk_speaks_of_the_workspace_only_if_it_is_there(
    number: int,
    path: str | None,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def ill(*_: object) -> None:
        raise OSError(number, os.strerror(number), *([str(tmp_path / path)] if path else []))

    monkeypatch.setattr("cluster.scan_job.scan", ill)
    assert main(["scan", ".", "--corpus", "a", "--workspace", str(tmp_path / "w")]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: [Errno {number}] {os.strerror(number)}")
    assert words in said
    assert ("--workspace" in said) == ("--workspace" in words)


def test_a_run_that_somebody_stopped_says_how_far_it_came(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cancel(*_: object) -> int:
        raise PretrainingCancelled("Stopped after step 8 of 18.")

    monkeypatch.setattr("cluster.cli._run", cancel)
    assert main(["pretrain"]) == 130
    assert capsys.readouterr().err == "Stopped after step 8 of 18.\n"


@pytest.mark.parametrize("kind", ["ray", "ours", "of another kind"])
def test_an_end_that_ray_brought_about_says_what_to_do(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from ray.exceptions import ActorDiedError, RaySystemError

    errors = {
        "ray": ActorDiedError(),
        "ours": KeyError("a bug"),
        "of another kind": RaySystemError("x"),
    }

    def fail(*_: object) -> None:
        raise errors[kind]

    monkeypatch.setattr("cluster.scan_job.scan", fail)
    command = [
        "scan",
        str(tmp_path),
        "--corpus",
        "mine",
        "--workspace",
        str(tmp_path / "workspace"),
    ]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert ("Ray lost what the work ran on (ActorDiedError: " in said) is (kind == "ray")
    assert ("run the same command to go on" in said) is (kind == "ray")
    assert ("This is not expected" in said) is (kind != "ray")
    assert "--debug" in said


@pytest.mark.parametrize("said", ["", "stopped by the job"])
def test_ctrl_c_says_what_is_kept(
    said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> int:
        raise KeyboardInterrupt(*([said] if said else []))

    monkeypatch.setattr("cluster.cli._run", stop)
    assert main(["doctor"]) == 130
    kept = "stopped. What was finished is kept; run the same command to go on."
    assert capsys.readouterr().err == f"{said or kept}\n"
