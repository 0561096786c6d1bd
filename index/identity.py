"""What tells one content from another, and by which code it was made."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json

__all__ = ["digest", "library_versions"]


def digest(value: object) -> str:
    """Hex sha256 of a value's canonical JSON: sorted keys, no spaces, no NaN.

    >>> digest({"b": 1, "a": [2]}) == digest({"a": [2], "b": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def library_versions(*names: str) -> dict[str, str]:
    """Installed versions of lookalike and of the named distributions."""
    versions = {}
    for name in ("lookalike", *names):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
