"""Ray as we start it: workers find the rooms, nothing hangs in silence, nothing is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import engine
from cluster.engine import connect, lost, root_cause
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


def test_the_rooms_travel_to_a_cluster_unless_a_ray_job_brought_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert engine._runtime_env() == {"working_dir": str(CHECKOUT)}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert engine._runtime_env() is None


def test_what_an_actor_could_not_be_made_for_is_what_its_constructor_raised() -> None:
    from ray.exceptions import ActorDiedError, RayTaskError

    reason = ValueError("the GPU has no memory left")
    died = ActorDiedError(RayTaskError("Actor.__init__", "Traceback", reason))
    assert root_cause(died) is reason
    assert lost(died) is None, "it would come again"
    assert lost(ActorDiedError()) is not None
