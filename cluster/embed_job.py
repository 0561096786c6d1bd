"""embed: turn every picture of a corpus into a vector, exactly once.

1. Plan shards over the corpus' ids. 2. Ray Data actors read, decode, encode and write one shard at
a time: vectors as Parquet, thumbnails as Arrow, then the commit record. 3. Publish the door over
all records.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cluster.catalog import Catalog
from cluster.context import Context
from cluster.shards import Shard, ShardJob, ShardRow, plan_shards, read_picture
from cluster.workspace import Workspace, check_name
from encoders.encoder import Encoder
from encoders.picture import PictureError, open_picture, thumbnail, to_square
from index.artifact import (
    CorruptArtifactError,
    Folder,
    MissingArtifactError,
    digest,
    library_versions,
    open_door,
)
from index.embeddings import ShardBatch, ShardRecord, publish_embeddings, write_shard

__all__ = ["EmbedConfig", "EmbedWork", "embed"]

BATCH_ROWS = 256
FORMAT = "parquet-float16-1"


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedConfig:
    """Turn every picture of a corpus into a vector; run again to finish or to add what is new."""

    corpus: str
    """Name of the corpus."""
    encoder: str
    """Name of the encoder."""
    layer: Literal["backbone", "projector"] = "backbone"
    """Which output: backbone transfers better, projector finds near-copies better."""
    name: str | None = None
    """Name of the embedding set; CORPUS-ENCODER unless given."""
    thumbnail_edge: int = 256
    """Longest edge of the thumbnails, in pixels."""
    shard_rows: int = 2048
    """Pictures to a shard: the unit of work that a kill can cost."""
    error_budget: float = 0.25
    """Share of failed pictures at which the job stops."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        check_name(self.set_name, what="embedding set")
        if not 0 <= self.error_budget <= 1:
            raise ValueError(f"error_budget {self.error_budget}: a share between 0 and 1")
        if self.shard_rows < 1:
            raise ValueError(f"shard_rows {self.shard_rows}: at least 1 picture")
        if not 16 <= self.thumbnail_edge <= 1024:
            raise ValueError(f"thumbnail_edge {self.thumbnail_edge}: 16 to 1024 pixels")

    @property
    def set_name(self) -> str:
        """Name of the embedding set."""
        return self.name or f"{self.corpus}-{self.encoder}"


class EmbedWork:
    """Embeds one shard; one per actor, with its encoder loaded once.

    Args:
        location: the workspace.
        name: the embedding set.
        encoder: the encoder's name.
        layer: which output.
        thumbnail_edge: longest edge of thumbnails in pixels.
        num_threads: decoding threads.
    """

    def __init__(
        self, *, location: str, name: str, encoder: str, num_threads: int, **form: Any
    ) -> None:
        workspace = Workspace.at(location)
        self._folder = workspace.folder("embeddings", name)
        self._encoder = workspace.open_encoder(encoder)
        self._layer = form["layer"]
        self._edge = form["thumbnail_edge"]
        self._pool = ThreadPoolExecutor(num_threads)

    def __call__(self, shard: Shard) -> ShardRecord:
        """Write the shard's files; returns its record."""
        dim = self._encoder.dim(self._layer)
        vectors = np.zeros((len(shard.rows), dim), np.float32)
        statuses: list[str] = []
        hashes: list[bytes] = []
        thumbnails: list[bytes | None] = []
        for start in range(0, len(shard.rows), BATCH_ROWS):
            rows = shard.rows[start : start + BATCH_ROWS]
            decoded = list(self._pool.map(self._decode, rows))
            good = [i for i, item in enumerate(decoded) if item.square is not None]
            if good:
                squares = np.stack(
                    [square for item in decoded if (square := item.square) is not None]
                )
                vectors[[start + i for i in good]] = self._encoder.embed(squares, layer=self._layer)
            statuses += [item.status for item in decoded]
            hashes += [item.content_hash for item in decoded]
            thumbnails += [item.thumbnail for item in decoded]
        batch = ShardBatch(
            ids=np.array([row.id for row in shard.rows], np.int64),
            statuses=statuses,
            content_hashes=hashes,
            vectors=vectors,
        )
        return write_shard(self._folder, shard.name, batch, thumbnails=thumbnails)

    def _decode(self, row: ShardRow) -> _Decoded:
        status, data = read_picture(row)
        content_hash = hashlib.sha256(data).digest()
        if status != "ok":
            return _Decoded(status, content_hash, None, None)
        try:
            image = open_picture(data)
            square = to_square(image, self._encoder.config.preprocess)
            return _Decoded("ok", content_hash, square, thumbnail(image, self._edge))
        except PictureError as error:
            return _Decoded(error.status, content_hash, None, None)


@dataclass(frozen=True, slots=True)
class _Decoded:
    status: str
    content_hash: bytes
    square: np.ndarray | None
    thumbnail: bytes | None


def embed(config: EmbedConfig, context: Context) -> dict[str, Any]:
    """Bring the embedding set up to date with corpus and encoder.

    Raises:
        MissingArtifactError: corpus or encoder is not there.
        ErrorBudgetError: too many pictures failed.
    """
    workspace = context.workspace
    make = f"lookalike scan FOLDER --corpus {config.corpus}"
    catalog = Catalog.open(
        workspace.require("corpora", config.corpus, door="corpus.json", make=make)
    )
    encoder = workspace.open_encoder(config.encoder)
    folder = workspace.folder("embeddings", config.set_name)
    form = {"layer": config.layer, "thumbnail_edge": config.thumbnail_edge}
    key = digest([encoder.encoder_id, form, FORMAT])
    shards = plan_shards(catalog, key=key, shard_rows=config.shard_rows)
    if not shards:
        raise ValueError(
            f"corpus {config.corpus!r}: none of its pictures can be read ({catalog.counts()}). "
            "Look at the catalog's error column, mend the files and scan again."
        )
    arguments = {
        **form,
        "location": workspace.location,
        "name": config.set_name,
        "encoder": config.encoder,
        "num_threads": max(1, int(context.where.profile_settings().cpus_per_actor)),
    }
    job = ShardJob(
        f"embed {config.set_name}", folder, shards, EmbedWork, arguments, config.error_budget
    )
    body = _body(config, catalog, encoder, key)
    door = _publish_if_new(folder, job.run(context), body)
    return {
        "embeddings": config.set_name,
        "embeddings_id": door["id"],
        "encoder_id": encoder.encoder_id,
        "layer": config.layer,
        "dim": body["dim"],
        "pictures": door["rows"],
        "path": str(folder),
    }


def _body(config: EmbedConfig, catalog: Catalog, encoder: Encoder, key: str) -> dict[str, Any]:
    return {
        "embed_key": key,
        "dim": encoder.dim(config.layer),
        "config": {
            "layer": config.layer,
            "thumbnail_edge": config.thumbnail_edge,
            "dtype": "float16",
            "shard_rows": config.shard_rows,
        },
        "parents": {
            "corpus_id": catalog.corpus_id,
            "corpus_uid": catalog.uid,
            "encoder_id": encoder.encoder_id,
            # Names say where to look; the ids above say whether it is the right thing.
            "corpus": config.corpus,
            "encoder": config.encoder,
            "embeddings": config.set_name,
        },
        "versions": library_versions("torch", "torchvision", "pillow", "pyarrow", "ray"),
    }


def _publish_if_new(
    folder: Folder, records: list[dict[str, Any]], body: dict[str, Any]
) -> dict[str, Any]:
    """Publish, unless the door names the same files already."""
    try:
        door = open_door(folder, "embeddings", verify="sizes")
    except (MissingArtifactError, CorruptArtifactError):  # sizes differ where a shard was redone
        door = None
    files = {name: stated for record in records for name, stated in record["files"].items()}
    if door is not None and door["files"] == files:
        return door
    return publish_embeddings(folder, records, body)
