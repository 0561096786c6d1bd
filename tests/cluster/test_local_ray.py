"""A Ray of this machine: it starts with little memory and any home, and keeps its token closed."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import local_ray
from cluster.local_ray import local_object_store_bytes
from cluster.where import CHECKOUT

Limit = Callable[[float, float], None]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """What Ray was started with, of starts that only look whether there is enough memory."""
    import ray
    from ray._private.resource_and_label_spec import ResourceAndLabelSpec

    starts: list[dict[str, object]] = []

    def start(**options: object) -> None:
        spec = ResourceAndLabelSpec(object_store_memory=options["object_store_memory"])
        spec._resolve_memory_resources()
        starts.append({**options, "token": os.environ.get("RAY_AUTH_TOKEN")})

    monkeypatch.setattr(ray, "init", start)
    return starts


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Limit:
    """Has Ray find a container with so many GiB, and so many of them in use."""
    import ray._common.utils
    import ray._private.utils

    def apply(gib: float, used_gib: float) -> None:
        for module in (ray._common.utils, ray._private.utils):
            monkeypatch.setattr(module, "get_system_memory", lambda: int(gib * 2**30))
        monkeypatch.setattr(ray._private.utils, "get_used_memory", lambda: int(used_gib * 2**30))

    return apply


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home without a token, in an environment that says nothing of one."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "so that what is set meanwhile is unset after the test")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize(("gib", "used_gib"), [(2, 0.3), (1, 0.3), (0.5, 0.2), (64, 63.5)])
def test_ray_starts_within_a_containers_limit_and_on_a_busy_machine(
    started: list[dict[str, object]], limit: Limit, home: Path, gib: float, used_gib: float
) -> None:
    limit(gib, used_gib)
    local_ray.start(4, None)
    assert len(started) == 1


def test_a_machine_without_memory_for_ray_is_told_what_there_is_and_what_helps(
    started: list[dict[str, object]], limit: Limit, home: Path
) -> None:
    limit(2, 1.9)
    said = r"of its 2,048 MiB of memory 102 MiB are free, .* store takes 75 MiB\. .* --address\."
    with pytest.raises(ValueError, match=said):
        local_ray.start(4, None)


def test_a_token_is_closed_from_its_first_byte_and_kept(
    started: list[dict[str, object]], home: Path
) -> None:
    local_ray.start(4, 100 << 20)
    file = home / ".ray" / "auth_token"
    token = file.read_text()
    assert (len(token), stat.S_IMODE(file.stat().st_mode)) == (64, 0o600)
    assert [path.name for path in file.parent.iterdir()] == ["auth_token"]
    file.chmod(0o644)
    local_ray.start(4, 100 << 20)
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == (token, 0o600)
    assert [each["token"] for each in started] == [None, None]


def test_where_home_holds_no_token_it_is_in_the_environment(
    started: list[dict[str, object]], home: Path
) -> None:
    home.touch()  # no folder can be made in it, by root neither
    local_ray.start(4, 100 << 20)
    assert len(str(started[0]["token"])) == 64


def test_a_token_that_others_may_read_and_that_cannot_be_closed_is_warned_of(
    started: list[dict[str, object]],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (home / ".ray").mkdir(parents=True)
    file = home / ".ray" / "auth_token"
    file.write_text("token")
    file.chmod(0o644)

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "chmod", refuse)
    with caplog.at_level(logging.WARNING):
        local_ray.start(4, 100 << 20)
    assert len(started) == 1
    assert f"{file}: other users of this machine may read Ray's token" in caplog.text


def test_a_machine_too_busy_to_start_ray_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def start(**_: object) -> None:
        # Ray's words: its own timeout cannot be waited for here, nor set.
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(ray, "init", start)
    said = r"within its 30 s: .* programs want its \d+ cores\. Nothing was begun\. Try again .*"
    with pytest.raises(ConnectionError, match=said):
        local_ray.start(4, None)


def test_ray_still_has_the_words_of_a_start_that_it_gives_up() -> None:
    import inspect

    from ray._private import node, resource_and_label_spec

    assert local_ray.TOO_LATE in inspect.getsource(node)
    assert local_ray.TOO_LITTLE in inspect.getsource(resource_and_label_spec)


def test_the_path_of_this_process_is_as_it_was_after_the_start(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", "/before")
    with local_ray._on_python_path(tmp_path):
        assert os.environ["PYTHONPATH"] == f"{tmp_path}{os.pathsep}/before"
    assert os.environ["PYTHONPATH"] == "/before"


@pytest.mark.parametrize(
    ("gib", "free_gib", "expected_mib"),
    [(1, 0.9, 200), (8, 7, 819), (512, 500, 2048), (64, 1, 341), (0.5, 0.2, 75), (4, -0.1, 75)],
)
def test_the_object_store_is_bounded(gib: float, free_gib: float, expected_mib: int) -> None:
    found = local_object_store_bytes(int(gib * 2**30), int(free_gib * 2**30))
    assert found >> 20 == expected_mib


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("home", ["home", "no_folder/home"])
def test_ray_starts_from_any_folder_and_home_with_a_private_token_and_says_nothing(
    tmp_path: Path, home: str
) -> None:
    program = (
        "import ray; from cluster.engine import connect; from cluster.where import Where\n"
        "with connect(Where(), num_cpus=4, object_store_bytes=100 << 20):\n"
        "    print(ray.get(ray.remote(lambda: __import__('index').__file__).remote()))\n"
        "assert not ray.is_initialized()"
    )
    (tmp_path / "no_folder").touch()
    environment = {
        **{key: value for key, value in os.environ.items() if key != "RAY_AUTH_MODE"},
        "HOME": str(tmp_path / home),
        "PYTHONPATH": str(CHECKOUT),
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str(CHECKOUT / "index" / "__init__.py")
    if home == "home":
        assert stat.S_IMODE((tmp_path / "home/.ray/auth_token").stat().st_mode) == 0o600
