"""What `doctor` looks at on this machine, one function a check.

None changes anything that it does not put back, and none needs Ray.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tomllib
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.where import CHECKOUT
from index.folder import Folder

__all__ = [
    "Check",
    "check_browser",
    "check_dependencies",
    "check_disk",
    "check_engines",
    "check_port",
    "check_python",
    "check_rooms",
    "check_shared_memory",
    "check_token",
    "check_workspace",
    "find_chromium",
    "intruders",
    "marker",
    "why_taken",
]

Level = Literal["ok", "warn", "fail"]

ROOMS = ("cluster", "encoders", "index", "ui")
PYTHONS = ((3, 11), (3, 13))
GIB = 1 << 30
LITTLE_DISK_BYTES, NO_DISK_BYTES = 5 * GIB, GIB // 2
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MAC_BROWSERS = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
# In a process of its own: on a processor that lacks an instruction, importing these ends it.
ENGINES_PROGRAM = """
import json, torch, faiss
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
print(json.dumps({
    "torch": torch.__version__, "faiss": faiss.__version__, "gpus": gpus,
    "simd": faiss.get_compile_options().split(), "sum": float(torch.ones(8) @ torch.ones(8)),
}))
"""


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found, and what to do if it is not well.

    Args:
        name: what was looked at.
        level: ``fail`` when a verb will not work, ``warn`` when one may not.
        detail: a sentence for a person.
    """

    name: str
    level: Level
    detail: str


def check_python(version: tuple[int, int]) -> Check:
    """Whether this Python is one that the dependencies are tested with."""
    found = ".".join(map(str, version))
    if PYTHONS[0] <= version <= PYTHONS[1]:
        return Check("python", "ok", f"{found} at {sys.executable}")
    return Check(
        "python", "fail", f"{found}: has to be 3.11 to 3.13. Run: make PYTHON=python3.12 setup"
    )


def check_dependencies(
    folder: Path = CHECKOUT, installed: Callable[[str], str] = importlib.metadata.version
) -> Check:
    """Whether what ``pyproject.toml`` asks for is installed, and in the versions of the lock."""
    from packaging.requirements import Requirement

    wanted = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["dependencies"]
    lock = re.findall(r"^([\w.-]+)==(\S+)", (folder / "constraints.txt").read_text(), re.MULTILINE)
    unmet = [
        f"{need} (found {found or 'none'})"
        for need in map(Requirement, wanted)
        if not (found := _version(need.name, installed)) or found not in need.specifier
    ]
    if unmet:
        return Check("dependencies", "fail", f"unmet: {', '.join(unmet)}. Run: make setup")
    others = [
        f"{name} {found} (tested {version})"
        for name, version in lock
        if (found := _version(name, installed)) and found.split("+")[0] != version
    ]
    if others:
        shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        return Check(
            "dependencies", "warn", f"{len(others)} not as tested: {shown}. Run: make setup"
        )
    return Check("dependencies", "ok", f"{len(wanted)} met, all in their tested versions")


def _version(name: str, installed: Callable[[str], str]) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return installed(name)
    return None


def check_rooms() -> Check:
    """Whether the four names mean our rooms; other packages of these names exist."""
    foreign = intruders()
    if not foreign:
        return Check("rooms", "ok", f"{', '.join(ROOMS)} lie in {CHECKOUT}")
    named = "; ".join(f"{room} is {origin}" for room, origin in foreign.items())
    return Check(
        "rooms",
        "fail",
        f"another package shadows ours: {named}. Uninstall it, or run: make clean setup",
    )


def intruders(rooms: Iterable[str] = ROOMS, home: Path = CHECKOUT) -> dict[str, str]:
    """The rooms whose name leads elsewhere than to ``home``, and where it leads."""
    found = {}
    for room in rooms:
        spec = importlib.util.find_spec(room)
        origin = spec.origin if spec and spec.origin else "nowhere"
        if origin == "nowhere" or Path(origin).resolve() != home / room / "__init__.py":
            found[room] = origin
    return found


def check_engines(program: str = ENGINES_PROGRAM, timeout_s: float = 120) -> Check:
    """Whether torch and faiss load together and compute, and with what hardware."""
    command = [sys.executable, "-c", program]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return Check(
            "engines",
            "fail",
            f"torch and faiss have not loaded within {timeout_s:g} s. Look for a hung GPU driver "
            "or a slow disk, and for what else keeps this machine busy; then try again.",
        )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return Check(
            "engines",
            "fail",
            f"torch and faiss do not load together: {last}. Run: make clean setup. If that does "
            "not help, the processor may lack an instruction that they need.",
        )
    found = json.loads(done.stdout)
    gpus = ", ".join(found["gpus"]) or "no GPU"
    simd = [name for name in found["simd"] if name.startswith(("AVX", "NEON", "SVE"))]
    return Check(
        "engines",
        "ok",
        f"torch {found['torch']} ({gpus}), faiss {found['faiss']} ({' '.join(simd) or 'no SIMD'})",
    )


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """Whether Ray's object store fits into shared memory; macOS has none and needs none."""
    if not folder.is_dir():
        return Check("shared memory", "ok", f"{folder} does not exist here; Ray uses files")
    free = shutil.disk_usage(folder).free
    if free < GIB // 4:
        return Check(
            "shared memory",
            "warn",
            f"{folder} has {_size(free)} free: Ray falls back to a slow disk. "
            "In a container, start it with --shm-size=2g.",
        )
    return Check("shared memory", "ok", f"{_size(free)} free in {folder}")


def check_workspace(root: Folder) -> Check:
    """Whether files can be published there: written, fsynced, renamed, read back, deleted."""
    try:
        with marker(root) as (name, content):
            same = root.read_bytes(name) == content
    except OSError as error:
        return Check(
            "workspace",
            "fail",
            f"{root}: cannot be written ({error}). Give a --workspace that can, or its permission.",
        )
    if not same:
        return Check(
            "workspace",
            "fail",
            f"{root}: gives back other bytes than were written. Use another disk.",
        )
    return Check("workspace", "ok", f"{root}: files can be published")


@contextlib.contextmanager
def marker(root: Folder) -> Iterator[tuple[str, bytes]]:
    """A file in the workspace for as long as the context lasts; leaves no new folder behind."""
    name, content = f".doctor-{uuid.uuid4().hex}", os.urandom(64)
    is_new = not root.exists()
    try:
        root.make().write_atomic(name, content)
        yield name, content
    finally:
        with contextlib.suppress(OSError):
            root.remove(name)
            if is_new and root.is_local:
                root.local_path().rmdir()


def check_disk(root: Folder) -> Check:
    """How much room the workspace's disk has left."""
    if not root.is_local:
        return Check("disk", "ok", f"{root}: an object store")
    existing = next(path for path in (root.local_path() / "x").parents if path.exists())
    free = shutil.disk_usage(existing).free
    level: Level = (
        "ok" if free >= LITTLE_DISK_BYTES else "warn" if free >= NO_DISK_BYTES else "fail"
    )
    advice = "" if level == "ok" else ". Free some, or give a --workspace on another disk."
    return Check("disk", level, f"{_size(free)} free under {existing}{advice}")


def check_token(file: Path) -> Check:
    """Whether Ray's token, which lets its holder run code, can be read by others."""
    if not file.is_file():
        return Check("token", "ok", f"{file} does not exist; Ray makes it when it first starts")
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & 0o077:
        return Check(
            "token",
            "warn",
            f"{file} has mode {mode:04o}: others here can read it. Run: chmod 600 {file}",
        )
    return Check("token", "ok", f"{file} is readable by its owner alone")


def check_port(port: int) -> Check:
    """Whether the browser app can listen on its port."""
    if reason := why_taken(port):
        return Check(
            "port", "warn", f"{port} is taken ({reason}). Use: lookalike ui --port {port + 1}"
        )
    return Check("port", "ok", f"{port} is free")


def why_taken(port: int) -> str | None:
    """Why nothing can listen on a port of this machine, or None when something can."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            return error.strerror
    return None


def check_browser() -> Check:
    """Which Chromium the browser tests and screenshots would use."""
    found = find_chromium()
    return Check(
        "browser", "ok", found or "no Chromium; only browser tests and screenshots need one"
    )


def find_chromium() -> str | None:
    """Path of a Chromium or Chrome; ``LOOKALIKE_CHROMIUM`` comes first."""
    named = os.environ.get("LOOKALIKE_CHROMIUM")
    candidates = [named] if named else [*BROWSERS, *MAC_BROWSERS]
    return next(filter(None, map(shutil.which, candidates)), None)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB"
