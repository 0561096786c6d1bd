"""Follow an index: always the version in service, exchanged while queries are answered.

Whoever asks is given a collection and keeps it to the end of the answer, so that no answer mixes
versions. A new version is opened and verified beside the old; until it can answer, and for ever if
it cannot, the old one does.
"""

from __future__ import annotations

import logging
import math
import threading
import time

from cluster.collection import Collection
from cluster.workspace import Workspace
from index.versions import CURRENT, pointer_to, while_current

__all__ = ["Follower"]

logger = logging.getLogger(__name__)

CHECK_S = 1.0
"""At most so often is ``CURRENT`` read, and only when somebody asks."""
RETRY_S = 60.0
"""A version that could not be opened is tried again after so long."""
RETRY_FACTOR = 10
"""And after so many times as long as the attempt took: a large index is not read all the time."""


class Follower:
    """The collection of an index's version in service. Thread-safe.

    Attributes:
        problem: why the version that ``CURRENT`` names does not answer; None while it does.
    """

    def __init__(self, workspace: Workspace, name: str) -> None:
        self.problem: str | None = None
        self._workspace = workspace
        self._name = name
        self._folder = workspace.folder("indexes", name)
        self._serving: Collection | None = None
        self._opening = threading.Lock()
        self._lock = threading.Lock()
        self._is_busy = False
        self._next_check_s = -math.inf
        self._refused = b""
        self._retry_s = -math.inf

    def collection(self) -> Collection:
        """The version to answer one question with, from its beginning to its end.

        Only the first call opens an index; later ones never wait for a new version.

        Raises:
            MissingArtifactError: there is no such index, or not any more.
            CorruptArtifactError: the only version that could answer is damaged.
        """
        self._check()
        serving = self._serving
        if serving is not None:
            return serving
        with self._opening:
            serving = self._serving
            if serving is None:
                serving = self._serving = self._open()
            return serving

    def _check(self) -> None:
        """See whether another version was put in service; if so, begin to open it."""
        serving, now = self._serving, time.monotonic()
        with self._lock:
            if serving is None or self._is_busy or now < self._next_check_s:
                return
            self._is_busy, self._next_check_s = True, now + CHECK_S
        is_handed_over = False
        try:
            is_handed_over = self._follow(serving, now)
        finally:
            if not is_handed_over:
                self._is_busy = False

    def _follow(self, serving: Collection, now: float) -> bool:
        """Whether a thread was started that opens another version."""
        try:
            wanted = self._folder.read_bytes(CURRENT)
        except FileNotFoundError:
            self._serving = None  # the index was deleted: nobody is to get answers from it
            return False
        except OSError as error:
            self._refuse(serving, f"{self._folder}/{CURRENT} cannot be read ({error})")
            return False
        if wanted == pointer_to(serving.version, serving.searcher.door):
            self.problem = None
            return False
        if wanted == self._refused and now < self._retry_s:
            return False
        # A daemon, since it only reads: a server that ends need not wait for it.
        threading.Thread(
            target=self._exchange, args=(serving, wanted), name=f"open-{self._name}", daemon=True
        ).start()
        return True

    def _exchange(self, serving: Collection, wanted: bytes) -> None:
        started_s = time.monotonic()
        try:
            collection = self._open(like=serving)
            collection.prepare()
        except Exception as error:  # noqa: BLE001 - whatever it is, the old version answers on
            now = time.monotonic()
            self._refused = wanted
            self._retry_s = now + max(RETRY_S, RETRY_FACTOR * (now - started_s))
            self._refuse(serving, str(error) or type(error).__name__)
        else:
            self._serving, self.problem = collection, None
            logger.info("index %s: %s answers now", self._name, collection.version)
        finally:
            self._is_busy = False

    def _refuse(self, serving: Collection, why: str) -> None:
        problem = f"{serving.version} goes on answering, not the version put in service: {why}"
        if problem != self.problem:
            logger.warning("index %s: %s", self._name, problem)
        self.problem = problem

    def _open(self, like: Collection | None = None) -> Collection:
        """Open the version in service; what it shares with ``like`` is taken over from there."""
        return while_current(
            self._folder, lambda: Collection.open(self._workspace, self._name, like=like)
        )
