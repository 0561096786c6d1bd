from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import measuring
from benchmarks.measuring import ChildError, child, in_turn


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_the_last_line_of_a_child_is_its_measurement() -> None:
    assert child(python("print('noise'); print('{\"rate\": 3}')"), 60) == {"rate": 3}


def test_a_child_that_fails_is_an_error_with_what_it_said() -> None:
    with pytest.raises(ChildError, match=r"ended with 3(.|\n)*so it was"):
        child(python("import sys; print('so it was', file=sys.stderr); sys.exit(3)"), 60)


@pytest.mark.parametrize("code", ["pass", "print('no JSON')"], ids=["silent", "talks"])
def test_a_child_without_a_measurement_is_an_error(code: str) -> None:
    with pytest.raises(ChildError, match="must be one JSON object"):
        child(python(code), 60)


def test_a_child_that_takes_too_long_is_stopped_with_its_own_children(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = (
        "import subprocess, sys, time, pathlib\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(note)!r}).write_text(str(other.pid))\n"
        "time.sleep(60)"
    )
    with pytest.raises(ChildError, match="which is all it may take"):
        child(python(code), 4)
    assert not is_running(int(note.read_text()))


def test_a_benchmark_that_is_terminated_takes_its_child_with_it(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    inner = f"import os, time, pathlib; pathlib.Path({str(note)!r}).write_text(str(os.getpid()))"
    outer = (
        "import sys; from benchmarks.measuring import child; "
        f"child([sys.executable, '-c', {inner + '; time.sleep(60)'!r}], 60)"
    )
    process = subprocess.Popen(python(outer), cwd=measuring.CHECKOUT)
    while not (note.exists() and note.read_text()):
        assert process.poll() is None
        time.sleep(0.1)
    process.terminate()
    assert process.wait(30) == 143
    assert not is_running(int(note.read_text()))


def is_running(pid: int) -> bool:
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        if state == "Z":
            return False
        time.sleep(0.1)
    return True


def test_contestants_take_turns_and_each_is_first_once() -> None:
    calls: list[str] = []

    def contestant(name: str) -> dict[str, Any]:
        calls.append(name)
        return {"call": len(calls)}

    names = ["a", "b", "c"]
    rounds = in_turn({name: lambda name=name: contestant(name) for name in names}, 3)
    assert calls == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert [list(one) for one in rounds] == [names] * 3
    assert rounds[1] == {"a": {"call": 6}, "b": {"call": 4}, "c": {"call": 5}}


def test_a_result_is_kept_whole_with_machine_date_and_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "RESULTS", tmp_path)
    monkeypatch.setattr(measuring, "CHECKOUT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/losses.py", "--rounds", "2"])
    path = measuring.save("deep/losses", {"rounds": [1, 2]}, measuring.machine())
    kept = json.loads(path.read_text())
    assert path == tmp_path / "deep" / "losses.json"
    assert kept["command"] == "python -m benchmarks.losses --rounds 2"
    assert kept["rounds"] == [1, 2]
    assert kept["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert [file.name for file in path.parent.iterdir()] == ["losses.json"]


@pytest.mark.parametrize("size", [5, 6])
def test_contestants_with_the_same_settings_are_kept_together(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "RESULTS", tmp_path)
    monkeypatch.setattr(measuring, "CHECKOUT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmarks/curves.py", "--k", "3", "--only", "a", "b"])

    def save(size: int, load: float, rounds: list[dict[str, Any]]) -> dict[str, Any]:
        settings, hardware = {"size": size, "shares": (1, 2)}, {"cpu": "x", "load": load}
        path = measuring.save_beside_others("curves", settings, rounds, hardware, ["a", "b", "c"])
        kept: dict[str, Any] = json.loads(path.read_text())
        assert kept["command"] == "python -m benchmarks.curves --k 3"
        return kept

    before = save(5, 3.0, [{"c": 1, "a": 1}, {"c": 2, "a": 2}])
    kept = save(size, 1.0, [{"b": 7, "a": 7}])
    if size == 5:
        assert [[*one.items()] for one in kept["rounds"]] == [
            [("a", 7), ("b", 7), ("c", 1)],
            [("c", 2)],
        ]
        assert kept["machine"] == {"cpu": "x", "load": 3.0}
        assert kept["earlier"] == {"c": before["date"]}
    else:
        assert kept["rounds"] == [{"b": 7, "a": 7}]
        assert kept["machine"] == {"cpu": "x", "load": 1.0}
        assert "earlier" not in kept


def test_a_missing_environment_of_peers_says_how_to_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEERS_PYTHON", str(tmp_path / "python"))
    with pytest.raises(FileNotFoundError, match="make bench-peers"):
        measuring.peers_python()
