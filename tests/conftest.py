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

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from PIL import Image

from cluster.engine import connect
from cluster.where import Profile, Where

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
