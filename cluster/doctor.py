"""doctor: say what is wrong with this machine, the workspace or Ray, and what to do about it."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Any

from cluster import checks
from cluster.checks import Check
from cluster.context import Context
from cluster.engine import connect
from cluster.local_ray import token_file
from cluster.where import Where
from cluster.workspace import Workspace
from index.folder import Folder

__all__ = ["DoctorConfig", "check_ray", "doctor"]

NODE_TIMEOUT_S = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class DoctorConfig:
    """Check this machine, the workspace and Ray."""

    ray: bool = True
    """Whether to start Ray (or join --address) and run a task on each node: ten seconds."""
    port: int = 7860
    """Where the browser app is going to listen."""

    def __post_init__(self) -> None:
        """Check the port."""
        if not 0 <= self.port <= 65_535:
            raise ValueError(f"port {self.port}: allowed are 0 to 65535. Choose another --port.")


def doctor(config: DoctorConfig, context: Context) -> dict[str, Any]:
    """Run every check; the report is ``ok`` when none failed.

    Raises:
        ValueError: a cluster to join, and Ray not to be looked at.
    """
    if context.where.address and not config.ray:
        raise ValueError(
            f"address {context.where.address} with --no-ray: it is Ray that is to be found there. "
            "Leave one of them out."
        )
    root = context.workspace.root
    found = [
        checks.check_python(sys.version_info[:2]),
        checks.check_dependencies(),
        checks.check_rooms(),
        checks.check_engines(),
        checks.check_shared_memory(),
        checks.check_workspace(root),
        checks.check_disk(root),
        checks.check_token(token_file()),
        checks.check_port(config.port),
        checks.check_browser(),
    ]
    if config.ray:
        found.append(check_ray(context.where, context.workspace))
    return {
        "ok": all(check.level != "fail" for check in found),
        "checks": [asdict(check) for check in found],
    }


def check_ray(where: Where, workspace: Workspace) -> Check:
    """Whether Ray runs a task on each node that finds our rooms and sees the same workspace."""
    root = workspace.root
    try:
        with checks.marker(root) as (name, content), connect(where):
            answers = _read_on_every_node(workspace.location, name)
    except (OSError, ValueError, RuntimeError) as error:
        return Check("ray", "fail", str(error))
    if blind := answers.count(None):
        return Check(
            "ray",
            "fail",
            f"{root} on {blind} of {len(answers)} nodes is another folder than here. "
            "Give a --workspace that all nodes share.",
        )
    if any(answer != content for answer in answers):
        return Check("ray", "fail", f"{root}: a node reads other bytes than were written here.")
    place = where.address or "this machine"
    return Check("ray", "ok", f"ran a task on every node of {place}: {len(answers)}")


def _read_on_every_node(location: str, name: str) -> list[bytes | None]:
    """What each node reads, also one that is not meant to work."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    tasks = [
        ray.remote(read_file)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        .remote(location, name)
        for node in nodes
    ]
    try:
        return list(ray.get(tasks, timeout=NODE_TIMEOUT_S))
    except ray.exceptions.RayError as error:
        raise ConnectionError(
            f"a task on {len(nodes)} nodes, at most {NODE_TIMEOUT_S} s each, failed: {error}. "
            "Look at `ray status`, and for the same versions of lookalike and Ray on every node."
        ) from error


def read_file(location: str, name: str) -> bytes | None:
    """The content of a file, on whichever node this runs; None when it is not there."""
    return Folder.at(location).read_if_there(name)
