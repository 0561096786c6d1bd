"""Measuring in processes of their own, in turn, and keeping every round with what it ran on."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

__all__ = [
    "CHECKOUT",
    "OWN_PYTHON",
    "RESULTS",
    "ChildError",
    "child",
    "command_line",
    "in_turn",
    "machine",
    "peak_mb",
    "peer_script",
    "peers_python",
    "programs",
    "save",
    "save_beside_others",
]

CHECKOUT = Path(__file__).resolve().parent.parent
RESULTS = CHECKOUT / "benchmarks" / "results"
OWN_PYTHON = sys.executable
GRACE_S = 20.0
SHOWN_LINES = 15


class ChildError(RuntimeError):
    """A process did not give its measurement."""


def child(
    command: Sequence[str], timeout_s: float, env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a process that prints one JSON object as its last line; it and its children end here.

    Args:
        command: program and arguments.
        timeout_s: it is stopped after so many seconds.
        env: added to this process's.

    Raises:
        ChildError: it failed, took too long, or printed something else.
    """
    if threading.current_thread() is threading.main_thread():
        # Stopped by `timeout` or `kill`, this process must not leave that one behind either.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    path = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))
    # A group of its own, so that loaders and raylets can be stopped with it.
    process = subprocess.Popen(
        command,
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": path, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    name = " ".join(map(str, command))
    try:
        out, err = process.communicate(timeout=timeout_s)
    except BaseException as error:
        _stop(process)
        if isinstance(error, subprocess.TimeoutExpired):
            raise ChildError(
                f"{name}: still ran after {timeout_s:.0f} s, which is all it may take. "
                "Measure when the machine is quiet, or ask for fewer steps."
            ) from error
        raise
    if process.returncode:
        tail = "\n".join(err.splitlines()[-SHOWN_LINES:])
        raise ChildError(f"{name}: ended with {process.returncode}; it must end with 0.\n{tail}")
    try:
        found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise ChildError(
            f"{name}: printed {out[-200:]!r}; its last line must be one JSON object."
        ) from error
    return found


def _stop(process: subprocess.Popen[str]) -> None:
    """First politely, since Ray's driver then takes its own processes with it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=GRACE_S)
            return


def programs(
    commands: Mapping[str, Sequence[str]], timeout_s: float
) -> dict[str, Callable[[], dict[str, Any]]]:
    """What runs each of the commands by `child`, by the same names."""
    return {name: partial(child, command, timeout_s) for name, command in commands.items()}


def in_turn(
    contestants: Mapping[str, Callable[[], dict[str, Any]]], rounds: int
) -> list[dict[str, dict[str, Any]]]:
    """Each contestant once a round, another one first each time: the machine's moods meet all.

    Returns:
        A mapping of name to measurement for each round.
    """
    names, found = list(contestants), []
    for number in range(rounds):
        shift = number % len(names)
        order = names[shift:] + names[:shift]
        measured = {}
        for name in order:
            measured[name] = contestants[name]()
            print(f"round {number + 1}/{rounds}, {name}: {_short(measured[name])}", flush=True)
        found.append({name: measured[name] for name in names})
    return found


def _short(measured: Mapping[str, Any]) -> str:
    numbers = {key: value for key, value in measured.items() if isinstance(value, int | float)}
    return ", ".join(f"{key} {value:,.4g}" for key, value in numbers.items())


def peers_python(environment: str = "peers") -> str:
    """The interpreter with the libraries that we compare with.

    Args:
        environment: ``peers``, ``peers-index`` or ``peers-autofaiss``.

    Raises:
        FileNotFoundError: their environment was not made.
    """
    variable = f"{environment.upper().replace('-', '_')}_PYTHON"
    path = Path(os.environ.get(variable, CHECKOUT / f".venv-{environment}" / "bin" / "python"))
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such program. The libraries that we compare with have an environment of "
            f"their own: run make bench-peers, or name its interpreter in {variable}."
        )
    return str(path)


def peer_script(name: str) -> str:
    """Path of a program that runs without lookalike."""
    return str(CHECKOUT / "benchmarks" / "peers" / f"{name}.py")


def peak_mb() -> float:
    """The most memory that this process ever had, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss begins at the peak of whoever started the process
        (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())
        return int(kilobytes) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def machine() -> dict[str, Any]:
    """What a figure has to be read with; the load is that of the minute before."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        **({"gpu": name} if (name := _gpu_model()) else {}),
        "load": round(os.getloadavg()[0], 2),
    }


def _gpu_model() -> str:
    """Of every GPU, a line each; empty without one."""
    with contextlib.suppress(OSError):
        asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return ""


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def save(name: str, body: Mapping[str, Any], hardware: Mapping[str, Any]) -> Path:
    """Keep a measurement: ``results/NAME.json``, with the command, the date and the machine.

    Args:
        name: of the benchmark; may name a folder below ``results``.
        body: ``settings``, ``rounds`` and what else was found.
        hardware: `machine`, asked before the first measurement.
    """
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {
        "command": command_line(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "machine": hardware,
        **body,
    }
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)
    print(f"kept in {path.relative_to(CHECKOUT)}; python -m benchmarks.page renews the page")
    return path


def save_beside_others(
    name: str,
    settings: Mapping[str, Any],
    rounds: list[dict[str, Any]],
    hardware: Mapping[str, Any],
    order: Sequence[str],
) -> Path:
    """Keep some contestants' rounds with what is kept of the others, if that has the same settings.

    Who was measured in fewer rounds is in the first ones; ``earlier`` says when the others were.

    Args:
        name: of the benchmark, as in `save`.
        settings: of these rounds.
        rounds: what `in_turn` returned.
        hardware: `machine`, asked before the first measurement.
        order: names of all contestants, as a round lists them.
    """
    file = RESULTS / f"{name}.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    others = {each for both in kept.get("rounds", []) for each in both} - {*rounds[0]}
    body: dict[str, Any] = {"settings": settings, "rounds": rounds}
    # Read back, a tuple is a list.
    if others and kept["settings"] == json.loads(json.dumps(settings)):
        of_others = [{each: old[each] for each in old if each in others} for old in kept["rounds"]]
        both = [o | new for o, new in zip_longest(filter(None, of_others), rounds, fillvalue={})]
        dates = kept.get("earlier", {})
        body["rounds"] = [{each: one[each] for each in order if each in one} for one in both]
        body["earlier"] = {each: dates.get(each, kept["date"]) for each in order if each in others}
        hardware = {**hardware, "load": max(hardware["load"], kept["machine"]["load"])}
    command = command_line().partition(" --only")[0]
    return save(name, {"command": command, **body}, hardware)


def command_line() -> str:
    """How this program was called, as one types it in the checkout."""
    module = Path(sys.argv[0]).stem
    return " ".join(["python -m", f"benchmarks.{module}", *sys.argv[1:]])
