"""Where to compute: named profiles in ``ray_config.yaml``, and the address of a cluster.

A profile may change how long a run takes, never the numbers that come out.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CHECKOUT", "Profile", "StorageConfig", "Where", "load_profile", "num_cores"]

CHECKOUT = Path(__file__).resolve().parent.parent
"""The folder that holds the four rooms, and beside them ``ray_config.yaml``."""

MOST_ACTORS = 4
"""Of those that start by themselves: each has a network of its own in memory."""

PICTURES_PER_ACTOR = 8192
"""From so many on an actor more earns the seconds that it takes to start, even on small ones."""

BYTES_LIKE_A_PICTURE = 8192
"""So many bytes of a file take about as long to decode as a picture of a few bytes takes in all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """What a job may use; one of ``metadata.lookalike.profiles`` in ``ray_config.yaml``."""

    num_workers: int = 1
    """Training workers; the global batch is divided among them, so the result stays the same."""
    min_workers: int = 0
    """Fewest training workers to go on with when nodes are lost; 0 waits for num_workers again."""
    cpus_per_worker: int = 0
    """CPUs, and so threads, of a training worker; 0 shares this machine's cores among them."""
    gpus_per_worker: float = 0.0
    """GPUs of a training worker; 0 trains on the CPU."""
    train_pool: str | None = None
    """Only nodes whose label ``pool`` has this value train; without it, any node may."""
    embed_actors: int = 1
    """Actors that decode and encode pictures side by side; 0 starts as many as this machine has use
    for, which is one for few pictures, and shares the CPUs and the GPU of one among them."""
    cpus_per_actor: int = 0
    """CPUs, and so threads, of such an actor; 0 shares this machine's cores among them."""
    gpus_per_actor: float = 0.0
    """GPUs of such an actor; a part such as 0.5 lets two share one."""
    data_pool: str | None = None
    """Only nodes whose label ``pool`` has this value embed; without it, any node may."""
    decode_tasks: int | None = None
    """Tasks at once that decode for each actor, a CPU each; 0 lets the actor decode, which it does
    by itself unless it has a GPU and too few CPUs."""
    decode_pool: str | None = None
    """Only nodes whose label ``pool`` has this value run such tasks; without it, any node may."""
    storage: str | None = None
    """Workspace unless ``--workspace`` is given: a folder that all nodes see, or a bucket's URI."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} {value}: at least {least}. Correct the profile.")
        if self.min_workers > self.num_workers:
            raise ValueError(
                f"min_workers {self.min_workers}: at most num_workers, {self.num_workers}. "
                "Correct the profile."
            )
        if not self.embed_actors and self.gpus_per_actor > 1:
            raise ValueError(
                f"embed_actors 0 with gpus_per_actor {self.gpus_per_actor}: actors that start by "
                "themselves share one GPU. Set gpus_per_actor to 1, or state embed_actors."
            )

    @property
    def worker_range(self) -> int | tuple[int, int]:
        """How many training workers Ray may start: one number, or the least and the most."""
        if self.min_workers in (0, self.num_workers):
            return self.num_workers
        return self.min_workers, self.num_workers

    @property
    def train_labels(self) -> dict[str, str] | None:
        """Label selector of the training workers, for Ray."""
        return {"pool": self.train_pool} if self.train_pool else None

    @property
    def data_labels(self) -> dict[str, str] | None:
        """Label selector of the embedding actors, for Ray."""
        return {"pool": self.data_pool} if self.data_pool else None

    @property
    def decode_labels(self) -> dict[str, str] | None:
        """Label selector of decoding tasks, for Ray."""
        return {"pool": self.decode_pool} if self.decode_pool else None

    def on_machine(self, cores: int) -> Profile:
        """The same on one machine, of so many cores, with a Ray of its own.

        Each 0 among the CPUs is replaced by a share of the cores, at least 1. Pools are left out: a
        Ray that starts here has no nodes with labels, and would wait for some in silence.

        >>> Profile(num_workers=2).on_machine(8).cpus_per_worker
        4
        """
        return dataclasses.replace(
            self,
            cpus_per_worker=self.cpus_per_worker or max(1, cores // self.num_workers),
            cpus_per_actor=self.cpus_per_actor or max(1, cores // (self.embed_actors or 1)),
            train_pool=None,
            data_pool=None,
            decode_pool=None,
        )

    def for_work(self, num_pictures: int, num_bytes: int, num_shards: int) -> Profile:
        """The same with the number of actors that so much work is worth.

        Two threads of one process wait for each other's Python, and for Pillow, which decodes with
        Python's lock held: on two cores two actors of one CPU embed pictures 1.4 to 2 times as fast
        as one actor of two; with 16 CPUs and one GPU, four actors that share both embed three times
        as fast as one. But each takes seconds to start, and memory for a network.

        Args:
            num_pictures: to be done.
            num_bytes: of their files.
            num_shards: that they are in; no actor does less than one.

        >>> two = Profile(embed_actors=0, cpus_per_actor=2)
        >>> two.for_work(60_000, 36_000_000, num_shards=15).embed_actors
        2
        >>> two.for_work(5_000, 3_000_000, num_shards=2).embed_actors
        1
        >>> two.for_work(5_000, 350_000_000, num_shards=2).embed_actors  # JPEGs of 500 px
        2
        """
        if self.embed_actors:
            return dataclasses.replace(self, embed_actors=min(self.embed_actors, num_shards))
        most = min(MOST_ACTORS, self.cpus_per_actor, num_shards)
        work = num_pictures + num_bytes // BYTES_LIKE_A_PICTURE
        actors = max(1, min(most, work // PICTURES_PER_ACTOR))
        return dataclasses.replace(
            self,
            embed_actors=actors,
            cpus_per_actor=self.cpus_per_actor // actors,
            gpus_per_actor=self.gpus_per_actor / actors,
        )


_LEAST = {
    "num_workers": 1,
    "min_workers": 0,
    "cpus_per_worker": 0,
    "gpus_per_worker": 0,
    "embed_actors": 0,
    "cpus_per_actor": 0,
    "gpus_per_actor": 0,
    "decode_tasks": 0,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class StorageConfig:
    """Where everything is kept, for a verb that needs no Ray: it runs in one process, here."""

    profile: str = "laptop"
    """Profile of ray_config.yaml whose storage is the workspace, unless --workspace is given."""
    ray_config: Path | None = None
    """File that holds the profiles; the ray_config.yaml beside the program unless given."""

    def where(self) -> Where:
        """The same for a job's context."""
        return Where(profile=self.profile, ray_config=self.ray_config)


@dataclass(frozen=True, kw_only=True, slots=True)
class Where:
    """Where to compute."""

    profile: str = "laptop"
    """Which profile of ray_config.yaml says how many workers and actors to use, and how large."""
    address: str | None = None
    """Ray cluster to join, HOST:PORT or auto (inside a Ray job); without it, Ray starts here."""
    ray_config: Path | None = None
    """File that holds the profiles; the ray_config.yaml beside the program unless given."""

    def profile_settings(self) -> Profile:
        """The profile; when Ray starts here, with its shares of this machine and without pools.

        Raises:
            ValueError: an unknown profile or field, or shares of a machine asked of a cluster.
            FileNotFoundError: ``ray_config`` names no file.
        """
        profile = load_profile(self.profile, self.ray_config)
        if self.address is None:
            return profile.on_machine(num_cores())
        for name in ("cpus_per_worker", "cpus_per_actor", "embed_actors"):
            if getattr(profile, name) == 0:
                raise ValueError(
                    f"{name} 0 in profile {self.profile!r}: a share of this machine's cores means "
                    f"nothing on the cluster {self.address}. State a number in ray_config.yaml, or "
                    "choose another --profile."
                )
        return profile


def num_cores() -> int:
    """CPU cores that this process may use: affinity and a container's share are heeded."""
    import joblib

    return int(joblib.cpu_count())


def load_profile(name: str, path: Path | None = None) -> Profile:
    """Read one profile.

    Args:
        name: which; ``laptop`` exists even without a file.
        path: a Ray cluster-launcher file; None takes the one beside the program, if it is there.

    Raises:
        FileNotFoundError: ``path`` is given and not there.
        ValueError: no such profile or field, a value of the wrong type, or a malformed file.
    """
    file = CHECKOUT / "ray_config.yaml" if path is None else path
    if path is not None and not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file. Copy ray_config.yaml there, or leave --ray-config out."
        )
    profiles = {"laptop": {"embed_actors": 0}, **(_read_profiles(file) if file.is_file() else {})}
    if name not in profiles:
        raise ValueError(f"profile {name!r}: not in {file}. {_suggest(name, profiles)}")
    fields = profiles[name]
    if not isinstance(fields, dict):
        raise ValueError(
            f"profile {name!r} in {file}: {fields!r} is no mapping. "
            "Write fields such as num_workers: 2."
        )
    return _profile(fields, f"profile {name!r} in {file}")


def _read_profiles(file: Path) -> Mapping[str, Any]:
    import yaml

    try:
        section: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not readable as YAML ({error}). Correct the file.") from error
    for key in ("metadata", "lookalike", "profiles"):
        section = section.get(key) if isinstance(section, dict) else None
    if not isinstance(section, dict):
        raise ValueError(
            f"{file}: metadata.lookalike.profiles is no mapping of names to settings. "
            "Compare the ray_config.yaml that came with lookalike."
        )
    return section


def _profile(fields: Mapping[str, Any], where: str) -> Profile:
    kinds = typing.get_type_hints(Profile)
    for key in fields:
        if key not in kinds:
            raise ValueError(f"{where}: unknown field {key!r}. {_suggest(str(key), kinds)}")
    values: dict[str, Any] = {
        key: _converted(value, kinds[key], f"{where}: {key}") for key, value in fields.items()
    }
    try:
        return Profile(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _converted(value: object, kind: object, where: str) -> object:
    """The value as the field's type; YAML reads ``5e-1`` as text, so text may be a number."""
    if kind == int | None:
        if value is None:
            return None
        kind = int
    if kind in (int, float) and not isinstance(value, bool):
        try:
            number = float(value) if isinstance(value, (int, float, str)) else None
        except ValueError:
            number = None
        if number is not None and math.isfinite(number) and (kind is float or number.is_integer()):
            return number if kind is float else int(number)
    elif kind == str | None and isinstance(value, str | None):
        return value
    wanted = {int: "a whole number", float: "a number"}.get(kind, "text")  # type: ignore[call-overload]
    raise ValueError(f"{where} {value!r}: has to be {wanted}. Correct the profile.")


def _suggest(name: str, known: Iterable[str]) -> str:
    names = sorted(map(str, known))
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known are: {', '.join(names)}."
