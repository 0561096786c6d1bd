"""Weights from elsewhere, as good an encoder as any."""

import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from torchvision.models import ResNet18_Weights, resnet18

from cluster import export_job
from cluster.cli import main
from cluster.context import Context
from cluster.embed_job import EmbedConfig, embed
from cluster.evaluate_job import EvaluateConfig, evaluate
from cluster.export_job import ExportConfig, export
from cluster.import_job import ImportConfig, import_encoder
from cluster.index_job import IndexJobConfig, index_embeddings
from cluster.search_job import SearchConfig, search
from cluster.workspace import Workspace
from encoders.preprocess import PreprocessConfig
from index.artifact import open_door


@pytest.fixture
def context(tmp_path):
    return Context(Workspace.at(tmp_path / "workspace"), console=Console(file=io.StringIO()))


def card_of(context, name):
    return open_door(context.workspace.folder("encoders", name), "encoder", door="card.json")


@pytest.mark.ray
def test_an_imported_encoder_embeds_searches_and_is_evaluated_as_any_other(local_ray, library):
    source = "torchvision:resnet18:random"
    context = library.context
    imported = import_encoder(ImportConfig(source=source, name="theirs", size=32), context)
    assert (imported["dim"], imported["size"]) == (512, 32)
    assert embed(EmbedConfig(corpus="digits", encoder="theirs"), context)["dim"] == 512
    index_embeddings(IndexJobConfig(corpus="digits", encoder="theirs"), context)
    query = next(iter(sorted(library.pictures.rglob("*.png"))))
    hits = search(SearchConfig(query=str(query), index="digits-theirs", k=3), context)["hits"]
    assert hits[0]["file"] == str(query)
    assert hits[0]["score"] > 0.999
    config = EvaluateConfig(corpus="digits", encoder=("theirs",), labels_per_class=(1,))
    report = evaluate(config, context)
    assert list(report["figures"]) == ["imported", "random init", "raw pixels"]
    assert f"theirs is imported ({source}): whether it learnt from" in report["notes"][0]


def test_published_weights_come_with_their_preprocessing_and_a_card_of_where_from(
    context, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    published = ResNet18_Weights.IMAGENET1K_V1
    torch.save(resnet18().state_dict(), cache / published.url.rsplit("/", 1)[1])
    source = "torchvision:resnet18:IMAGENET1K_V1"
    report = import_encoder(ImportConfig(source=source, name="theirs"), context)
    card = card_of(context, "theirs")
    assert card["imported"] == {
        "source": source,
        "weights": "ResNet18_Weights.IMAGENET1K_V1",
        "url": published.url,
    }
    encoder = context.workspace.open_encoder("theirs")
    assert encoder.encoder_id == report["encoder_id"] == card["id"]
    assert encoder.config.preprocess == PreprocessConfig(size=224)


def test_an_export_comes_back_as_the_same_function(library, tmp_path, monkeypatch):
    monkeypatch.setattr(export_job, "_lowest_cosine", lambda *_: 1.0)
    out = tmp_path / "exported"
    export(ExportConfig(encoder="tiny", to="safetensors", out=out), library.context)
    file = str(out / "model.safetensors")
    import_encoder(ImportConfig(source=file, name="back"), library.context)
    original, back = map(library.workspace.open_encoder, ("tiny", "back"))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    assert np.array_equal(back.embed(pixels), original.embed(pixels))
    stated = card_of(library.context, "back")["imported"]
    assert stated["source"] == "model.safetensors"
    assert stated["encoder_id"] == original.encoder_id


def test_preprocessing_that_is_given_counts(context, tmp_path):
    file = tmp_path / "mine.safetensors"
    save_file(resnet18().state_dict(), file)
    options = {"size": 40, "fit": "pad", "mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3)}
    import_encoder(ImportConfig(source=str(file), name="mine", **options), context)
    encoder = context.workspace.open_encoder("mine")
    assert encoder.config.preprocess == PreprocessConfig(**options)


def test_timm_models_are_imported_from_the_command_line(context, capsys):
    arguments = ["import", "--from", "timm:resnet10t:random", "--name", "theirs", "--size", "32"]
    location = ["--workspace", context.workspace.location, "--json"]
    assert main([*arguments, *location]) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["backbone"], first["dim"], first["note"]) == ("timm:resnet10t", 512, None)
    assert main([*arguments, *location]) == 0
    assert json.loads(capsys.readouterr().out)["note"] == "was there already, unchanged"


def test_an_encoder_of_the_same_name_is_never_replaced(library):
    before = card_of(library.context, "tiny")
    config = ImportConfig(source="torchvision:resnet18:random", name="tiny", size=32)
    with pytest.raises(ValueError, match=r"is another one .*Choose another --name"):
        import_encoder(config, library.context)
    assert card_of(library.context, "tiny") == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"source": "weights.pth"}, r"ends in \.safetensors.*may hold programs"),
        ({"source": "timm:resnet10t", "architecture": "resnet18"}, "Leave it out"),
        ({"source": "timm:resnet10t", "name": "no/name"}, "letters, digits"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_is_allowed(options, said):
    with pytest.raises(ValueError, match=said):
        ImportConfig(**{"name": "theirs", **options})


def test_what_cannot_be_loaded_leaves_nothing(context, tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    for source in (str(broken), str(tmp_path / "gone.safetensors"), "torchvision:vgg11"):
        with pytest.raises((ValueError, FileNotFoundError)):
            import_encoder(ImportConfig(source=source, name="theirs"), context)
    assert not context.workspace.folder("encoders", "theirs").exists()
