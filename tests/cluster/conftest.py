"""A small workspace with real artefacts for tests of jobs: made in a second, without Ray."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import logging
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import pytest
import ray.train
import ray.train.torch
import torch
from PIL import Image
from rich.console import Console

from cluster import pretrain_job, shard_job
from cluster.catalog import Catalog
from cluster.context import Context
from cluster.picture_uri import Place, place_of
from cluster.pretrain_worker import train_worker
from cluster.scan_job import ScanConfig, scan
from cluster.workspace import Workspace
from encoders.backbone import BackboneConfig
from encoders.encoder import Encoder, EncoderConfig, embed_picture
from encoders.heads import ProjectorConfig
from encoders.preprocess import PreprocessConfig
from index.build import build_index
from index.choose import IndexConfig
from index.embeddings import EmbeddingStore, ShardBatch, publish_embeddings, write_shard
from index.folder import Folder

CORPUS, ENCODER = "digits", "tiny"


def quiet_context(workspace: Workspace) -> Context:
    """A context whose prose goes nowhere."""
    return Context(workspace, console=Console(file=io.StringIO()))


def publish_encoder(workspace: Workspace, name: str = ENCODER, *, seed: int = 0) -> Encoder:
    """A fresh encoder that sees pictures at 16 pixels."""
    torch.set_num_threads(1)
    encoder = Encoder.initialise(
        EncoderConfig(
            backbone=BackboneConfig(widths=(4, 8, 16)),
            projector=ProjectorConfig(hidden_dim=8, output_dim=8),
            preprocess=PreprocessConfig(size=16),
        ),
        seed=seed,
    )
    workspace.publish_encoder(name, encoder, {"versions": {}})
    return encoder


def publish_vectors(
    workspace: Workspace, encoder: Encoder, *, corpus: str = CORPUS, encoder_name: str = ENCODER
) -> EmbeddingStore:
    """The embedding set CORPUS-ENCODER, in one shard."""
    catalog = Catalog.open(workspace.folder("corpora", corpus))
    rows = catalog.rows(catalog.ok["id"].to_numpy())
    data = [Path(row.uri).read_bytes() for row in rows]
    batch = ShardBatch(
        ids=np.array([row.id for row in rows], np.int64),
        statuses=["ok"] * len(rows),
        content_hashes=[hashlib.sha256(item).digest() for item in data],
        vectors=np.stack([embed_picture(encoder, item, layer="backbone") for item in data]),
    )
    name = f"{corpus}-{encoder_name}"
    folder = workspace.folder("embeddings", name)
    record = write_shard(folder, "00000-test", batch, thumbnails=[None] * len(rows))
    parents = {
        "corpus_id": catalog.corpus_id,
        "corpus_uid": catalog.uid,
        "encoder_id": encoder.encoder_id,
        "corpus": corpus,
        "encoder": encoder_name,
        "embeddings": name,
    }
    body = {"layer": "backbone", "config": {"layer": "backbone"}, "parents": parents}
    publish_embeddings(folder, [record], {**body, "versions": {}})
    return EmbeddingStore.open(folder)


TrainHere = Callable[[pytest.MonkeyPatch], None]
FullDisk = Callable[[int], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True)
class Library:
    """A workspace with a corpus of digits in folders, an encoder, embeddings and an index."""

    workspace: Workspace
    pictures: Path
    index: str = f"{CORPUS}-{ENCODER}"

    @property
    def context(self) -> Context:
        return quiet_context(self.workspace)

    @property
    def location(self) -> str:
        """For ``--workspace``."""
        return self.workspace.location

    def folder(self, kind: Any, name: str) -> Folder:
        return self.workspace.folder(kind, name)

    @property
    def catalog(self) -> Catalog:
        return Catalog.open(self.folder("corpora", CORPUS))

    def rescan(self) -> None:
        scan(ScanConfig(source=str(self.pictures), corpus=CORPUS, labels="folder"), self.context)


@pytest.fixture(scope="session")
def quiet() -> Callable[[Workspace], Context]:
    """Makes a context whose prose goes nowhere."""
    return quiet_context


class MakeEncoder(Protocol):
    """Publishes a tiny encoder; see the fixture of this name."""

    def __call__(self, workspace: Workspace, name: str = ..., *, seed: int = ...) -> Encoder: ...


@pytest.fixture
def make_encoder() -> MakeEncoder:
    """Publishes a tiny fresh encoder in a workspace."""
    return publish_encoder


@pytest.fixture(scope="session")
def train_here() -> TrainHere:
    """Has a patch make runs train in this process, as their rank 0, and not under Ray Train."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        rank = SimpleNamespace(get_world_rank=lambda: 0)
        patch.setattr(ray.train, "get_context", lambda: rank)
        patch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
        patch.setattr(pretrain_job, "fit", lambda plan, *_, **__: train_worker({"plan": plan}))

    return apply


@pytest.fixture(scope="session")
def full_disk() -> FullDisk:
    """A block in which no file of this process can grow beyond so many bytes.

    The kernel refuses in mid-write, as on a full disk (EFBIG for ENOSPC). A block, and nothing that
    outlasts the test: pytest itself may be writing its report to a file that is longer.
    """

    @contextlib.contextmanager
    def block(num_bytes: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return block


@pytest.fixture
def make_vectors() -> Any:
    """Publishes the embedding set of a corpus and an encoder."""
    return publish_vectors


@pytest.fixture
def library(tmp_path: Path, pictures: Any) -> Library:
    """Thirty digits in ten folders, scanned with labels, embedded and indexed."""
    folder = pictures(30, size=24, formats=["png"])
    made = Library(Workspace.at(tmp_path / "workspace"), folder)
    made.rescan()
    store = publish_vectors(made.workspace, publish_encoder(made.workspace))
    build_index(store, made.folder("indexes", made.index), IndexConfig(num_queries=10))
    return made


class Listed(Library):
    """A library whose corpus is a list, each picture with the day on which it was taken."""

    def list(self, days: Sequence[str], labels: Sequence[str] | None = None) -> None:
        """Have these be what the list says from now on, and scan it."""
        names = sorted(self.pictures.rglob("*.png"), key=lambda path: path.name)
        rows = zip(names, days, labels or days, strict=True)
        lines = [f"{name},{day},{label}" for name, day, label in rows]
        path = self.pictures.parent / "list.csv"
        path.write_text("\n".join(["path,day,kind", *lines]) + "\n")
        config = ScanConfig(
            source=str(path), corpus=CORPUS, labels="kind", columns="taken=day:timestamp"
        )
        scan(config, self.context)


@pytest.fixture
def listed(tmp_path: Path, pictures: Any) -> Listed:
    """Ten digits, taken on the first ten days of 2026, from a list, embedded and indexed."""
    made = Listed(Workspace.at(tmp_path / "workspace"), pictures(10, size=24, formats=["png"]))
    made.list([f"2026-01-{day:02d}" for day in range(1, 11)])
    store = publish_vectors(made.workspace, publish_encoder(made.workspace))
    build_index(store, made.folder("indexes", made.index), IndexConfig(num_queries=2))
    return made


@pytest.fixture(scope="session")
def s3_options() -> Iterator[str]:
    """Options of URIs for an S3 server on this machine, a process's thread that speaks HTTP."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for every request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        yield f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    finally:
        server.stop()


# The emulator's own server answers one connection at a time, and clients keep theirs open.
GCS_SERVER = """
import functools
from http.server import ThreadingHTTPServer
from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

storage = Storage(use_memory_fs=True)
create_bucket("pictures", storage)
server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(RequestHandler, storage))
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@pytest.fixture(scope="session")
def gcs_options() -> Iterator[str]:
    """As `s3_options`, for a server that speaks Google's interface, with a bucket ``pictures``.

    A process of its own: Arrow's client waits for some answers without letting go of Python's lock.
    """
    program = [sys.executable, "-c", GCS_SERVER]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(program, text=True, **pipes) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            yield f"endpoint_override=127.0.0.1:{port}&scheme=http&retry_limit_seconds=20"
        finally:
            server.kill()


@pytest.fixture(scope="session", params=["s3", "gs"])
def bucket(request: pytest.FixtureRequest) -> Place:
    """The bucket ``pictures`` of a real server of either kind on this machine."""
    if request.param == "gs":
        return place_of(f"gs://anonymous@pictures?{request.getfixturevalue('gcs_options')}")
    options = request.getfixturevalue("s3_options")
    place_of(f"s3://x?{options}&allow_bucket_creation=true").fs.create_dir("pictures")
    return place_of(f"s3://pictures?{options}")


def do_shards_here(job: Any, pending: Any, plan: str, context: Any) -> Iterator[Any]:
    """Instead of Ray's actors, one of them in this process; its source is run by others, too."""
    import json

    from cluster.shard_actor import ShardActor

    location = context.workspace.location
    num_bytes = sum(shard.num_bytes for shard in pending)
    profile = context.where.profile_settings().for_work(
        sum(map(len, pending)), num_bytes, len(pending)
    )
    arguments = {**job.arguments, "profile": profile}
    actor = ShardActor(location, job.folder.path, job.make_work, arguments)
    for position, shard in enumerate(pending):
        yield json.loads(actor.do(plan, position, shard.number))


@pytest.fixture
def shards_here(monkeypatch: pytest.MonkeyPatch) -> str:
    """Has shards done without Ray, by the actor's own code; is the Python that does so elsewhere.

    Indented as the code is that tests give to the `forge`.
    """
    monkeypatch.setattr(shard_job, "_distribute", do_shards_here)
    source = (
        "from typing import Any, Iterator\n"
        "from cluster import shard_job\n"
        f"{inspect.getsource(do_shards_here)}"
        "shard_job._distribute = do_shards_here\n"
    )
    return textwrap.indent(source, "    ")


class ScanHere(Protocol):
    """Scans a source; returns the report and the catalog."""

    def __call__(self, source: Any, **options: Any) -> tuple[dict[str, Any], Catalog]: ...


@pytest.fixture
def scan_here(tmp_path: Path) -> ScanHere:
    """Scans any source into the corpus ``mine`` of a fresh workspace."""
    context = quiet_context(Workspace.at(tmp_path / "scanned"))

    def run(source: Any, **options: Any) -> tuple[dict[str, Any], Catalog]:
        report = scan(ScanConfig(source=str(source), corpus="mine", **options), context)
        return report, Catalog.open(context.workspace.folder("corpora", "mine"))

    return run


def png(seed: int, edge: int = 8) -> bytes:
    """A small picture's file, another one for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 255, (edge, edge, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def make_png() -> Callable[..., bytes]:
    """Makes a small picture's file from a seed."""
    return png


@pytest.fixture(scope="session")
def endless_jpeg() -> bytes:
    """A real picture that takes minutes to decode: a JPEG that refines itself thousands of times.

    Valid to libjpeg, and some hundred kilobytes: such files are sent as attacks.
    """
    buffer = io.BytesIO()
    Image.new("L", (6000, 6000), 90).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last_scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last_scan * 4000 + data[-2:]


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """Of a workspace of its own, empty."""
    return quiet_context(Workspace.at(tmp_path / "workspace"))


@pytest.fixture
def catalog(context: Context, pictures: Any) -> Catalog:
    """Twenty pictures of 16 px, scanned."""
    scan(ScanConfig(source=str(pictures(20, size=16)), corpus="mine"), context)
    return Catalog.open(context.workspace.folder("corpora", "mine"))
