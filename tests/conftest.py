"""What every test stands on: a quiet environment, gates, small real pictures, a local Ray."""

from __future__ import annotations

import os

# Before anything imports ray or torch: both read these once.
os.environ.update(
    AWS_ACCESS_KEY_ID="testkey",  # of a server that tests start; Ray's workers inherit them
    AWS_EC2_METADATA_DISABLED="true",
    AWS_SECRET_ACCESS_KEY="testsecret",
    LOKY_MAX_CPU_COUNT="2",  # what num_cores() says, so that tests do the same on every machine
    OMP_NUM_THREADS="1",
    RAY_AUTH_MODE="disabled",  # tests of the token set it themselves
    RAY_DATA_DISABLE_PROGRESS_BARS="1",
    RAY_DATA_PARQUET_FOOTER_NUM_ACTORS="1",
    RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",
    RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S="0.5",
    RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="20",
    RAY_USAGE_STATS_ENABLED="0",
)

import itertools
import json
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import hypothesis
import numpy as np
import pytest
from PIL import Image

from cluster.engine import connect
from cluster.where import Profile, Where

# A busy machine is no failure: how long an example takes is not what is tested.
hypothesis.settings.register_profile("any speed", deadline=None)
hypothesis.settings.load_profile("any speed")

# Set by .ci/run: there, a test skipped for want of a browser or of Ray is a failure.
REQUIRED = {
    "browser": "LOOKALIKE_REQUIRE_BROWSER",
    "ray": "LOOKALIKE_REQUIRE_RAY",
}
OBJECT_STORE_BYTES = 200 << 20


class Pictures(Protocol):
    """Writes pictures into a fresh folder; see the fixture of this name."""

    def __call__(self, num: int = 12, *, size: int = 48, formats: Sequence[str] = ...) -> Path: ...


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Turn a skip that hides a missing browser or Ray into a failure where they are required."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        refuse_skip(report, {mark.name for mark in item.iter_markers()})
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    """The same for a module that skips itself as a whole, whose markers nobody gets to see."""
    report = yield
    if report.skipped:
        reason = str(report.longrepr).lower()
        refuse_skip(report, {name for name in REQUIRED if re.search(rf"\b{name}\b", reason)})
    return report


def refuse_skip(report: Any, markers: set[str]) -> None:
    """Make the report a failure when an environment variable requires one of the markers."""
    for name, variable in REQUIRED.items():
        if name in markers and os.environ.get(variable) == "1":
            report.outcome = "failed"
            report.longrepr = f"{variable}=1 forbids skipping this test: {report.longrepr}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run; the slow ones are deselected by the Makefile."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """The Chromium for Playwright's ``executable_path``."""
    from cluster.checks import find_chromium

    found = find_chromium()
    if found is None:
        pytest.skip("no browser: install Chromium, or set LOOKALIKE_CHROMIUM to its path")
    return found


@pytest.fixture(scope="session")
def local_ray() -> Iterator[Profile]:
    """One Ray for the whole session: 4 logical CPUs, no dashboard, 200 MB of object store."""
    with connect(Where(), num_cpus=4, object_store_bytes=OBJECT_STORE_BYTES) as profile:
        yield profile


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    """A factory of folders of real pictures: scikit-learn's handwritten digits, enlarged, coloured.

    Picture ``i`` shows the digit ``i % 10`` and is called ``DIGIT/IIII.FORMAT``, formats in turn.
    """

    def write(
        num: int = 12, *, size: int = 48, formats: Sequence[str] = ("png", "jpg", "webp", "bmp")
    ) -> Path:
        folder = tmp_path / "pictures"
        for position, (digit, image) in enumerate(digits(num, size)):
            path = folder / str(digit) / f"{position:04d}.{formats[position % len(formats)]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
        return folder

    return write


def digits(num: int, size: int) -> Iterator[tuple[int, Image.Image]]:
    """``num`` different digits in turn 0 to 9, each in two colours of its own; at most 1,740."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    of_class = [np.flatnonzero(bunch.target == digit) for digit in range(10)]
    for position in range(num):
        digit = position % 10
        ink = bunch.images[of_class[digit][position // 10]][:, :, None] / 16.0
        paper_colour, ink_colour = np.random.default_rng(position).uniform(0, 255, (2, 3))
        pixels = (paper_colour * (1 - ink) + ink_colour * ink).astype(np.uint8)
        yield digit, Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)


FORGE = """
    import contextlib, importlib, json, os, resource, signal, sys

    from index.folder import Folder

    NEEDS_SPACE = ("open", "os.mkdir", "os.rename", "fsync")
    CHANGES = (*NEEDS_SPACE, "os.remove", "os.rmdir", "os.truncate")

    def changes_the_disk(event, given):
        if event == "open":
            flags = given[2] if isinstance(given[2], int) else 0
            return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        return event in CHANGES

    def arm(fault, step):
        left = [step]

        def hook(event, given):
            if not changes_the_disk(event, given):
                return
            left[0] -= 1
            if left[0] < 0 and fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if left[0] < 0 and event in NEEDS_SPACE:
                raise OSError(28, "No space left on device")

        def told(event, function):
            def wrapped(*arguments, **options):
                hook(event, ())
                return function(*arguments, **options)
            return wrapped

        # What C++ does to the disk, and what Python does without telling.
        os.fsync = told("fsync", os.fsync)
        Folder.make = told("os.mkdir", Folder.make)
        Folder.remove = told("os.remove", Folder.remove)
        sys.addaudithook(hook)

    def child(order):
        os.fsync = lambda file: None  # what it guards against is not what is tried here
        names = {}
        exec(order["code"], names)
        if order["fault"] == "short":
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["step"], hard))
        elif order["fault"]:
            arm(order["fault"], order["step"])
        names["run"](order["home"])

    answers = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin:
        order = json.loads(line)
        for module in order["modules"]:  # once, and not in every child
            with contextlib.suppress(Exception):
                importlib.import_module(module)
        pid = os.fork()  # nothing that threads has run in this process
        if not pid:
            try:
                child(order)
                found = {"ended": "done", "modules": list(sys.modules)}
            except BaseException as error:
                kind = type(error)
                found = {"ended": kind.__name__, "module": kind.__module__, "says": str(error)}
            os.write(answers, (json.dumps(found) + chr(10)).encode())
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            found = {"ended": "killed", "signal": os.WTERMSIG(status)}
            os.write(answers, (json.dumps(found) + chr(10)).encode())
"""
ROOMS = ("cluster", "encoders", "index", "ui")
PLACES = 12


class Forge:
    """A process that runs pieces of Python, each in a child that meets a fault at a chosen step.

    Steps are changes of the disk. Faults: ``kill`` is SIGKILL before the step; ``full`` a disk that
    takes no more from the step on; ``short`` one that takes only ``step`` bytes of any file.
    """

    def __init__(self) -> None:
        self._modules: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(FORGE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path.cwd()), "PYTHONDONTWRITEBYTECODE": "1"},
        )

    def run(self, code: str, home: Path, fault: str | None = None, step: int = 0) -> dict[str, Any]:
        """Run ``run(home)`` of some code; how it ended, with an error's type and message."""
        order = {
            "code": textwrap.dedent(code),
            "home": str(home),
            "fault": fault,
            "step": step,
            "modules": self._modules,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        found = dict(json.loads(self._process.stdout.readline()))
        # What a child had to import, the next ones are to find imported.
        self._modules = found.pop("modules", [])
        return found

    def walk(
        self,
        code: str,
        home: Path,
        check: Callable[[Path, bool], object],
        *,
        full: bool = True,
    ) -> int:
        """Run the code on copies of a folder, killed a step later each time; returns the steps.

        With ``full``, the disk is full at each third step as well. After each fault
        ``check(copy, False)`` has to find what was published before, or all that is new; then the
        code runs unharmed and ``check(copy, True)`` has to find the new.
        """
        steps = 0
        first = shutil.copytree(home, home.with_name(f"{home.name}-first"), symlinks=True)
        assert (ended := self.run(code, first))["ended"] == "done", ended
        check(first, True)
        for fault, stride in (("kill", 1), ("full", 3))[: 1 + full]:
            for step in itertools.count(0, stride):
                copy = home.with_name(f"{home.name}-{fault}-{step}")
                shutil.copytree(home, copy, symlinks=True)
                ended = self.run(code, copy, fault, step)
                expected = (
                    ("done", "killed") if fault == "kill" else ("done", "OSError", "ShardError")
                )
                assert ended["ended"] in expected, ended
                check(copy, ended["ended"] == "done")
                again = self.run(code, copy)
                assert again["ended"] == "done", (fault, step, again)
                check(copy, True)
                shutil.rmtree(copy)
                if ended["ended"] == "done":
                    break
            steps = max(steps, step)
        return steps

    def close(self) -> None:
        """End the process."""
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()


@pytest.fixture(scope="session")
def forge() -> Iterator[Forge]:
    """Runs code that meets kills and full disks; see `Forge`."""
    forge = Forge()
    yield forge
    forge.close()


def damages(root: Path, *, removed: bool = True) -> Iterator[tuple[Path, str]]:
    """Damage every file below a folder, each way in turn; it is mended when the next is asked for.

    Bits are flipped all over it, its end is cut off at several places, and it is removed.
    """
    for path in sorted(path for path in root.rglob("*") if path.is_file() and path.stat().st_size):
        whole = path.read_bytes()
        size = len(whole)
        try:
            for place in sorted({size * part // PLACES for part in range(PLACES)} | {size - 1}):
                data = bytearray(whole)
                data[place] ^= 1 << (place % 8)
                path.write_bytes(data)
                yield path, f"a bit of byte {place} of {size} flipped"
            for length in sorted({0, 1, size // 2, size - 2}):
                if 0 <= length < size:
                    path.write_bytes(whole[:length])
                    yield path, f"cut to {length} of {size} bytes"
            if removed:
                path.unlink()
                yield path, "removed"
        finally:
            path.write_bytes(whole)


def answered(read: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """What it returns, or the error that it raises."""
    try:
        return read(), None
    except Exception as error:  # noqa: BLE001 - which ones may come is what is tested
        return None, error


def is_ours(error: Exception) -> bool:
    """Whether an error is one of this project's, in a sentence, and not some library's."""
    if type(error).__module__.partition(".")[0] in ROOMS:
        return True
    kinds = (ValueError, FileExistsError, FileNotFoundError)
    plain = type(error) in kinds and not getattr(error, "errno", None)
    return plain and len(str(error).split()) > 6


@pytest.fixture(scope="session")
def every_damage() -> Callable[..., Iterator[tuple[Path, str]]]:
    """Damages every file of a folder in turn; see `damages`."""
    return damages


@pytest.fixture(scope="session")
def assert_noticed() -> Callable[..., set[str]]:
    """Damages every file and reads: the answer is the same, or one of our errors says what is.

    Takes the folder and what reads it; returns names of the files whose damage was refused.
    """

    def run(root: Path, read: Callable[[], Any], *, removed: bool = True) -> set[str]:
        oracle, refused = read(), set()
        for path, damage in damages(root, removed=removed):
            found, error = answered(read)
            if error is None:
                assert found == oracle, f"{path}, {damage}: answered as if nothing were"
                continue
            assert is_ours(error), f"{path}, {damage}: {type(error).__name__}: {error}"
            refused.add(path.name)
        assert read() == oracle
        return refused

    return run


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets writes return before the disk has them, where a test makes hundreds."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
