"""What doctor says about a machine that is well, and about each way of being ill."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import socket
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from cluster import checks
from cluster.cli import main
from cluster.context import Context
from cluster.doctor import DoctorConfig, check_ray, doctor
from cluster.where import CHECKOUT, Profile, Where
from cluster.workspace import Workspace
from index.folder import Folder

Usage = namedtuple("Usage", "total used free")


def with_free_bytes(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free, 0, free))


@pytest.fixture
def root(tmp_path: Path) -> Folder:
    return Folder.at(tmp_path / "workspace")


@pytest.mark.ray
def test_a_machine_that_passes_these_tests_is_well(local_ray: Profile, root: Folder) -> None:
    report = doctor(DoctorConfig(), Context(Workspace(root)))
    assert [check for check in report["checks"] if check["level"] == "fail"] == []
    assert report["ok"] is True
    assert len({check["name"] for check in report["checks"]}) == 11
    assert not root.exists(), "the workspace was made only to be looked at"


@pytest.mark.ray
def test_a_workspace_that_ray_cannot_see_fails(
    local_ray: Profile, root: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.doctor._read_on_every_node", lambda *_: [None, b"other"])
    check = check_ray(Where(), Workspace(root))
    assert check.level == "fail"
    assert "1 of 2 nodes is another folder" in check.detail


def test_an_unknown_profile_is_a_failed_check_of_ray(root: Folder) -> None:
    check = check_ray(Where(profile="labtop"), Workspace(root))
    assert check.level == "fail"
    assert "Did you mean 'laptop'?" in check.detail


def test_the_verb_answers_in_json_and_fails_when_a_check_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "check_engines", lambda: checks.Check("engines", "fail", "broken"))
    arguments = ["doctor", "--no-ray", "--json", "--workspace", str(tmp_path)]
    assert main(arguments) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert {"name": "engines", "level": "fail", "detail": "broken"} in report["checks"]


@pytest.mark.parametrize(
    ("version", "level"), [((3, 10), "fail"), ((3, 13), "ok"), ((3, 14), "fail")]
)
def test_python_has_to_be_a_tested_one(version: tuple[int, int], level: str) -> None:
    assert checks.check_python(version).level == level


def test_a_missing_dependency_fails_and_an_untested_version_warns() -> None:
    def without_ray(name: str) -> str:
        if name == "ray":
            raise importlib.metadata.PackageNotFoundError(name)
        return importlib.metadata.version(name)

    def with_old_torch(name: str) -> str:
        return "2.9.0" if name == "torch" else importlib.metadata.version(name)

    missing = checks.check_dependencies(installed=without_ray)
    assert missing.level == "fail"
    assert "ray" in missing.detail
    assert "found none" in missing.detail
    other = checks.check_dependencies(installed=with_old_torch)
    assert other.level == "warn"
    assert "torch 2.9.0 (tested" in other.detail


def test_a_package_that_shadows_a_room_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    intruder = tmp_path / "ui" / "__init__.py"
    intruder.parent.mkdir()
    intruder.touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "ui", raising=False)
    assert checks.intruders() == {"ui": str(intruder)}
    check = checks.check_rooms()
    assert check.level == "fail"
    assert f"ui is {intruder}" in check.detail


def test_a_room_that_is_nowhere_is_named(tmp_path: Path) -> None:
    assert checks.intruders(["no_such_room"], tmp_path) == {"no_such_room": "nowhere"}


def test_a_crash_on_import_is_a_failed_check_and_not_the_end() -> None:
    check = checks.check_engines("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    assert check.level == "fail"
    assert "exit status -4" in check.detail
    check = checks.check_engines("import no_such_engine")
    assert "No module named 'no_such_engine'" in check.detail


def test_engines_that_hang_are_a_failed_check_and_not_the_end() -> None:
    check = checks.check_engines("import time; time.sleep(60)", timeout_s=0.2)
    assert check.level == "fail"
    assert "have not loaded within 0.2 s" in check.detail


def test_an_address_and_no_ray_are_refused(root: Folder) -> None:
    context = Context(Workspace(root), Where(address="10.0.0.1:6379"))
    with pytest.raises(ValueError, match=r"address 10\.0\.0\.1:6379 with --no-ray"):
        doctor(DoctorConfig(ray=False), context)


def test_a_port_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="port -1: allowed are 0 to 65535"):
        DoctorConfig(port=-1)


def test_torch_and_faiss_load_together() -> None:
    assert checks.check_engines().level == "ok"


def test_little_shared_memory_warns_and_none_is_macos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free_bytes(monkeypatch, 64 << 20)  # what docker gives
    assert checks.check_shared_memory(tmp_path).level == "warn"
    assert checks.check_shared_memory(tmp_path / "absent").level == "ok"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_workspace_fails(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    check = checks.check_workspace(Folder.at(tmp_path / "workspace"))
    assert check.level == "fail"


def test_a_workspace_under_a_file_fails_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check = checks.check_workspace(Folder.at(tmp_path / "file" / "workspace"))
    assert check.level == "fail"
    assert "Give a --workspace" in check.detail


def test_a_full_disk_fails_the_workspace(root: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Folder, "write_atomic", no_space)
    check = checks.check_workspace(root)
    assert check.level == "fail"
    assert "No space left" in check.detail
    assert not root.exists()


@pytest.mark.parametrize(("free", "level"), [(6 << 30, "ok"), (1 << 30, "warn"), (1 << 28, "fail")])
def test_room_on_the_disk(
    root: Folder, monkeypatch: pytest.MonkeyPatch, free: int, level: str
) -> None:
    with_free_bytes(monkeypatch, free)
    assert checks.check_disk(root).level == level


@pytest.mark.parametrize(("mode", "level"), [(0o600, "ok"), (0o644, "warn"), (0o660, "warn")])
def test_a_token_that_others_can_read_warns(tmp_path: Path, mode: int, level: str) -> None:
    file = tmp_path / "auth_token"
    file.touch()
    file.chmod(mode)
    assert checks.check_token(file).level == level


def test_a_taken_port_warns_with_another() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        check = checks.check_port(port)
    assert check.level == "warn"
    assert f"--port {port + 1}" in check.detail


def test_the_named_browser_comes_first_and_a_wrong_name_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOOKALIKE_CHROMIUM", sys.executable)
    assert checks.find_chromium() == sys.executable
    monkeypatch.setenv("LOOKALIKE_CHROMIUM", "/no/such/browser")
    assert checks.find_chromium() is None
    assert checks.check_browser().level == "ok"


def test_the_lock_holds_every_dependency() -> None:
    assert checks.check_dependencies(CHECKOUT).level != "fail"
