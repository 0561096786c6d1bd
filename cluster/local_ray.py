"""A Ray of this machine's own: its memory, its token, and a start that says nothing."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cluster.where import CHECKOUT, num_cores

__all__ = ["local_object_store_bytes", "start", "token_file"]

logger = logging.getLogger(__name__)

MIB = 1 << 20
LEAST_STORE_BYTES = 75 * MIB
"""Ray takes no smaller object store."""
TOO_LATE = "timed out during startup"
"""What Ray says of a node that did not report in time, which cannot be set."""
TOO_LITTLE = "After taking into account object store"
"""What Ray says where less than 100 MB and 5 % of the memory would be left beside its store."""


def token_file() -> Path:
    """The file where Ray keeps the token that a cluster's members show each other."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(named) if named else Path.home() / ".ray" / "auth_token"


def local_object_store_bytes(memory_bytes: int, free_bytes: int) -> int:
    """Shared memory of a Ray started here: a tenth of the memory, between 200 MiB and 2 GiB.

    But at most a third of what is free, since Ray does not start unless enough is left beside it;
    and at least the 75 MiB that Ray asks for.

    >>> local_object_store_bytes(8 * 2**30, 6 * 2**30) // 2**20
    819
    >>> local_object_store_bytes(8 * 2**30, 300 * 2**20) // 2**20
    100
    """
    tenth = min(max(memory_bytes // 10, 200 * MIB), 2048 * MIB)
    return max(min(tenth, free_bytes // 3), LEAST_STORE_BYTES)


def start(num_cpus: int, object_store_bytes: int | None) -> None:
    """Start a Ray on this machine, for this process.

    Args:
        num_cpus: logical CPUs.
        object_store_bytes: shared memory; None for what `local_object_store_bytes` says.

    Raises:
        ConnectionError: it was not there in time.
        ValueError: there is too little memory left for it.
    """
    import ray

    memory_bytes, free_bytes = _memory_as_ray_sees_it()
    store = object_store_bytes or local_object_store_bytes(memory_bytes, free_bytes)
    _provide_token()
    try:
        # Workers inherit the path: from any folder, and before any other package of these names.
        with _on_python_path(CHECKOUT), _held_back_stderr():
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                object_store_memory=store,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:  # Ray raises just that
        if TOO_LITTLE in str(error):
            raise ValueError(
                f"Ray did not start on this machine: of its {memory_bytes // MIB:,} MiB of memory "
                f"{max(0, free_bytes) // MIB:,} MiB are free, of which Ray's object store takes "
                f"{store // MIB:,} MiB. At least 100 MB or 5 % have to be left beside it. End "
                "other programs, raise the container's memory limit, or join a Ray that runs, "
                "with --address."
            ) from error
        if TOO_LATE not in str(error):
            raise
        raise ConnectionError(
            f"Ray did not start on this machine within its 30 s: {os.getloadavg()[0]:.1f} programs "
            f"want its {num_cores()} cores. Nothing was begun. Try again when it is less busy, or "
            "join a Ray that runs, with --address."
        ) from error


def _memory_as_ray_sees_it() -> tuple[int, int]:
    """Bytes in all and bytes free: a container's limit and use, where there is one."""
    from ray._common.utils import get_system_memory
    from ray._private.utils import estimate_available_memory

    return int(get_system_memory()), int(estimate_available_memory())


def _provide_token() -> None:
    """See to it that Ray finds a token: it makes one that every user of the machine may read.

    Where no file can be kept, the token is in the environment, for this process and its children.
    """
    if os.environ.get("RAY_AUTH_MODE", "token") != "token" or "RAY_AUTH_TOKEN" in os.environ:
        return
    try:
        file = token_file()
        if not file.is_file() and "RAY_AUTH_TOKEN_PATH" not in os.environ:
            _write_private(file, secrets.token_hex(32))
        file.read_bytes()
    except (OSError, RuntimeError) as error:  # the latter where nobody knows a home
        if "RAY_AUTH_TOKEN_PATH" in os.environ:
            return  # Ray says what is wrong with it
        logger.info("Ray's token is kept in no file: %s", error)
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        return
    _close(file)


def _write_private(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=file.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as written:
            written.write(text)
        Path(temporary).replace(file)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _close(file: Path) -> None:
    """Only its owner may read a token; ``ray get-auth-token`` lets every user."""
    if not stat.S_IMODE(file.stat().st_mode) & 0o077:
        return
    try:
        file.chmod(0o600)
    except OSError as error:
        logger.warning(
            "%s: other users of this machine may read Ray's token, and run code as you while Ray "
            "runs; its mode cannot be changed (%s). Only you should be able to read it: run chmod "
            "600 on it, or set RAY_AUTH_TOKEN_PATH to a file of your own.",
            file,
            error,
        )


@contextlib.contextmanager
def _held_back_stderr() -> Iterator[None]:
    """Keep what Ray's C++ core says on starting, past Python's sys.stderr; shown if it fails."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        except BaseException:
            held_back.seek(0)
            os.write(terminal, held_back.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


@contextlib.contextmanager
def _on_python_path(folder: Path) -> Iterator[None]:
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), before]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
