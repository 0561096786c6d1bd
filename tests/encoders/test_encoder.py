import dataclasses
import hashlib
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from encoders.backbone import BackboneConfig
from encoders.card import encoder_body, encoder_files, load_encoder
from encoders.encoder import Encoder, EncoderConfig, embed_picture, fresh_modules, normalise
from encoders.heads import ProjectorConfig
from encoders.picture import open_picture, to_square
from encoders.preprocess import PreprocessConfig

CONFIG = EncoderConfig(
    backbone=BackboneConfig(widths=(8, 16)),
    projector=ProjectorConfig(hidden_dim=16, output_dim=6),
    preprocess=PreprocessConfig(size=16),
)


@pytest.fixture
def encoder():
    return Encoder.initialise(CONFIG, seed=3)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize(("layer", "dim"), [("backbone", 16), ("projector", 6)])
def test_vectors_are_unit_float32_rows_of_the_stated_dimension(encoder, pixels, layer, dim):
    vectors = encoder.embed(pixels, layer)
    assert vectors.dtype == np.float32
    assert vectors.shape == (9, dim)
    assert encoder.dim(layer) == dim
    assert np.abs(np.linalg.norm(vectors.astype(np.float64), axis=1) - 1).max() < 1e-6


def test_a_vector_is_the_normalised_feature_of_the_normalised_picture(encoder, pixels):
    mean, std = np.array(CONFIG.preprocess.mean), np.array(CONFIG.preprocess.std)
    for row in (0, 5):
        image = ((pixels[row] / 255 - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)
        feature = encoder.backbone.net(torch.from_numpy(image))[0].numpy()
        expected = feature / np.sqrt((feature**2).sum())
        np.testing.assert_allclose(encoder.embed(pixels)[row], expected, atol=1e-5)


def stirred(net, seed):
    """Gives every BatchNorm statistics and weights as training leaves them."""
    draws = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=draws))
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=draws) + 0.01)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("narrow", "small"),
        ("narrow", "stride2"),
        ("narrow", "imagenet"),
        ("resnet18", "small"),
        ("resnet34", "stride2"),
        ("resnet50", "imagenet"),
    ],
)
def test_folded_batch_norms_compute_the_same_and_follow_the_weights(name, stem):
    config = EncoderConfig(
        backbone=BackboneConfig(name=name, stem=stem), preprocess=PreprocessConfig(size=32)
    )
    encoder = Encoder.initialise(config, seed=0)
    pixels = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    images = normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255, config.preprocess)
    before = encoder.embed(pixels)
    for seed in (1, 2):
        stirred(encoder.backbone, seed)
        with torch.inference_mode():
            expected = nn.functional.normalize(encoder.backbone(images)).numpy()
        vectors = encoder.embed(pixels)
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
        assert np.abs(vectors - before).max() > 0.01, "these weights give other vectors"
        before = vectors
    again = load_encoder(encoder_body(encoder), encoder_files(encoder))
    np.testing.assert_array_equal(again.embed(pixels), before)


def test_a_row_does_not_depend_on_the_batch_around_it(encoder, pixels):
    together = encoder.embed(pixels)
    np.testing.assert_allclose(encoder.embed(pixels, batch_size=2), together, atol=1e-5)
    np.testing.assert_allclose(encoder.embed(pixels[::-1])[::-1], together, atol=1e-5)
    np.testing.assert_allclose(encoder.embed(pixels[4:5])[0], together[4], atol=1e-5)
    assert np.array_equal(encoder.embed(pixels), together)


def test_nothing_embeds_to_nothing(encoder, pixels):
    assert encoder.embed(pixels[:0]).shape == (0, 16)


def test_read_only_pixels_are_embedded(encoder, pixels):
    pixels.setflags(write=False)
    assert encoder.embed(pixels).shape == (9, 16)


def test_non_finite_and_zero_features_stay_visible(encoder, pixels):
    with torch.no_grad():
        encoder.backbone.net.stage2[0].downsample[1].bias[:] = torch.inf
    assert np.isnan(encoder.embed(pixels)).any(axis=1).all()
    with torch.no_grad():
        encoder.backbone.net.stage2[0].downsample[1].bias[:] = -1e6
    assert (encoder.embed(pixels) == 0).all()


def test_a_file_and_its_pixels_give_the_same_vector(encoder):
    picture = Image.fromarray(
        np.random.default_rng(1).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    )
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    square = to_square(open_picture(buffer.getvalue()), CONFIG.preprocess)
    vector = embed_picture(encoder, buffer.getvalue())
    assert vector.shape == (16,)
    assert np.array_equal(vector, encoder.embed(square[None])[0])


def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone(pixels):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    one = Encoder.initialise(CONFIG, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert one.encoder_id == Encoder.initialise(CONFIG, seed=1).encoder_id
    assert one.encoder_id != Encoder.initialise(CONFIG, seed=2).encoder_id


def test_the_identity_is_the_documented_hash(encoder):
    config = dataclasses.asdict(CONFIG)
    assert config["preprocess"].pop("decode_edge") == 512, "stated only where it is another one"
    identity = {"config": config, "preprocess_rule": 1}
    hasher = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    for part, module in (("backbone", encoder.backbone.net), ("projector", encoder.projector)):
        state = module.state_dict()
        for name in sorted(state):
            array = state[name].numpy()
            hasher.update(f"|{part}.{name}|{array.dtype}|{array.shape}|".encode())
            hasher.update(array.tobytes())
    assert encoder.encoder_id == hasher.hexdigest()


def changed(part: str, **changes) -> EncoderConfig:
    return dataclasses.replace(
        CONFIG, **{part: dataclasses.replace(getattr(CONFIG, part), **changes)}
    )


@pytest.mark.parametrize(
    "config",
    [
        changed("preprocess", fit="pad"),
        changed("preprocess", size=17),
        changed("preprocess", mean=(0.5, 0.5, 0.5)),
        changed("preprocess", std=(0.5, 0.5, 0.5)),
    ],
)
def test_preprocessing_is_part_of_the_identity(encoder, config):
    other = Encoder(config, encoder.backbone, encoder.projector)
    assert other.encoder_id != encoder.encoder_id


def test_every_weight_and_buffer_is_part_of_the_identity():
    seen = set()
    names = [
        (part, name)
        for part, module in enumerate(fresh_modules(CONFIG, 0))
        for name in module.state_dict()
    ]
    for part, name in names:
        modules = fresh_modules(CONFIG, 0)
        tensor = modules[part].state_dict()[name]
        tensor[(0,) * tensor.ndim].add_(1)
        seen.add(Encoder(CONFIG, *modules).encoder_id)
    seen.add(Encoder.initialise(CONFIG, 0).encoder_id)
    assert len(seen) == len(names) + 1
    assert any("running_var" in name for _, name in names)


def test_training_goes_on_without_touching_an_encoder_made_from_it(pixels):
    backbone, projector = fresh_modules(CONFIG, 0)
    backbone.train()
    encoder = Encoder(CONFIG, backbone, projector)
    before, identity = encoder.embed(pixels), encoder.encoder_id
    assert backbone.training
    assert all(weight.requires_grad for weight in backbone.parameters())
    backbone(torch.randn(8, 3, 16, 16)).sum().backward()
    with torch.no_grad():
        for weight in backbone.parameters():
            weight.add_(1)
    assert np.array_equal(encoder.embed(pixels), before)
    assert Encoder(CONFIG, *fresh_modules(CONFIG, 0)).encoder_id == identity


def test_embedding_leaves_the_encoder_as_it_is(encoder, pixels):
    before = {name: tensor.clone() for name, tensor in encoder.backbone.state_dict().items()}
    encoder.embed(pixels, "projector")
    assert all(torch.equal(before[name], t) for name, t in encoder.backbone.state_dict().items())


def test_without_a_projector_there_is_one_layer(pixels):
    bare = Encoder.initialise(changed("projector", num_layers=0), 0)
    assert bare.layers == ("backbone",)
    with pytest.raises(ValueError, match="'projector' is not in this encoder"):
        bare.embed(pixels, "projector")


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 3, 16, 16), np.uint8),
        np.zeros((2, 15, 16, 3), np.uint8),
        np.zeros((2, 16, 16, 3), np.float32),
        np.zeros((16, 16, 3), np.uint8),
    ],
)
def test_pixels_of_another_shape_or_type_are_refused(encoder, wrong):
    with pytest.raises(ValueError, match=r"uint8 \[N, 16, 16, 3\]"):
        encoder.embed(wrong)


def test_normalising_takes_mean_and_deviation_of_each_channel():
    config = PreprocessConfig(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.1))
    images = torch.tensor([0.6, 0.2, 0.4]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    normal = normalise(images, config)
    torch.testing.assert_close(normal[1, :, 2, 3], torch.tensor([1.0, 0.0, 1.0]))
    assert normal.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_identity_and_nearly_the_same_vectors(encoder, pixels):
    on_cpu, identity = encoder.embed(pixels), encoder.encoder_id
    moved = Encoder.initialise(CONFIG, seed=3).to("cuda")
    assert moved.encoder_id == identity
    # Convolutions may run in TF32, which keeps 10 bits.
    assert (1 - (moved.embed(pixels) * on_cpu).sum(1)).max() < 1e-3
