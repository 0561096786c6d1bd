"""Real processes joined by gloo, to hold one process against several."""

import inspect
import multiprocessing
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)


class Ranks:
    """Calls a module-level function of a test file on every rank; results in rank order."""

    def __init__(self, world_size: int, meeting_point: Path) -> None:
        context = multiprocessing.get_context("spawn")
        program = str(Path(__file__).with_name("rank_process.py"))
        self.world_size = world_size
        self._connections = []
        self._processes = []
        for rank in range(world_size):
            here, there = context.Pipe()
            arguments = {"SERVE_ARGUMENTS": (there, rank, world_size, str(meeting_point))}
            process = context.Process(target=runpy.run_path, args=(program, arguments), daemon=True)
            process.start()
            self._connections.append(here)
            self._processes.append(process)

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        for connection in self._connections:
            connection.send((inspect.getfile(function), function.__name__, arguments))
        answers = [connection.recv() for connection in self._connections]
        failures = [answer for ok, answer in answers if not ok]
        assert not failures, "\n".join(failures)
        return [answer for _, answer in answers]

    def close(self) -> None:
        for connection in self._connections:
            connection.send(None)
        for process in self._processes:
            process.join(timeout=20)
            assert process.exitcode == 0


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    pool = Ranks(2, tmp_path_factory.mktemp("ranks") / "meeting-point")
    yield pool
    pool.close()


@pytest.fixture
def four_ranks(tmp_path: Path) -> Iterator[Ranks]:
    pool = Ranks(4, tmp_path / "meeting-point")
    yield pool
    pool.close()
