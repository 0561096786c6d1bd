"""Small JSON files that carry their own checksum: what a door is, without being one.

``sha256`` is that of all other fields as canonical JSON. A file from before there were checksums
has none, and is taken as it is: the bit that turned the field's name into another changed no value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from index.artifact import CorruptArtifactError, digest, write_json
from index.folder import Folder

__all__ = ["read_sealed", "write_sealed"]

SEAL = "sha256"


def write_sealed(folder: Folder, name: str, value: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, sealed."""
    write_json(folder, name, {**value, SEAL: digest(dict(value))})


def read_sealed(folder: Folder, name: str, *, advice: str) -> dict[str, Any]:
    """What was written, without the seal.

    Args:
        folder: where it lies.
        name: of the file.
        advice: what to do if it is damaged, for the message.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptArtifactError: it is damaged, or no JSON object.
    """
    try:
        content = json.loads(folder.read_bytes(name))
        stated = content.pop(SEAL, None)
        is_whole = stated is None or stated == digest(content)
    except (ValueError, AttributeError, TypeError) as error:
        raise CorruptArtifactError(
            f"{folder}/{name}: no JSON object ({error}). {advice}"
        ) from error
    if not is_whole:
        raise CorruptArtifactError(
            f"{folder}/{name}: its content does not match its own checksum. {advice}"
        )
    return dict(content)
