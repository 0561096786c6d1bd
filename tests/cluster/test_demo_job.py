"""The whole road as one verb, in its order.

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
        return {"figures": FIGURES, "num_queries": len(made), "path": "evaluations/e"}

    monkeypatch.setattr(demo_job, "evaluate", evaluate)
    return made


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
    assert [config.encoder for config in measured] == [("tiny",), ("tiny",)]
