"""Evaluations killed at every change of the disk, on a full disk, and over damaged files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster import evaluate_job
from cluster.evaluate_job import EvaluateConfig, evaluate
from cluster.workspace import Workspace
from index.artifact import MissingArtifactError, open_door

pytestmark = pytest.mark.usefixtures("no_fsync")

CONFIG = EvaluateConfig(
    corpus="digits",
    encoder=("tiny",),
    name="mine",
    num_queries=10,
    labels_per_class=(1,),
    num_draws=2,
    knn_k=1,
)
EVALUATE = """
    import io

    import torch
    from rich.console import Console

    from cluster.context import Context
    from cluster.evaluate_job import EvaluateConfig, evaluate
    from cluster.workspace import Workspace

    torch.set_num_threads(1)

    def run(home):
        config = EvaluateConfig(
            corpus="digits", encoder=("tiny",), name="mine", num_queries=20,
            labels_per_class=(1,), num_draws=2, knn_k=1,
        )
        evaluate(config, Context(Workspace.at(home), console=Console(file=io.StringIO())))
"""


@pytest.fixture
def home(library: Any, shards_here: str) -> Path:
    """A workspace with an evaluation by ten queries, and the pixels that it needed."""
    evaluate(CONFIG, library.context)
    return Path(library.location)


def answers(home: Path) -> tuple[Any, bytes]:
    """The report and its plot."""
    folder = Workspace.at(home).folder("evaluations", "mine")
    door = open_door(folder, "evaluation")
    (plot,) = door["files"]
    return door["report"], folder.read_bytes(plot)


@pytest.mark.slow
def test_whatever_is_killed_an_old_or_new_evaluation_is_there(home: Path, forge: Any) -> None:
    before = answers(home)
    whole = shutil.copytree(home, home.with_name("whole"))
    assert forge.run(EVALUATE, whole)["ended"] == "done"
    after = answers(whole)
    assert (before[0]["num_queries"], after[0]["num_queries"]) == (10, 20)

    def check(home: Path, is_done: bool) -> None:
        assert answers(home) in ([after] if is_done else [before, after])
        names = {path.name for path in (home / "evaluations" / "mine").iterdir()}
        # The plot before the newest may still be there, and goes with the next evaluation.
        assert not is_done or len(names - {".lock", "evaluation.json"}) <= 2

    assert forge.walk(EVALUATE, home, check) > 6


@pytest.mark.slow
def test_a_first_evaluation_that_is_killed_is_there_or_not(home: Path, forge: Any) -> None:
    shutil.rmtree(home / "evaluations")
    whole = shutil.copytree(home, home.with_name("whole"))
    assert forge.run(EVALUATE, whole)["ended"] == "done"
    oracle = answers(whole)

    def check(home: Path, is_done: bool) -> None:
        try:
            assert answers(home) == oracle
        except MissingArtifactError:
            assert not is_done

    assert forge.walk(EVALUATE, home, check) > 6


def test_all_damage_is_noticed_and_mended_by_evaluating_again(
    home: Path, library: Any, assert_noticed: Any, every_damage: Any, monkeypatch: Any
) -> None:
    refused = assert_noticed(home / "evaluations" / "mine", lambda: answers(home))
    assert sorted(Path(name).suffix for name in refused) == [".json", ".svg"]
    oracle, num_measured = answers(home), [0]

    def measure(*_: Any) -> Any:
        """As was measured: to measure takes no part in what is tried."""
        num_measured[0] += 1
        return oracle[0]

    monkeypatch.setattr(evaluate_job, "_measure", measure)
    evaluate(CONFIG, library.context)
    assert num_measured == [0]
    num_damages = 0
    for path, damage in every_damage(home / "evaluations" / "mine"):
        report = evaluate(CONFIG, library.context)
        assert {name: report[name] for name in oracle[0]} == oracle[0], damage
        assert answers(home) == oracle, f"{path}, {damage}"
        num_damages += 1
    assert num_measured == [num_damages]
    assert num_damages > 30
