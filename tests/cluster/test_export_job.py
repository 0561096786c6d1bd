"""Exports that run without lookalike, or leave nothing behind."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cluster import export_job
from cluster.cli import main
from cluster.context import Context
from cluster.export_job import ExportConfig, export
from cluster.workspace import Workspace
from encoders.picture import to_square
from index.artifact import CorruptArtifactError, open_door, publish
from index.folder import Folder

# Run by an interpreter that finds neither our packages nor torch.
ALONE = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "encoders", "cluster", "index", "ui"}:
            raise ModuleNotFoundError(f"{name} is out of reach")

sys.meta_path.insert(0, Nothing())
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1])
vectors = session.run(["vectors"], {"pixels": np.load("pixels.npy")})[0]
np.save("vectors.npy", vectors)
assert not {"torch", "encoders"} & set(sys.modules)
"""


@pytest.fixture
def unchecked(monkeypatch):
    """Exports are not run, which takes seconds."""
    monkeypatch.setattr(export_job, "_lowest_cosine", lambda *_: 1.0)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_onnx_gives_the_encoders_vectors_in_onnxruntime_alone(library, tmp_path):
    out = tmp_path / "exported"
    report = export(ExportConfig(encoder="tiny", to="onnx", out=out), library.context)
    assert names(out) == ["README.md", "encoder.onnx", "export.json"]
    encoder = library.workspace.open_encoder("tiny")
    files = sorted(library.pictures.rglob("*.png"))
    squares = [to_square(Image.open(file), encoder.config.preprocess) for file in files]
    pixels = np.stack(squares)
    alone = tmp_path / "alone"
    alone.mkdir()
    np.save(alone / "pixels.npy", pixels)
    command = [sys.executable, "-I", "-c", ALONE, str(out / "encoder.onnx")]
    subprocess.run(command, cwd=alone, check=True, timeout=120)
    vectors = np.load(alone / "vectors.npy")
    assert vectors.shape == (30, encoder.dim())
    assert ((vectors * encoder.embed(pixels)).sum(axis=1) > 0.9999).all()
    assert report["pictures"] == 32
    assert report["lowest_cosine"] > 0.9999
    assert report["checked_on"] == "corpus digits, and two photographs"


@pytest.mark.parametrize(
    ("to", "layer", "files"),
    [
        ("torchscript", "projector", ["README.md", "encoder.pt", "export.json"]),
        (
            "safetensors",
            "projector",
            ["README.md", "export.json", "model.safetensors", "projector.safetensors"],
        ),
    ],
)
def test_each_format_is_checked_and_published_with_its_card(library, tmp_path, to, layer, files):
    out = tmp_path / "exported"
    export(ExportConfig(encoder="tiny", to=to, out=out, layer=layer), library.context)
    assert names(out) == files
    assert names(tmp_path) == ["exported", "pictures", "workspace"]
    door = open_door(Folder.at(out), "export")
    assert door["id"] == library.workspace.open_encoder("tiny").encoder_id
    assert (door["to"], door["layer"]) == (to, layer)
    card = (out / "README.md").read_text()
    assert door["id"] in card
    assert "On 32 pictures (corpus digits, and two photographs) the lowest cosine" in card


def wrong(monkeypatch, program):
    """Let the card's lines be others than those of the encoder."""
    monkeypatch.setattr(export_job, "usage", lambda *_: program)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("def embed(pixels): raise OSError('no such operator')", "no such operator"),
        ("def embed(pixels): return np.ones((len(pixels), 3), np.float32)", "32, 3"),
        ("def embed(pixels): return np.full((len(pixels), 16), 0.25, np.float32)", "lowest cosine"),
        ("def embed(pixels): return np.full((len(pixels), 16), np.nan, np.float32)", "cosine nan"),
    ],
)
def test_an_export_that_does_not_agree_leaves_nothing(
    library, tmp_path, monkeypatch, program, said
):
    wrong(monkeypatch, program)
    before = names(tmp_path)
    config = ExportConfig(encoder="tiny", to="safetensors", out=tmp_path / "exported")
    with pytest.raises(ValueError, match=rf"{said}.*above 0.9999. Nothing was written"):
        export(config, library.context)
    assert names(tmp_path) == before


def test_a_disk_that_fills_while_it_is_published_leaves_nothing(
    library, tmp_path, monkeypatch, unchecked
):
    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_job, "publish", full)
    before = names(tmp_path)
    with pytest.raises(OSError, match="No space"):
        export(
            ExportConfig(encoder="tiny", to="safetensors", out=tmp_path / "exported"),
            library.context,
        )
    assert names(tmp_path) == before


@pytest.fixture
def exported(library, tmp_path, unchecked):
    """A folder with an export."""
    out = tmp_path / "exported"
    out.mkdir()  # an empty folder may be there
    export(ExportConfig(encoder="tiny", to="safetensors", out=out), library.context)
    return out


def test_the_same_export_again_is_left_as_it_is(library, exported):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in exported.iterdir()}
    config = ExportConfig(encoder="tiny", to="safetensors", out=exported)
    assert export(config, library.context)["note"] == "was there already, unchanged"
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in exported.iterdir()}
    assert after == before


def test_another_export_is_not_overwritten(library, exported):
    config = ExportConfig(encoder="tiny", to="safetensors", out=exported, layer="projector")
    with pytest.raises(
        FileExistsError, match=r"holds the safetensors export of encoder 'tiny' \(b"
    ):
        export(config, library.context)


def test_a_damaged_export_is_not_taken_for_one_that_is_done(library, exported):
    weights = exported / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(FileExistsError, match=r"damaged export .*sha256 differs") as caught:
        export(ExportConfig(encoder="tiny", to="safetensors", out=exported), library.context)
    assert isinstance(caught.value.__cause__, CorruptArtifactError)


def test_files_of_other_people_are_never_overwritten(library, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "README.md").write_text("mine")
    for out in (mine, mine / "README.md"):
        with pytest.raises(FileExistsError, match=r"holds other files.*another --out"):
            export(ExportConfig(encoder="tiny", to="safetensors", out=out), library.context)
    assert (mine / "README.md").read_text() == "mine"


def test_a_folder_that_fills_during_the_check_keeps_what_came(library, tmp_path, monkeypatch):
    out = tmp_path / "exported"

    def somebody_comes(*_args):
        out.mkdir()
        (out / "theirs").touch()
        return 1.0

    monkeypatch.setattr(export_job, "_lowest_cosine", somebody_comes)
    with pytest.raises(FileExistsError, match="in the meantime"):
        export(ExportConfig(encoder="tiny", to="safetensors", out=out), library.context)
    assert names(out) == ["theirs"]
    assert names(tmp_path) == ["exported", "pictures", "workspace"]


def test_without_any_corpus_photographs_check_the_export(tmp_path, make_encoder, unchecked):
    context = Context(Workspace.at(tmp_path / "workspace"), console=Console(file=io.StringIO()))
    make_encoder(context.workspace)
    config = ExportConfig(encoder="tiny", to="safetensors", out=tmp_path / "exported")
    report = export(config, context)
    assert (report["pictures"], report["checked_on"]) == (2, "photographs that scikit-learn brings")


@pytest.mark.parametrize(
    ("more", "row"),
    [
        (
            {
                "training": {
                    "recipe": {"method": {"name": "byol"}},
                    "steps": 9000,
                    "num_pictures": 60,
                }
            },
            "| trained by | byol, 9,000 steps on 60 pictures |",
        ),
        (
            {"training": {"recipe": {"method": {}}, "steps": 9, "num_pictures": 60}},
            "| trained by | pretraining, 9 steps on 60 pictures |",
        ),
        (
            {"imported": {"source": "timm:resnet10t", "license": "apache-2.0"}},
            "| imported from | source timm:resnet10t, license apache-2.0 |",
        ),
    ],
)
def test_the_card_says_where_the_weights_come_from(library, tmp_path, unchecked, more, row):
    folder = library.folder("encoders", "tiny")
    body = json.loads(folder.read_bytes("card.json"))
    del body["door_sha256"]
    publish(folder, "encoder", {**body, **more}, body["files"], door="card.json")
    out = tmp_path / "exported"
    export(ExportConfig(encoder="tiny", to="safetensors", out=out), library.context)
    assert row in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--encoder", "huge", "--to", "onnx"], "Existing: tiny"),
        (["--encoder", "tiny", "--to", "tflite"], "'tflite'"),
        (["--encoder", "tiny", "--to", "timm"], "onnx, torchscript or safetensors"),
        (["--encoder", "tiny", "--to", "onnx", "--corpus", "cats"], "Existing: digits"),
    ],
)
def test_what_cannot_be_exported_says_what_can(library, tmp_path, capsys, options, said):
    arguments = ["export", *options, "--out", str(tmp_path / "exported")]
    try:
        status = main([*arguments, "--workspace", library.location])
    except SystemExit as stop:  # tyro's own
        status = stop.code
    assert status in (1, 2)
    assert said in capsys.readouterr().err
    assert not (tmp_path / "exported").exists()


def test_a_folder_is_made_only_inside_one_that_is_there(library, tmp_path):
    out = tmp_path / "nowhere" / "exported"
    with pytest.raises(FileNotFoundError, match="Make it, or choose another --out"):
        export(ExportConfig(encoder="tiny", to="safetensors", out=out), library.context)
    assert not out.parent.exists()
