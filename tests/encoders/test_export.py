import importlib.util
import io
import json
import re
import warnings
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load
from torch import nn
from torchvision.models import resnet18

from encoders.backbone import BackboneConfig
from encoders.encoder import Encoder, EncoderConfig
from encoders.export import OPSET, PictureToVector, export_files, timm_architecture
from encoders.export_card import CardNotes, export_card, usage
from encoders.heads import ProjectorConfig
from encoders.picture import open_picture, to_square
from encoders.preprocess import PreprocessConfig


def encoder_of(**backbone):
    """A small encoder that normalises by numbers of its own; its BatchNorms are not fresh."""
    config = EncoderConfig(
        backbone=BackboneConfig(**({"widths": (4, 8)} | backbone)),
        projector=ProjectorConfig(hidden_dim=8, output_dim=6, output_batch_norm=True),
        preprocess=PreprocessConfig(size=16, mean=(0.1, 0.5, 0.7), std=(0.2, 0.3, 0.4)),
    )
    encoder = Encoder.initialise(config, seed=0)
    generator = torch.Generator().manual_seed(1)
    for module in (*encoder.backbone.modules(), *encoder.projector.modules()):
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return encoder


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)


def agree(vectors, expected):
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=2e-6)


@pytest.mark.parametrize("layer", ["backbone", "projector"])
def test_the_exported_module_is_the_encoder_to_the_bit(layer, pixels):
    encoder = encoder_of()
    with torch.no_grad():
        vectors = PictureToVector(encoder, layer)(torch.from_numpy(pixels)).numpy()
    assert np.array_equal(vectors, encoder.embed(pixels, layer))


@pytest.fixture(scope="module")
def graph():
    return export_files(encoder_of(), "onnx", "projector")["encoder.onnx"]


def test_onnx_takes_any_number_of_pictures_and_gives_unit_vectors(graph, pixels):
    session = onnxruntime.InferenceSession(graph)
    expected = encoder_of().embed(pixels, "projector")
    for num in (1, 2, 5):
        (vectors,) = session.run(["vectors"], {"pixels": pixels[:num]})
        agree(vectors, expected[:num])
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_onnx_says_what_it_takes_and_whose_it_is_and_not_where_it_was_made(graph):
    model = onnx.load_from_string(graph)
    onnx.checker.check_model(model, full_check=True)
    assert [(item.domain, item.version) for item in model.opset_import] == [("", OPSET)]
    (taken,) = model.graph.input
    assert taken.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    edges = [edge.dim_param or edge.dim_value for edge in taken.type.tensor_type.shape.dim]
    assert edges == ["N", 16, 16, 3]
    about = json.loads({item.key: item.value for item in model.metadata_props}["lookalike"])
    assert about["id"] == encoder_of().encoder_id
    assert about["layer"] == "projector"
    assert b".py" not in graph


def test_weights_beyond_what_one_onnx_file_holds_are_refused(monkeypatch):
    monkeypatch.setattr("encoders.export.ONNX_MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"one ONNX file holds 1,000.*torchscript"):
        export_files(encoder_of(), "onnx")


@pytest.mark.parametrize("layer", ["backbone", "projector"])
def test_torchscript_runs_from_its_bytes(layer, pixels):
    encoder = encoder_of()
    (data,) = export_files(encoder, "torchscript", layer).values()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch calls TorchScript deprecated
        loaded = torch.jit.load(io.BytesIO(data))
        agree(loaded(torch.from_numpy(pixels)).numpy(), encoder.embed(pixels, layer))


def test_the_export_copies_the_encoder_and_leaves_it_alone(pixels):
    encoder = encoder_of()
    before = encoder.encoder_id, encoder.embed(pixels)
    module = PictureToVector(encoder, "projector")
    for weight in module.parameters():
        weight.zero_()
    encoder._encoder_id = None
    assert encoder.encoder_id == before[0]
    assert np.array_equal(encoder.embed(pixels), before[1])


def test_safetensors_of_a_resnet_loads_into_torchvision_as_it_is():
    encoder = encoder_of(name="resnet18", stem="imagenet")
    theirs = resnet18()
    theirs.fc = nn.Identity()
    assert theirs.load_state_dict(load(export_files(encoder, "safetensors")["model.safetensors"]))


def test_timm_gets_weights_under_its_own_names_and_the_preprocessing():
    files = export_files(encoder_of(name="resnet18", stem="imagenet"), "timm")
    timm.create_model("resnet18", num_classes=0).load_state_dict(load(files["model.safetensors"]))
    config = json.loads(files["config.json"])
    assert config["architecture"] == "resnet18"
    preprocess = config["pretrained_cfg"]
    assert (preprocess["mean"], preprocess["crop_pct"]) == ([0.1, 0.5, 0.7], 1.0)
    assert preprocess["input_size"] == [3, 16, 16]


def test_a_timm_backbone_goes_by_its_architecture_without_the_name_of_weights():
    assert timm_architecture(encoder_of(name="timm:resnet10t.c3_in1k")) == "resnet10t"


@pytest.mark.parametrize("backbone", [{}, {"name": "resnet18"}])
def test_what_timm_does_not_have_is_refused_with_what_works(backbone):
    with pytest.raises(ValueError, match=r"does not exist there.*onnx, torchscript or safetensors"):
        export_files(encoder_of(**backbone), "timm")


def test_a_projector_does_not_fit_into_timm():
    with pytest.raises(ValueError, match="only the backbone"):
        export_files(encoder_of(name="timm:resnet10t"), "timm", "projector")


def test_an_unknown_format_or_layer_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="onnx, torchscript, safetensors, timm"):
        export_files(encoder_of(), "tflite")
    with pytest.raises(ValueError, match="which has backbone, projector"):
        export_files(encoder_of(), "safetensors", "stem")


@pytest.mark.parametrize(
    ("to", "extra", "missing"), [("onnx", "export", "onnx, onnxruntime"), ("timm", "timm", "timm")]
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch, to, extra, missing):
    find_spec = importlib.util.find_spec
    hidden = missing.split(", ")
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name in hidden else find_spec(name)
    )
    encoder = encoder_of(name="resnet18", stem="imagenet")
    with pytest.raises(ValueError, match=rf"needs {missing}, .*pip install '\.\[{extra}\]'"):
        export_files(encoder, to)


@pytest.mark.parametrize(
    ("to", "backbone"),
    [
        ("safetensors", {}),
        ("safetensors", {"widths": (4, 4, 8), "blocks_per_stage": 2, "stem": "imagenet"}),
        ("safetensors", {"name": "resnet18"}),
        ("safetensors", {"name": "resnet50", "stem": "imagenet"}),
        ("safetensors", {"name": "timm:resnet10t"}),
        ("timm", {"name": "resnet18", "stem": "imagenet"}),
        ("safetensors", {"name": "timm:vit_tiny_patch16_224"}),
        ("timm", {"name": "timm:resnet10t"}),
        ("timm", {"name": "timm:vit_tiny_patch16_224"}),
    ],
)
def test_the_lines_of_the_card_build_the_network_anew(to, backbone, tmp_path, monkeypatch, pixels):
    encoder = encoder_of(**backbone)
    layer = "backbone" if to == "timm" else "projector"
    for name, data in export_files(encoder, to, layer).items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(usage(encoder, to, layer), names)
    agree(names["embed"](pixels), encoder.embed(pixels, layer))


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_the_card_alone_leads_from_picture_files_to_the_encoders_vectors(
    fit, graph, tmp_path, monkeypatch
):
    encoder = encoder_of()
    preprocess = replace(encoder.config.preprocess, fit=fit)
    encoder.config = replace(encoder.config, preprocess=preprocess)
    rng = np.random.default_rng(0)
    files = {"one.jpg": (41, 67, 3), "another.png": (90, 33, 3)}
    for name, shape in files.items():
        noise = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        turned = Image.Exif()
        turned[0x0112] = 6
        noise.save(tmp_path / name, exif=turned)
    (tmp_path / "encoder.onnx").write_bytes(graph)
    notes = CardNotes(name="enc1", checked="On 9 pictures.", origin={"trained by": "simclr"})
    card = export_card(encoder, "onnx", "projector", notes)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec("".join(re.findall(r"^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL)), names)
    opened = [open_picture((tmp_path / name).read_bytes()) for name in files]
    squares = np.stack([to_square(image, preprocess) for image in opened])
    assert np.array_equal(names["pixels"], squares)
    agree(names["vectors"], encoder.embed(squares, "projector"))


def test_the_card_says_whose_vectors_these_are_and_what_to_install():
    notes = CardNotes(name="enc1", checked="On 9 pictures.", origin={"trained by": "simclr"})
    encoder = encoder_of()
    card = export_card(encoder, "onnx", "projector", notes)
    for words in (encoder.encoder_id, "| trained by | simclr |", "On 9 pictures.", "`onnxruntime`"):
        assert words in card
    assert "`torch`" not in card
