"""Follow an index: version in service, newest scan and near-duplicates, exchanged as it answers.

Whoever asks is given a collection and keeps it to the end of the answer, so that no answer mixes
versions or catalogs. A new version is opened and verified beside the old; until it can answer, and
for ever if it cannot, the old one does. After a scan the version stays open, and its catalog alone
is exchanged, with what filters were remembered of it. Near-duplicates that `lookalike graph` found
for the version since are exchanged alone, too.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

from cluster.collection import Collection
from cluster.workspace import Workspace
from index.artifact import ArtifactError
from index.versions import CURRENT, pointer_to, while_current

__all__ = ["Follower"]

logger = logging.getLogger(__name__)

CHECK_S = 1.0
"""At most so often are ``CURRENT`` and the other doors read, and only when somebody asks."""
RETRY_S = 60.0
"""What could not be opened is tried again after so long."""
RETRY_FACTOR = 10
"""And after so many times as long as the attempt took: a large index is not read all the time."""
NOT_THE_VERSION = "goes on answering, not the version put in service"
NOT_THE_SCAN = "goes on answering by an older scan, not the newest"
NOT_THE_GROUPS = "goes on collapsing by the near-duplicates of before"


class Follower:
    """The collection of an index's version in service. Thread-safe."""

    def __init__(self, workspace: Workspace, name: str) -> None:
        self._workspace = workspace
        self._name = name
        self._folder = workspace.folder("indexes", name)
        self._serving: Collection | None = None
        self._opening = threading.Lock()
        self._lock = threading.Lock()
        self._is_busy = False
        self._next_check_s = -math.inf
        self._retry_s: dict[bytes, float] = {}
        self._problems: dict[str, str] = {}

    @property
    def problem(self) -> str | None:
        """Why the version that ``CURRENT`` names, or what is newest of it, is not what answers."""
        return " ".join(list(self._problems.values())) or None  # others may change them

    def collection(self) -> Collection:
        """What to answer one question with, from its beginning to its end.

        Only the first call opens an index; later ones never wait for a new version or scan.

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
                serving = self._open()
                serving.keep_duplicates()
                self._serving = serving
            return serving

    def _check(self) -> None:
        """See whether there is another version, scan or grouping; if so, begin to open it."""
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
        """Whether a thread was started that opens what is newer."""
        try:
            wanted = self._folder.read_bytes(CURRENT)
        except FileNotFoundError:
            self._serving = None  # the index was deleted: nobody is to get answers from it
            return False
        except OSError as error:
            why = f"{self._folder}/{CURRENT} cannot be read ({error})"
            self._refuse(serving, NOT_THE_VERSION, why)
            return False
        if wanted == pointer_to(serving.version, serving.searcher.door):
            self._problems.pop(NOT_THE_VERSION, None)
        elif now >= self._retry_s.get(wanted, -math.inf):
            self._begin(serving, wanted, lambda: self._open(like=serving), NOT_THE_VERSION)
            return True
        return self._follow_scan(serving, now) or self._follow_duplicates(serving, now)

    def _follow_scan(self, serving: Collection, now: float) -> bool:
        """Whether a thread was started that reads a newer catalog."""
        try:
            scan = serving.newer_scan()
        except (ArtifactError, OSError) as error:
            self._refuse(serving, NOT_THE_SCAN, str(error))
            return False
        if scan is None:
            self._problems.pop(NOT_THE_SCAN, None)
        elif now >= self._retry_s.get(scan.encode(), -math.inf):
            self._begin(serving, scan.encode(), serving.after_scan, NOT_THE_SCAN)
            return True
        return False

    def _follow_duplicates(self, serving: Collection, now: float) -> bool:
        """Whether a thread was started that opens other near-duplicates of the same version."""
        try:
            found = serving.newer_duplicates()
        except (ArtifactError, OSError) as error:
            self._refuse(serving, NOT_THE_GROUPS, str(error))
            return False
        if found is None:
            self._problems.pop(NOT_THE_GROUPS, None)
        elif now >= self._retry_s.get(found.encode(), -math.inf):
            open_it = serving.with_newer_duplicates
            self._begin(serving, found.encode(), open_it, NOT_THE_GROUPS)
            return True
        return False

    def _begin(
        self, serving: Collection, wanted: bytes, open_it: Callable[[], Collection], instead: str
    ) -> None:
        # A daemon, since it only reads: a server that ends need not wait for it.
        threading.Thread(
            target=self._exchange,
            args=(serving, wanted, open_it, instead),
            name=f"open-{self._name}",
            daemon=True,
        ).start()

    def _exchange(
        self, serving: Collection, wanted: bytes, open_it: Callable[[], Collection], instead: str
    ) -> None:
        started_s = time.monotonic()
        try:
            collection = open_it()
            collection.prepare()
        except Exception as error:  # noqa: BLE001 - whatever it is, the old one answers on
            now = time.monotonic()
            self._retry_s[wanted] = now + max(RETRY_S, RETRY_FACTOR * (now - started_s))
            self._refuse(serving, instead, str(error) or type(error).__name__)
        else:
            self._serving = collection
            self._retry_s.pop(wanted, None)
            self._problems.pop(instead, None)
            scan = collection.catalog.corpus_id[:12]
            logger.info("index %s: %s answers now, scan %s", self._name, collection.version, scan)
        finally:
            self._is_busy = False

    def _refuse(self, serving: Collection, instead: str, why: str) -> None:
        problem = f"{serving.version} {instead}: {why}"
        if problem != self._problems.get(instead):
            logger.warning("index %s: %s", self._name, problem)
        self._problems[instead] = problem

    def _open(self, like: Collection | None = None) -> Collection:
        """Open the version in service; what it shares with ``like`` is taken over from there."""
        return while_current(
            self._folder, lambda: Collection.open(self._workspace, self._name, like=like)
        )
