"""Ray as we start it: workers find the rooms, nothing hangs in silence, nothing is left."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import engine
from cluster.engine import connect, local_object_store_bytes, lost, root_cause
from cluster.where import CHECKOUT, Profile, Where


def write_profile(folder: Path, fields: str) -> Where:
    path = folder / "ray_config.yaml"
    path.write_text(f"metadata: {{lookalike: {{profiles: {{laptop: {{{fields}}}}}}}}}")
    return Where(ray_config=path)


@pytest.mark.ray
def test_workers_import_our_rooms_from_this_checkout(local_ray: Profile) -> None:
    import ray

    @ray.remote
    def origin() -> str:
        import index

        return str(index.__file__)

    assert ray.get(origin.remote(), timeout=60) == str(CHECKOUT / "index" / "__init__.py")


@pytest.mark.ray
def test_a_running_ray_is_used_and_left_running(local_ray: Profile) -> None:
    import ray

    with connect(Where()) as profile:
        assert profile == local_ray
    assert ray.is_initialized()


@pytest.mark.ray
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ("num_workers: 2, cpus_per_worker: 2", "num_workers 2 with 2 CPUs"),
        ("embed_actors: 4, cpus_per_actor: 1", "embed_actors 4 with 1 CPUs"),
        ("gpus_per_worker: 1, cpus_per_worker: 1", "and 0 GPUs"),
    ],
)
def test_a_profile_that_ray_would_wait_for_in_silence_is_refused(
    local_ray: Profile, tmp_path: Path, fields: str, words: str
) -> None:
    with pytest.raises(ValueError, match="do not fit on this machine") as caught:
        connect(write_profile(tmp_path, fields)).__enter__()
    assert words in str(caught.value)


@pytest.mark.ray
@pytest.mark.slow
def test_ray_starts_from_any_folder_with_a_private_token_and_says_nothing(tmp_path: Path) -> None:
    program = (
        "import ray; from cluster.engine import connect; from cluster.where import Where\n"
        "with connect(Where(), num_cpus=4, object_store_bytes=100 << 20):\n"
        "    print(ray.get(ray.remote(lambda: __import__('index').__file__).remote()))\n"
        "assert not ray.is_initialized()"
    )
    environment = {
        **{key: value for key, value in os.environ.items() if key != "RAY_AUTH_MODE"},
        "HOME": str(tmp_path),
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
    assert stat.S_IMODE((tmp_path / ".ray" / "auth_token").stat().st_mode) == 0o600


def test_a_ray_client_address_is_refused() -> None:
    with pytest.raises(ValueError, match="ray job submit"):
        engine._join("ray://head:10001")


def test_a_cluster_that_refuses_is_reported_with_what_to_look_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import ray

    def refuse(**_: object) -> None:
        raise ConnectionError("ray client connection timeout")

    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ConnectionError, match=r"--address head:6379: .*same token in .*token"):
        engine._join("head:6379")


def test_a_machine_too_busy_to_start_ray_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def start(**_: object) -> None:
        # Ray's words: its own timeout cannot be waited for here, nor set.
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(ray, "init", start)
    said = r"within its 30 s: .* programs want its \d+ cores\. Nothing was begun\. Try again .*"
    with pytest.raises(ConnectionError, match=said):
        engine._start(4, None)


def test_ray_still_has_the_words_of_a_late_start() -> None:
    import inspect

    from ray._private import node

    assert engine.TOO_LATE in inspect.getsource(node)


def test_the_rooms_travel_to_a_cluster_unless_a_ray_job_brought_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert engine._runtime_env() == {"working_dir": str(CHECKOUT)}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert engine._runtime_env() is None


def test_the_path_of_this_process_is_as_it_was_after_the_start(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", "/before")
    with engine._on_python_path(tmp_path):
        assert os.environ["PYTHONPATH"] == f"{tmp_path}{os.pathsep}/before"
    assert os.environ["PYTHONPATH"] == "/before"


@pytest.mark.parametrize(("gib", "expected_mib"), [(1, 200), (8, 819), (512, 2048)])
def test_the_object_store_is_bounded(gib: int, expected_mib: int) -> None:
    assert local_object_store_bytes(gib << 30) >> 20 == expected_mib


def test_what_an_actor_could_not_be_made_for_is_what_its_constructor_raised() -> None:
    from ray.exceptions import ActorDiedError, RayTaskError

    reason = ValueError("the GPU has no memory left")
    died = ActorDiedError(RayTaskError("Actor.__init__", "Traceback", reason))
    assert root_cause(died) is reason
    assert lost(died) is None, "it would come again"
    assert lost(ActorDiedError()) is not None
