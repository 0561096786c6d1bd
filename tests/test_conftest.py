"""Where a browser and Ray are required, a test that skips itself for want of them has failed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from cluster.where import CHECKOUT

PROGRAM = """
import pytest

@pytest.mark.browser
def test_browser(chromium_path):
    raise AssertionError("the browser is there")

@pytest.mark.ray
def test_ray():
    pytest.skip("no Ray")

def test_other():
    pytest.skip("for a reason of its own")
"""
MODULE = "import pytest\npytest.skip('needs a browser', allow_module_level=True)\n"


def outcomes(folder: Path, program: str, **required: str) -> str:
    """Summary line of pytest on a program that uses our hooks, on a machine without a browser."""
    (folder / "test_program.py").write_text(program)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n  browser\n  ray\n  gpu\n")
    environment = {key: value for key, value in os.environ.items() if "LOOKALIKE" not in key}
    path = os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "tests")])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider", "."],
        cwd=folder,
        env={**environment, "PYTHONPATH": path, "LOOKALIKE_CHROMIUM": "/absent", **required},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout.strip().splitlines()[-1]


def test_without_the_variables_a_skip_is_a_skip(tmp_path: Path) -> None:
    assert outcomes(tmp_path, PROGRAM).startswith("3 skipped")


def test_with_them_only_skips_for_other_reasons_stay(tmp_path: Path) -> None:
    found = outcomes(tmp_path, PROGRAM, LOOKALIKE_REQUIRE_BROWSER="1", LOOKALIKE_REQUIRE_RAY="1")
    assert "2 skipped" not in found
    assert "1 skipped" in found
    assert "1 failed, 1 skipped, 1 error" in found or "2 failed, 1 skipped" in found


def test_a_module_that_skips_itself_is_caught_too(tmp_path: Path) -> None:
    assert outcomes(tmp_path, MODULE).startswith("1 skipped")
    assert "1 error" in outcomes(tmp_path, MODULE, LOOKALIKE_REQUIRE_BROWSER="1")


def test_the_pictures_are_real_files_in_turning_formats(pictures) -> None:
    folder = pictures(12, size=40)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert len(files) == 12
    assert {path.suffix for path in files} == {".png", ".jpg", ".webp", ".bmp"}
    assert [path.parent.name for path in sorted(files, key=lambda path: path.name)][:3] == list(
        "012"
    )
    assert len({path.read_bytes() for path in files}) == 12
    for path in files:
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((40, 40), "RGB")


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED"])
def test_ray_and_torch_are_told_before_they_are_imported(name: str) -> None:
    text = (CHECKOUT / "tests" / "conftest.py").read_text()
    assert text.index(name) < text.index("from cluster.engine import")
    assert name in os.environ
