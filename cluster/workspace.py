"""The workspace: the one folder under which every artefact lies.

``corpora/NAME  pixels/NAME  runs/NAME  encoders/NAME  embeddings/NAME  indexes/NAME
classifiers/NAME  predictions/NAME  evaluations/NAME  labels.db``
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from index.artifact import ArtifactError, MissingArtifactError, open_door, publish, write_json
from index.folder import Folder
from index.lock import sole_writer

if TYPE_CHECKING:
    from encoders.encoder import Encoder

__all__ = ["Kind", "Workspace", "check_name"]

Kind = Literal[
    "corpora",
    "pixels",
    "runs",
    "encoders",
    "embeddings",
    "indexes",
    "classifiers",
    "predictions",
    "evaluations",
]

OLDER = "card-"
"""Start of the names of cards whose encoder lost its name to another."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_name(name: str, what: str = "name") -> str:
    """Return ``name`` if it can name a folder anywhere; ``ValueError`` otherwise.

    >>> check_name("mine-enc1")
    'mine-enc1'
    """
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{what} {name!r}: allowed are up to 100 letters, digits, '.', '_' and '-', starting "
            "with a letter or digit. Choose another."
        )
    return name


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where artefacts lie: a local folder, a shared one, or an object-store URI.

    Args:
        root: the folder; what may be shown.
        uri: how to reach it from elsewhere, if it was given as a URI; may carry keys.
    """

    root: Folder
    uri: str | None = field(default=None, repr=False, compare=False)

    @classmethod
    def at(cls, location: str | Path) -> Workspace:
        """The workspace at a path or URI; it need not exist yet."""
        text = str(location)
        return cls(Folder.at(text), text if "://" in text else None)

    @property
    def location(self) -> str:
        """The path or URI that `at` takes, a URI's options included; show ``root`` instead."""
        return self.uri or str(self.root)

    @property
    def labels_url(self) -> str:
        """SQLAlchemy URL of the label log: ``LOOKALIKE_LABELS_URL``, else SQLite in here."""
        if url := os.environ.get("LOOKALIKE_LABELS_URL"):
            return url
        if not self.root.is_local:
            raise ValueError(
                f"{self.root}: labels need a database, and SQLite needs a local or shared disk. "
                "Set LOOKALIKE_LABELS_URL to an SQLAlchemy URL, or use a --workspace on a disk."
            )
        path = str(self.root.local_path("labels.db"))
        if "?" in path:  # what follows it would be options, and another file be opened
            raise ValueError(
                f"{self.root}: labels cannot lie below a folder with '?' in its name. Rename it, "
                "or set LOOKALIKE_LABELS_URL to an SQLAlchemy URL."
            )
        return f"sqlite:///{path}"

    def folder(self, kind: Kind, name: str) -> Folder:
        """The folder of one artefact, whether or not it exists."""
        return self.root / kind / check_name(name, what=f"{kind} name")

    def names(self, kind: Kind) -> list[str]:
        """Names of the artefacts of a kind, half-written ones included, sorted."""
        return [name for name in (self.root / kind).names() if NAME.fullmatch(name)]

    def published(self, kind: Kind, door: str) -> list[str]:
        """Names of the artefacts of a kind that have their door, sorted."""
        return [name for name in self.names(kind) if self.folder(kind, name).exists(door)]

    def require(self, kind: Kind, name: str, *, door: str, make: str) -> Folder:
        """The folder of an artefact that has to be published.

        Raises:
            MissingArtifactError: naming what exists and ``make``, the command that makes it.
        """
        folder = self.folder(kind, name)
        if not folder.exists(door):
            known = ", ".join(self.published(kind, door)) or "none"
            raise MissingArtifactError(
                f"{name!r} in {self.root}/{kind}: not there. Existing: {known}. Make it: {make}"
            )
        return folder

    def open_encoder(self, name: str, *, encoder_id: str | None = None) -> Encoder:
        """Load a published encoder, its weights checked against its identity.

        Args:
            name: of the encoder.
            encoder_id: the one that vectors were made with, which may be that before the newest of
                the name; unless given, the newest.
        """
        from encoders.card import load_encoder

        folder = self.require(
            "encoders", name, door="card.json", make=f"lookalike pretrain RECIPE --name {name}"
        )
        older = "" if encoder_id is None else _older_card(encoder_id)
        door = older if older and folder.exists(older) else "card.json"
        body = open_door(folder, "encoder", door=door)
        return load_encoder(body, {file: folder.read_bytes(file) for file in body["files"]})

    def open_very_encoder(self, name: str, encoder_id: str) -> Encoder:
        """The encoder that a job under way began with, or ``ValueError`` where it is no more."""
        encoder = self.open_encoder(name, encoder_id=encoder_id)
        if encoder.encoder_id != encoder_id:
            raise ValueError(
                f"encoder {name!r}: is {encoder.encoder_id[:12]} now and was {encoder_id[:12]} when"
                " this job began. Run it again: what is made with the newer one is kept apart."
            )
        return encoder

    def encoder_id(self, name: str) -> str:
        """Identity of a published encoder, by its card alone."""
        folder = self.require(
            "encoders", name, door="card.json", make=f"lookalike pretrain RECIPE --name {name}"
        )
        return str(open_door(folder, "encoder", door="card.json", verify="sizes")["id"])

    def publish_encoder(
        self, name: str, encoder: Encoder, facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Publish an encoder under a name; returns its card.

        The one before it is kept: indexes in service are searched with it until they go over.

        Args:
            name: of the encoder.
            encoder: on any device.
            facts: further fields of the card, such as how it came about, and ``parents``.
        """
        from encoders.card import encoder_body, encoder_files

        folder = self.folder("encoders", name)
        with sole_writer(folder, "publishing this encoder"):
            kept = _keep_card(folder, encoder.encoder_id)
            files = encoder_files(encoder)
            for file, data in files.items():
                folder.write_atomic(file, data)
            body = {"parents": {}, "rows": {}, **encoder_body(encoder), **facts}
            card = publish(folder, "encoder", body, list(files), door="card.json")
            for file in set(folder.settled_names()) - set(files) - kept:
                if file.endswith(".safetensors") or file.startswith(OLDER):
                    folder.remove(file)
        return card


def _older_card(encoder_id: str) -> str:
    """Name of the card of an encoder that another has taken the name of."""
    return f"{OLDER}{encoder_id[:12]}.json"


def _keep_card(folder: Folder, encoder_id: str) -> set[str]:
    """Set the newest card aside for an encoder that takes its name; what is to be kept for it."""
    try:
        before = open_door(folder, "encoder", door="card.json", verify="sizes")
    except ArtifactError:  # none, or a damaged one, which nobody can use
        return set()
    if before["id"] == encoder_id:
        return {name for name in folder.names() if name.startswith(OLDER)} | _older_files(folder)
    name = _older_card(before["id"])
    write_json(folder, name, before)
    return {name, *before["files"]}


def _older_files(folder: Folder) -> set[str]:
    """Files of the encoders that were set aside."""
    found: set[str] = set()
    for name in folder.names():
        if name.startswith(OLDER):
            with contextlib.suppress(ArtifactError):
                found |= set(open_door(folder, "encoder", door=name, verify="sizes")["files"])
    return found
