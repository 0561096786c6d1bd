"""embed: turn every picture of a corpus into a vector, exactly once.

1. Plan shards over the corpus' ids. 2. Ray Data actors read, decode, encode and write one shard at
a time: vectors as Parquet, thumbnails as Arrow, then the commit record. 3. Publish the door over
all records.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import Any, Literal

from cluster.catalog import Catalog, open_corpus
from cluster.context import Context
from cluster.decode_limit import DECODE_LIMIT_S, check_decode_limit
from cluster.embed_work import EmbedWork, work_report
from cluster.plan import plan_shards
from cluster.shard_job import ShardJob, check_error_budget
from cluster.workspace import check_name
from encoders.encoder import Encoder
from index.artifact import (
    CorruptArtifactError,
    MissingArtifactError,
    digest,
    library_versions,
    open_door,
    read_door,
)
from index.embeddings import (
    EmbeddingStore,
    publish_embeddings,
)
from index.folder import Folder
from index.lock import sole_writer

__all__ = ["EmbedConfig", "embed"]

logger = logging.getLogger(__name__)

SHOWN = 10
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
    """Most pixels that the longest edge of a thumbnail has; it has three quarters of it or more."""
    shard_rows: int = 2048
    """Pictures to a shard: the unit of work that a kill can cost."""
    error_budget: float = 0.25
    """Share of failed pictures at which the job stops."""
    retry_failed: bool = False
    """Do shards again that have failed pictures, such as crashed ones after an upgrade."""
    decode_limit_s: float = DECODE_LIMIT_S
    """Seconds after which a picture that is still being decoded is left out as crashed."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        check_name(self.corpus, what="corpus")
        check_name(self.encoder, what="encoder")
        check_name(self.set_name, what="embedding set")
        check_error_budget(self.error_budget)
        check_decode_limit(self.decode_limit_s)
        for name, least, most, advice in (
            ("thumbnail_edge", 16, 1024, "256 suits a grid of results"),
            ("shard_rows", 1, 1_000_000, "2048 costs little when a worker dies"),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name} {value}: has to be {least} to {most}; {advice}.")

    @property
    def set_name(self) -> str:
        """Name of the embedding set."""
        return self.name or f"{self.corpus}-{self.encoder}"

    @property
    def form(self) -> dict[str, Any]:
        """What decides the result beside pictures and encoder."""
        return {"layer": self.layer, "thumbnail_edge": self.thumbnail_edge}


def embed(config: EmbedConfig, context: Context) -> dict[str, Any]:
    """Bring the embedding set up to date with corpus and encoder.

    Raises:
        MissingArtifactError: corpus or encoder is not there.
        ErrorBudgetError: too many pictures failed.
        ValueError: the set belongs to another corpus, encoder or layer; another process writes it.
    """
    workspace = context.workspace
    catalog = open_corpus(workspace, config.corpus)
    encoder = workspace.open_encoder(config.encoder)
    folder = workspace.folder("embeddings", config.set_name)
    key = digest([encoder.encoder_id, config.form, FORMAT])
    shards = plan_shards(catalog, key=key, shard_rows=config.shard_rows)
    if not shards:
        raise ValueError(
            f"corpus {config.corpus!r}: none of its pictures can be read ({catalog.counts()}). "
            "Look at the catalog's error column, mend the files and scan again."
        )
    arguments = {
        **config.form,
        "location": workspace.location,
        "name": config.set_name,
        "encoder": config.encoder,
        "encoder_id": encoder.encoder_id,
        "decode_limit_s": config.decode_limit_s,
    }
    job = ShardJob(
        f"embed {config.set_name}",
        folder,
        shards,
        EmbedWork,
        arguments,
        config.error_budget,
        config.retry_failed,
    )
    body = _body(config, catalog, encoder, key)
    with sole_writer(folder, "embedding into this set"):
        previous, standing = _published(folder), _standing(folder)
        _require_same_lineage(standing, body, folder)
        records = job.run(context)
        door = _publish_if_new(folder, previous, standing, records, body)
        job.clear(door, standing or door)
    return {
        "embeddings": config.set_name,
        "embeddings_id": door["id"],
        "encoder_id": encoder.encoder_id,
        "layer": config.layer,
        "dim": body["dim"],
        "pictures": door["rows"],
        "bad_pictures": _bad_pictures(EmbeddingStore(folder, door), catalog),
        "work": work_report(records),
        "path": str(folder),
    }


def _bad_pictures(store: EmbeddingStore, catalog: Catalog) -> list[dict[str, str]]:
    bad = store.bad_rows(SHOWN)
    rows = catalog.rows([picture_id for picture_id, _ in bad])
    return [{"file": row.uri, "status": status} for row, (_, status) in zip(rows, bad, strict=True)]


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


def _published(folder: Folder) -> dict[str, Any] | None:
    """The door as it is; None where there is none, or one that is to be replaced."""
    try:
        return open_door(folder, "embeddings", verify="sizes")
    except MissingArtifactError:
        return None
    except CorruptArtifactError as error:
        logger.warning("the embedding set is damaged and will be mended: %s", error)
        return None


def _standing(folder: Folder) -> dict[str, Any] | None:
    """The door as it stands, whatever became of its files."""
    with contextlib.suppress(MissingArtifactError, CorruptArtifactError):
        return read_door(folder, "embeddings")
    return None


def _require_same_lineage(
    standing: dict[str, Any] | None, body: dict[str, Any], folder: Folder
) -> None:
    """Refuse to replace a set of another corpus, encoder or layer; newer versions are welcome."""
    if standing is None:
        return
    was = {**standing["parents"], **standing["config"]}
    now = {**body["parents"], **body["config"]}
    for field in ("corpus", "corpus_uid", "encoder", "layer"):
        if was[field] != now[field]:
            raise ValueError(
                f"{folder}: this embedding set was made with {field} {was[field]!r}, not "
                f"{now[field]!r}, and will not be replaced. Choose another --name."
            )


def _publish_if_new(
    folder: Folder,
    previous: dict[str, Any] | None,
    standing: dict[str, Any] | None,
    records: list[dict[str, Any]],
    body: dict[str, Any],
) -> dict[str, Any]:
    """Publish, unless the door names the same files already."""
    files = {name: stated for record in records for name, stated in record["files"].items()}
    if previous is not None and previous["files"] == files:
        return previous

    def refuse_stale() -> None:
        now = _standing(folder)
        if now is not None and now["files"] not in (files, (standing or {}).get("files")):
            raise ValueError(
                f"{folder}: another job published this set while this one was under way (a bucket "
                "has no locks). Run it again: shards that are done are kept."
            )

    return publish_embeddings(folder, records, body, unless=refuse_stale)
