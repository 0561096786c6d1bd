"""Profiles of ray_config.yaml: what is read, what is refused, and with which words."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from cluster.where import CHECKOUT, Profile, StorageConfig, Where, load_profile, num_cores


def write_profile(folder: Path, fields: str, name: str = "mine") -> Path:
    path = folder / "ray_config.yaml"
    body = textwrap.indent(textwrap.dedent(fields), " " * 8)
    path.write_text(f"metadata:\n  lookalike:\n    profiles:\n      {name}:\n{body}\n")
    return path


def test_laptop_is_there_without_a_file_and_shares_the_cores(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("cluster.where.CHECKOUT", tmp_path)
    profile = Where().profile_settings()
    assert (profile.num_workers, profile.embed_actors) == (1, 0)
    assert profile.cpus_per_worker == profile.cpus_per_actor == num_cores()


@pytest.mark.parametrize("name", ["laptop", "gpu", "gpu-cluster", "cpu-cluster"])
def test_every_profile_of_the_shipped_file_loads(name: str) -> None:
    assert load_profile(name) == load_profile(name, CHECKOUT / "ray_config.yaml")


def test_the_file_decides_over_the_built_in_laptop(tmp_path: Path) -> None:
    path = write_profile(tmp_path, "num_workers: 3", name="laptop")
    assert Where(ray_config=path).profile_settings().num_workers == 3


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path) -> None:
    # YAML 1.1 wants a dot and a sign in a float, so PyYAML gives "5e-1" back as text.
    path = write_profile(tmp_path, 'gpus_per_actor: 5e-1\nnum_workers: "4"\nembed_actors: 2.0')
    assert load_profile("mine", path) == Profile(gpus_per_actor=0.5, num_workers=4, embed_actors=2)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ("num_worker: 2", "unknown field 'num_worker'. Did you mean 'num_workers'?"),
        ("num_workers: two", "num_workers 'two': has to be a whole number"),
        ("num_workers: 1.5", "num_workers 1.5: has to be a whole number"),
        ("num_workers: true", "num_workers True: has to be a whole number"),
        ("num_workers: [2, 8]", "has to be a whole number"),
        ("gpus_per_worker: .nan", "gpus_per_worker nan: has to be a number"),
        ("storage: 7", "storage 7: has to be text"),
        ("num_workers: 0", "num_workers 0: at least 1"),
        ("min_workers: 2", "min_workers 2: at most num_workers, 1"),
        ("gpus_per_actor: -1", "gpus_per_actor -1.0: at least 0"),
    ],
)
def test_a_wrong_field_is_refused_with_its_place(tmp_path: Path, fields: str, words: str) -> None:
    path = write_profile(tmp_path, fields)
    with pytest.raises(ValueError, match="profile 'mine' in") as caught:
        load_profile("mine", path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_unknown_profile_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ValueError, match=r"profile 'labtop': .* Did you mean 'laptop'\?"):
        load_profile("labtop")


@pytest.mark.parametrize("text", ["- a list", "metadata: {}", "a: [", "metadata: {lookalike: 3}"])
def test_a_malformed_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ray_config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"ray_config\.yaml"):
        load_profile("laptop", path)


def test_a_profile_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ray_config.yaml"
    path.write_text("metadata: {lookalike: {profiles: {laptop: 4}}}")
    with pytest.raises(ValueError, match="4 is no mapping"):
        load_profile("laptop", path)


def test_a_file_that_was_asked_for_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_profile("laptop", tmp_path / "absent.yaml")


def test_shares_of_this_machine_are_refused_on_a_cluster() -> None:
    with pytest.raises(ValueError, match=r"cpus_per_worker 0 in profile 'laptop'.*10\.0\.0\.1"):
        Where(address="10.0.0.1:6379").profile_settings()


def test_a_share_is_at_least_one_core_and_a_stated_number_stays() -> None:
    shared = Profile(num_workers=4, embed_actors=2, cpus_per_actor=3).on_machine(2)
    assert (shared.cpus_per_worker, shared.cpus_per_actor) == (1, 3)


@pytest.mark.parametrize(
    ("cores", "num_pictures", "kilobytes_each", "num_shards", "expected"),
    [
        (2, 5_000, 0.5, 2, (1, 2)),
        (2, 60_000, 0.5, 15, (2, 1)),
        (2, 60_000, 0.5, 1, (1, 2)),
        (16, 60_000, 0.5, 15, (4, 4)),
        (16, 20_000, 0.5, 5, (2, 8)),
        (1, 60_000, 0.5, 15, (1, 1)),
        (3, 0, 0.5, 0, (1, 3)),
        (2, 4_000, 70, 8, (2, 1)),
        (2, 500, 70, 8, (1, 2)),
        (2, 500, 3_000, 8, (2, 1)),
    ],
)
def test_so_many_actors_start_by_themselves_as_the_work_is_worth(
    cores: int, num_pictures: int, kilobytes_each: float, num_shards: int, expected: tuple[int, int]
) -> None:
    profile = Profile(embed_actors=0).on_machine(cores)
    profile = profile.for_work(num_pictures, int(1e3 * kilobytes_each * num_pictures), num_shards)
    assert (profile.embed_actors, profile.cpus_per_actor) == expected


def test_a_stated_number_of_actors_stays_and_others_share_a_gpu() -> None:
    stated = Profile(embed_actors=3, cpus_per_actor=2)
    assert stated.for_work(10, 5_000, 8) == stated
    assert stated.for_work(10, 5_000, 2).embed_actors == 2
    left_open = Profile(embed_actors=0, cpus_per_actor=16, gpus_per_actor=1)
    shared = Profile(embed_actors=4, cpus_per_actor=4, gpus_per_actor=0.25)
    assert left_open.for_work(10**6, 10**9, 99) == shared
    assert left_open.for_work(100, 10**6, 1).gpus_per_actor == 1
    with pytest.raises(ValueError, match="share one GPU"):
        Profile(embed_actors=0, gpus_per_actor=2)


def test_as_many_actors_as_there_is_use_for_are_refused_on_a_cluster(tmp_path: Path) -> None:
    path = write_profile(tmp_path, "cpus_per_worker: 1\ncpus_per_actor: 1\nembed_actors: 0")
    with pytest.raises(ValueError, match="embed_actors 0 in profile"):
        Where(profile="mine", ray_config=path, address="10.0.0.1:6379").profile_settings()


def test_pools_become_label_selectors() -> None:
    assert Profile(train_pool="train").train_labels == {"pool": "train"}
    assert Profile(train_pool="train").data_labels is None


def test_a_ray_of_this_machine_has_no_pools_to_wait_for(tmp_path: Path) -> None:
    path = write_profile(
        tmp_path,
        "cpus_per_worker: 1\ncpus_per_actor: 1\n"
        "train_pool: train\ndata_pool: data\ndecode_pool: more",
    )
    here = Where(profile="mine", ray_config=path).profile_settings()
    assert (here.train_labels, here.data_labels, here.decode_labels) == (None, None, None)
    there = Where(profile="mine", ray_config=path, address="10.0.0.1:6379").profile_settings()
    assert there.data_labels == {"pool": "data"}
    assert there.decode_labels == {"pool": "more"}


def test_a_verb_without_ray_takes_a_profile_for_its_storage_alone(tmp_path: Path) -> None:
    path = write_profile(tmp_path, "storage: /shared", name="team")
    where = StorageConfig(profile="team", ray_config=path).where()
    assert where == Where(profile="team", ray_config=path)
    assert where.profile_settings().storage == "/shared"


def test_a_least_number_of_workers_makes_a_range() -> None:
    assert Profile(num_workers=4).worker_range == 4
    assert Profile(num_workers=4, min_workers=4).worker_range == 4
    assert Profile(num_workers=4, min_workers=1).worker_range == (1, 4)
