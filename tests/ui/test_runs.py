"""Curves and states of pretraining runs, read while they grow."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.workspace import Workspace
from index.artifact import MissingArtifactError
from ui.runs import RunBoard, thin_out


@pytest.fixture
def empty(tmp_path: Path) -> Workspace:
    return Workspace.at(tmp_path / "workspace")


def append(folder: Path, *lines: dict[str, Any]) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def test_a_run_shows_its_curves_figures_and_progress(empty: Workspace, shapes: Any) -> None:
    shapes.write_run(empty, "enc1", num_steps=40)
    run = RunBoard(empty).metrics("enc1")
    assert (run["state"], run["step"], run["num_steps"], run["epoch"]) == ("done", 39, 40, 3.9)
    assert run["series"]["loss"]["steps"] == list(range(40))
    assert run["series"]["loss"]["values"][0] == 5.0
    assert run["series"]["knn"] == {"steps": [0, 10, 20, 30], "values": [0.5, 0.6, 0.7, 0.8]}
    figures = {figure["name"]: figure for figure in run["figures"]}
    assert figures["knn"]["value"] == 0.8
    assert figures["knn"]["is_share"]
    assert "step" not in run["series"]


def test_accuracy_is_shown_with_its_interval_beside_what_it_has_to_beat(
    empty: Workspace, shapes: Any
) -> None:
    folder = shapes.write_run(empty, "enc1", num_steps=3)
    how = {"knn_k": 5, "knn_temperature": 0.1, "num_bank": 30, "num_test": 10}
    beside = {"knn_random": 0.4, "knn_pixels": 0.6}
    beside |= {"probe": 0.8, "probe_random": 0.5, "probe_pixels": 0.99}
    append(folder, {"step": 9, "loss": 1.0, "knn": 0.9, **beside, **how})
    run = RunBoard(empty).metrics("enc1")
    figures = {figure["name"]: figure for figure in run["figures"]}
    knn = figures["knn"]
    assert knn["low"] == pytest.approx(0.5958, abs=1e-4)  # Wilson, 9 of 10
    assert knn["beside"] == [
        {"title": "untrained", "value": 0.4},
        {"title": "raw pixels", "value": 0.6},
    ]
    assert knn["measured"] == "10 pictures tested, 30 labels known; k 5, temperature 0.1"
    assert figures["probe"]["beside"][0] == {"title": "untrained", "value": 0.5}
    assert ". Beaten by raw pixels: " in figures["probe"]["measured"]
    assert not set(figures) & {"knn_random", "knn_k", "num_test"}
    assert run["series"]["knn_random"] == {"steps": [9], "values": [0.4]}
    assert "num_test" not in run["series"]


def test_a_growing_run_is_followed_without_its_half_written_line(
    empty: Workspace, shapes: Any
) -> None:
    folder = shapes.write_run(empty, "enc1", num_steps=5, state="running")
    board = RunBoard(empty)
    assert board.metrics("enc1")["step"] == 4
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 0.1')
    assert board.metrics("enc1")["step"] == 4
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("25}\n")
    assert board.metrics("enc1")["series"]["loss"]["values"][-1] == 0.125


def test_a_resumed_run_that_rewrote_its_file_is_read_anew(empty: Workspace, shapes: Any) -> None:
    folder = shapes.write_run(empty, "enc1", num_steps=20)
    board = RunBoard(empty)
    board.metrics("enc1")
    lines = [{"step": step, "loss": 9.0 + step, "note": "x" * 40} for step in range(30)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert board.metrics("enc1")["series"]["loss"]["values"] == [9.0 + step for step in range(30)]


def test_a_step_written_again_drops_what_came_after_it(empty: Workspace, shapes: Any) -> None:
    folder = shapes.write_run(empty, "enc1", num_steps=10)
    append(folder, {"step": 4, "loss": 7.0})
    series = RunBoard(empty).metrics("enc1")["series"]["loss"]
    assert series["steps"] == [0, 1, 2, 3, 4]
    assert series["values"][-1] == 7.0


def test_numbers_that_are_not_finite_leave_a_gap(empty: Workspace, shapes: Any) -> None:
    folder = shapes.write_run(empty, "enc1", num_steps=3)
    append(folder, {"step": 3, "loss": float("nan")}, {"step": 4, "loss": float("inf")})
    run = RunBoard(empty).metrics("enc1")
    assert run["series"]["loss"]["steps"] == [0, 1, 2]
    assert run["step"] == 4
    json.dumps(run, allow_nan=False)


def test_damaged_lines_are_passed_over(
    empty: Workspace, shapes: Any, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shapes.write_run(empty, "enc1", num_steps=3)
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\xfe\n[1, 2]\n{"loss": 1}\n{"step": 3, "loss": 2}\n')
    assert RunBoard(empty).metrics("enc1")["step"] == 3
    assert caplog.text.count("damaged line") == 3


def test_running_runs_come_first_then_the_newest(empty: Workspace, shapes: Any) -> None:
    for age_s, (name, state) in enumerate([("b", "done"), ("a", "running"), ("c", "failed")]):
        folder = shapes.write_run(empty, name, state=state)
        for file in folder.iterdir():
            os.utime(file, (time.time() - age_s, time.time() - age_s))
    (empty.folder("runs", "half").make()).local_path("other.txt").write_text("no card yet")
    assert [run["name"] for run in RunBoard(empty).runs()] == ["a", "b", "c"]


def test_a_silent_run_says_what_to_do_and_a_failed_one_why(empty: Workspace, shapes: Any) -> None:
    folder = shapes.write_run(empty, "enc1", state="running")
    for file in folder.iterdir():
        os.utime(file, (time.time() - 600, time.time() - 600))
    assert "No news for 10 minutes" in RunBoard(empty).metrics("enc1")["message"]
    card = {"state": "stopped", "num_steps": 5, "error": "training collapsed: ..."}
    (folder / "run.json").write_text(json.dumps(card))
    assert RunBoard(empty).metrics("enc1")["message"] == "training collapsed: ..."


def test_a_run_says_what_kills_have_cost_and_that_it_is_not_protected(
    empty: Workspace, shapes: Any
) -> None:
    folder = shapes.write_run(empty, "enc1", state="running")
    attempts = [
        {"resumed_at": 0, "lost_steps": 0, "lost_s": 0.0, "workers": 3, "waiting": 0},
        {"resumed_at": 10, "lost_steps": 9, "lost_s": 30.4, "workers": 3, "waiting": 0},
        {"resumed_at": 20, "lost_steps": 5, "lost_s": 7.8, "workers": 2, "waiting": 1},
    ]
    card = {"state": "running", "num_steps": 40, "attempts": attempts[:1]}
    (folder / "run.json").write_text(json.dumps(card))
    board = RunBoard(empty)
    assert (board.metrics("enc1")["history"], board.metrics("enc1")["alert"]) == ("", "")
    card |= {"attempts": attempts, "alert": "The checkpoint of step 30 could not be written."}
    (folder / "run.json").write_text(json.dumps(card))
    run = board.metrics("enc1")
    assert run["history"] == (
        "Resumed 2 times; 14 steps, 38 s of work lost. Workers: 2 train, 1 wait."
    )
    assert run["alert"] == "The checkpoint of step 30 could not be written."
    card |= {"state": "cancelled", "note": "Stopped after step 39 of 40."}
    (folder / "run.json").write_text(json.dumps(card))
    run = board.metrics("enc1")
    assert run["history"] == "Resumed 2 times; 14 steps, 38 s of work lost."
    assert (run["alert"], run["message"]) == ("", "Stopped after step 39 of 40.")


def test_a_run_whose_card_is_damaged_says_so_without_a_path(empty: Workspace, shapes: Any) -> None:
    folder = shapes.write_run(empty, "enc1", num_steps=3)
    (folder / "run.json").write_text('{"state": "do')
    board = RunBoard(empty)
    assert board.runs() == [{"name": "enc1", "state": "unreadable"}]
    message = board.metrics("enc1")["message"]
    assert "restore it" in message
    assert str(folder) not in message


def test_a_run_that_has_written_nothing_yet_can_be_shown(empty: Workspace) -> None:
    folder = empty.folder("runs", "new").make().local_path()
    (folder / "run.json").write_text(json.dumps({"state": "running", "num_steps": 5}))
    run = RunBoard(empty).metrics("new")
    assert (run["step"], run["series"], run["figures"]) == (0, {}, [])


def test_an_unknown_run_is_refused(empty: Workspace) -> None:
    with pytest.raises(MissingArtifactError, match="lookalike pretrain"):
        RunBoard(empty).metrics("none")
    assert RunBoard(empty).runs() == []


@settings(max_examples=60)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300),
    st.integers(min_value=4, max_value=120),
)
def test_thinning_keeps_ends_extremes_and_order(values: list[float], limit: int) -> None:
    points = list(enumerate(values))
    kept = thin_out(points, limit)
    assert len(kept) <= max(limit, 4)
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert kept == sorted(set(kept))
    assert set(kept) <= set(points)
    assert max(value for _, value in kept) == max(values)
    assert min(value for _, value in kept) == min(values)
