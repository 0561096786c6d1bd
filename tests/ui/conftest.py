"""A small workspace with real artefacts: drawn pictures, a fresh encoder, embeddings, an index."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image, ImageDraw
from rich.console import Console

from cluster.catalog import Catalog
from cluster.context import Context
from cluster.embed_work import EmbedWork
from cluster.plan import plan_shards
from cluster.scan_job import ScanConfig, scan
from cluster.where import Profile
from cluster.workspace import Workspace
from encoders.backbone import BackboneConfig
from encoders.encoder import Encoder, EncoderConfig
from encoders.heads import ProjectorConfig
from encoders.preprocess import PreprocessConfig
from index.build import build_index
from index.choose import IndexConfig
from index.embeddings import EmbeddingStore, publish_embeddings
from ui.app import build_app
from ui.config import UiConfig
from ui.session import Session

INDEX = "shapes-fresh"
SHAPES = ("disc", "cross", "frame")
PER_SHAPE = 16
HOSTILE_NAMES = (
    "a${40+2}b {{this}}.png",
    "<img src=x onerror=window.pwned=1>.png",
    "\u202egnp.\u05e9\u05dc\u05d5\u05dd.png",
    "line\nbreak'quote\".png",
    "=cmd('calc').png",
    f"{'long' * 50}.png",
)
COLOURS = {"disc": (200, 40, 40), "cross": (40, 150, 60), "frame": (50, 70, 200)}


def draw(shape: str, seed: int, size: int = 64) -> Image.Image:
    """A shape in its colour, a little moved and shaded, on a light ground."""
    rng = np.random.default_rng([SHAPES.index(shape), seed])
    image = Image.new("RGB", (size, size), tuple(int(x) for x in rng.integers(205, 256, 3)))
    pen = ImageDraw.Draw(image)
    ink = tuple(
        int(x) for x in np.clip(np.array(COLOURS[shape]) + rng.integers(-35, 36, 3), 0, 255)
    )
    x, y = (int(v) for v in rng.integers(6, 16, 2))
    box = (x, y, x + 42, y + 42)
    if shape == "disc":
        pen.ellipse(box, fill=ink)
    elif shape == "frame":
        pen.rectangle(box, outline=ink, width=8)
    else:
        pen.line(box, fill=ink, width=9)
        pen.line((box[0], box[3], box[2], box[1]), fill=ink, width=9)
    return image


def jpeg(image: Image.Image, quality: int = 80) -> bytes:
    """The picture as a JPEG file."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def shape_of(name: str) -> str:
    """The shape that a drawn picture's file name tells; hostile names are discs."""
    return next((shape for shape in SHAPES if name.startswith(shape)), "disc")


def make_workspace(root: Path) -> Workspace:
    """Draw, scan, embed and index, all with the real functions, without Ray."""
    folder = root / "pictures"
    folder.mkdir(parents=True)
    for shape in SHAPES:
        for seed in range(PER_SHAPE):
            draw(shape, seed).save(folder / f"{shape}-{seed:02d}.png")
    for seed, name in enumerate(HOSTILE_NAMES):
        draw("disc", 100 + seed).save(folder / name)
    workspace = Workspace.at(root / "workspace")
    context = Context(workspace, console=Console(file=io.StringIO()))
    scan(ScanConfig(source=str(folder), corpus="shapes"), context)
    encoder = Encoder.initialise(
        EncoderConfig(
            backbone=BackboneConfig(widths=(8, 16, 32)),
            projector=ProjectorConfig(hidden_dim=16, output_dim=8),
            preprocess=PreprocessConfig(size=32),
        ),
        seed=0,
    )
    workspace.publish_encoder("fresh", encoder, {"versions": {}})
    _embed(workspace, encoder)
    store = EmbeddingStore.open(workspace.folder("embeddings", INDEX))
    build_index(store, workspace.folder("indexes", INDEX), IndexConfig())
    return workspace


def _embed(workspace: Workspace, encoder: Encoder) -> None:
    catalog = Catalog.open(workspace.folder("corpora", "shapes"))
    form = {"layer": "backbone", "thumbnail_edge": 96, "decode_limit_s": 60.0}
    work = EmbedWork(
        location=workspace.location,
        name=INDEX,
        encoder="fresh",
        encoder_id=encoder.encoder_id,
        profile=Profile(cpus_per_actor=1),
        **form,
    )
    records = [work(shard) for shard in plan_shards(catalog, key="test", shard_rows=1000)]
    body = {
        "layer": "backbone",
        "config": {**form, "corpus": "shapes", "encoder": "fresh"},
        "parents": {
            "corpus_id": catalog.corpus_id,
            "corpus_uid": catalog.uid,
            "encoder_id": encoder.encoder_id,
            "corpus": "shapes",
            "encoder": "fresh",
            "embeddings": INDEX,
        },
        "versions": {},
    }
    publish_embeddings(workspace.folder("embeddings", INDEX), records, body)


def write_run(workspace: Workspace, name: str, *, num_steps: int = 40, state: str = "done") -> Path:
    """A pretraining run as the trainer writes it; returns its folder."""
    folder = workspace.folder("runs", name).make().local_path()
    (folder / "run.json").write_text(json.dumps({"state": state, "num_steps": num_steps}))
    lines = [
        {"step": step, "epoch": step / 10, "time_s": step * 0.5, "loss": 5 / (1 + step), "lr": 0.1}
        | ({"knn": 0.5 + step / 100, "embedding_std": 0.9} if step % 10 == 0 else {})
        for step in range(num_steps)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


class Shapes:
    """What tests have to know about the drawn pictures."""

    index = INDEX
    names = SHAPES
    hostile_names = HOSTILE_NAMES
    num_pictures = PER_SHAPE * len(SHAPES) + len(HOSTILE_NAMES)
    draw = staticmethod(draw)
    shape_of = staticmethod(shape_of)
    write_run = staticmethod(write_run)

    @staticmethod
    def jpeg(shape: str, seed: int, *, quality: int = 80) -> bytes:
        """A drawn picture as a JPEG file."""
        return jpeg(draw(shape, seed), quality)


@pytest.fixture(scope="session")
def shapes() -> Shapes:
    """The drawn pictures."""
    return Shapes()


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace's folder, made once; copy it before writing."""
    workspace = make_workspace(tmp_path_factory.mktemp("library"))
    return workspace.root.local_path()


@pytest.fixture
def workspace(built: Path, tmp_path: Path) -> Workspace:
    """A workspace of the test's own."""
    shutil.copytree(built, tmp_path / "workspace")
    return Workspace.at(tmp_path / "workspace")


@pytest.fixture
def session(workspace: Workspace) -> Session:
    """The session over it."""
    return Session(workspace, UiConfig())


def connected(workspace: Workspace) -> TestClient:
    """A client of the whole application, Gradio included."""
    app = build_app(workspace, UiConfig(max_upload_mb=1))
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


@pytest.fixture
def client(workspace: Workspace) -> Iterator[TestClient]:
    """A client over a workspace of the test's own."""
    with connected(workspace) as client:
        yield client


@pytest.fixture(scope="session")
def reader(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client for tests that change nothing, over a workspace that they share."""
    shared = tmp_path_factory.mktemp("shared") / "workspace"
    shutil.copytree(built, shared)
    with connected(Workspace.at(shared)) as client:
        yield client
