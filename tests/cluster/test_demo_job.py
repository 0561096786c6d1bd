"""The whole road as one verb: in its order, nothing measured twice, nothing stale reported.

The steps that take minutes have tests of their own; here, those are replaced by recorders.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import demo_job
from cluster.cli import main
from cluster.demo_job import DemoConfig, demo
from cluster.evaluate_job import EvaluateConfig
from cluster.where import Where

FIGURES = {"trained": {"recall@1": {"value": 0.7, "low": 0.6, "high": 0.8, "n": 10}}}


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[EvaluateConfig]:
    """Every evaluation that is really made."""
    made: list[EvaluateConfig] = []

    def evaluate(config: EvaluateConfig, context: Any) -> dict[str, Any]:
        made.append(config)
        return {"figures": FIGURES, "num_queries": len(made), "num_pictures": 30}

    monkeypatch.setattr(demo_job, "evaluate", evaluate)
    return made


def evaluated(library: Any, **given: Any) -> dict[str, Any]:
    config = EvaluateConfig(corpus="digits", encoder="tiny", **given)
    return demo_job._evaluate_once(config, library.context)


def test_a_taken_port_is_refused_before_anything_is_done(
    library: Any, taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_job, "draw_openmoji", lambda *_: pytest.fail("the road has begun"))
    with pytest.raises(ValueError, match=rf"port {taken_port}: is taken .*choose another --port"):
        demo(DemoConfig(port=taken_port), library.context)


def test_without_the_application_no_port_is_needed(
    library: Any, taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class BegunError(Exception):
        pass

    def begun(*_: object) -> None:
        raise BegunError

    monkeypatch.setattr(demo_job, "draw_openmoji", begun)
    with pytest.raises(BegunError):
        demo(DemoConfig(port=taken_port, ui=False), library.context)


def test_a_port_that_is_none_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--port", "70000"]) == 2
    assert "port 70000: allowed are 0 to 65535" in capsys.readouterr().err


def test_an_evaluation_is_made_once(library: Any, measured: list[EvaluateConfig]) -> None:
    first = evaluated(library)
    assert evaluated(library) == first
    assert len(measured) == 1
    assert first["path"] == str(library.folder("encoders", "tiny"))


def test_an_evaluation_names_what_it_measured(library: Any, measured: list[Any]) -> None:
    evaluated(library)
    door = json.loads(library.folder("encoders", "tiny").read_bytes("evaluation.json"))
    assert door["parents"]["corpus_id"] == library.catalog.corpus_id
    assert door["parents"]["encoder_id"] == library.workspace.open_encoder("tiny").encoder_id
    assert len(door["parents"]["config_id"]) == 64
    assert door["config"]["num_queries"] == 1000


def test_other_settings_are_measured_again(library: Any, measured: list[EvaluateConfig]) -> None:
    evaluated(library)
    evaluated(library, num_queries=5)
    assert [config.num_queries for config in measured] == [1000, 5]


def test_another_corpus_and_another_encoder_are_measured_again(
    library: Any, measured: list[EvaluateConfig], make_encoder: Any
) -> None:
    evaluated(library)
    next(library.pictures.glob("1/*")).unlink()
    library.rescan()
    evaluated(library)
    make_encoder(library.workspace, seed=1)
    evaluated(library)
    assert len(measured) == 3


@pytest.mark.parametrize("damage", [b"", b"{}", b"half a li"])
def test_a_damaged_evaluation_is_measured_again(
    library: Any, measured: list[EvaluateConfig], damage: bytes
) -> None:
    evaluated(library)
    library.folder("encoders", "tiny").write_atomic("evaluation.json", damage)
    evaluated(library)
    evaluated(library)
    assert len(measured) == 2


def test_a_flipped_digit_in_an_evaluation_is_measured_again(
    library: Any, measured: list[EvaluateConfig]
) -> None:
    evaluated(library)
    folder = library.folder("encoders", "tiny")
    folder.write_atomic(
        "evaluation.json", folder.read_bytes("evaluation.json").replace(b"0.7", b"0.9")
    )
    assert evaluated(library)["figures"] == FIGURES
    assert len(measured) == 2


def test_a_workspace_that_moved_reports_where_it_is_now(
    library: Any, measured: list[EvaluateConfig], tmp_path: Path
) -> None:
    evaluated(library)
    moved = library.workspace.root.local_path().rename(tmp_path / "moved")
    context = demo_job.replace(library.context, workspace=type(library.workspace).at(moved))
    report = demo_job._evaluate_once(EvaluateConfig(corpus="digits", encoder="tiny"), context)
    assert report["path"] == str(moved / "encoders" / "tiny")
    assert len(measured) == 1


def test_the_road_goes_by_all_steps_and_opens_the_application_as_asked(
    library: Any,
    tmp_path: Path,
    measured: list[EvaluateConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config_file = tmp_path / "mine.yaml"
    config_file.write_text("metadata: {lookalike: {profiles: {laptop: {num_workers: 1}}}}")
    monkeypatch.setattr(demo_job, "CORPUS", "digits")
    monkeypatch.setattr(demo_job, "ENCODER", "tiny")
    monkeypatch.setattr(demo_job, "draw_openmoji", lambda *_: library.pictures)
    monkeypatch.setattr(demo_job, "pretrain", lambda *_: {"loss": 1.5, "path": "run"})
    monkeypatch.setattr(demo_job, "embed", lambda *_: {"dim": 16, "path": "embeddings"})
    opened: list[tuple[Any, Any]] = []
    monkeypatch.setattr("ui.app.serve", lambda *given: opened.append(given))
    arguments = ["demo", "--json", "--port", "0", "--ray-config", str(config_file)]
    assert main([*arguments, "--workspace", library.location]) == 0
    report = json.loads(capsys.readouterr().out)
    steps = [step["step"] for step in report["steps"]]
    assert steps == ["draw", "scan", "pretrain", "embed", "index", "evaluate"]
    assert report["steps"][1]["result"] == "30 pictures"
    assert report["evaluation"]["figures"] == FIGURES
    [(config, context)] = opened
    assert (config.port, config.index) == (0, report["index"])
    assert context.where == Where(ray_config=config_file)
    assert context.workspace == library.workspace
    assert main([*arguments, "--workspace", library.location, "--no-ui"]) == 0
    assert len(opened) == 1
    assert len(measured) == 1
