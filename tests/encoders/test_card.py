import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from encoders.backbone import BackboneConfig
from encoders.card import encoder_body, encoder_files, load_encoder
from encoders.encoder import Encoder, EncoderConfig
from encoders.heads import ProjectorConfig
from encoders.preprocess import PreprocessConfig

CONFIG = EncoderConfig(
    backbone=BackboneConfig(widths=(4, 8)),
    projector=ProjectorConfig(hidden_dim=8, output_dim=4),
    preprocess=PreprocessConfig(size=16, fit="pad", mean=(0.1, 1 / 3, 0.7)),
)
ENCODER = Encoder.initialise(CONFIG, seed=0)
FILES = encoder_files(ENCODER)
BODY = json.loads(json.dumps(encoder_body(ENCODER)))
MODEL, PROJECTOR = sorted(FILES)


def test_an_encoder_comes_back_with_its_identity_and_its_vectors():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    again = load_encoder({**BODY, "parents": {}, "kind": "encoder"}, FILES)
    assert again.encoder_id == ENCODER.encoder_id
    assert again.config == CONFIG
    for layer in ("backbone", "projector"):
        assert np.array_equal(again.embed(pixels, layer), ENCODER.embed(pixels, layer))


def test_the_card_names_layers_dimensions_and_preprocessing():
    assert BODY["id"] == ENCODER.encoder_id
    assert BODY["dims"] == {"backbone": 8, "projector": 4}
    assert BODY["config"]["preprocess"]["fit"] == "pad"


def test_the_files_are_plain_safetensors_under_the_library_s_names():
    start = ENCODER.encoder_id[:12]
    assert list(FILES) == [f"model-{start}.safetensors", f"projector-{start}.safetensors"]
    assert set(load(FILES[MODEL])) == set(ENCODER.backbone.net.state_dict())


def test_an_encoder_without_projector_has_one_file():
    config = EncoderConfig(
        backbone=BackboneConfig(widths=(4,)),
        projector=ProjectorConfig(num_layers=0),
        preprocess=PreprocessConfig(size=16),
    )
    encoder = Encoder.initialise(config, seed=0)
    files = encoder_files(encoder)
    assert list(files) == [f"model-{encoder.encoder_id[:12]}.safetensors"]
    assert load_encoder(encoder_body(encoder), files).encoder_id == encoder.encoder_id


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_empty_or_truncated_file_is_named(name):
    rest = {other: data for other, data in FILES.items() if other != name}
    part = name.partition("-")[0]
    with pytest.raises(ValueError, match=rf"{part}\.safetensors is missing"):
        load_encoder(BODY, rest)
    for end in (0, 7, 100, len(FILES[name]) - 1):
        with pytest.raises(ValueError, match=f"{name} .* does not hold"):
            load_encoder(BODY, {**rest, name: FILES[name][:end]})


def test_the_projector_s_bytes_in_the_backbone_s_place_are_refused():
    with pytest.raises(ValueError, match="does not hold this encoder's tensors"):
        load_encoder(BODY, {**FILES, MODEL: FILES[PROJECTOR]})


def test_files_that_were_published_without_an_id_in_their_names_still_load():
    plain = {"model.safetensors": FILES[MODEL], "projector.safetensors": FILES[PROJECTOR]}
    assert load_encoder(BODY, plain).encoder_id == ENCODER.encoder_id


def test_another_encoder_has_other_file_names():
    assert set(encoder_files(Encoder.initialise(CONFIG, seed=1))).isdisjoint(FILES)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(FILES)), place=st.integers(0, 2**20), bit=st.integers(0, 7))
def test_no_flipped_bit_passes(name, place, bit):
    data = bytearray(FILES[name])
    data[place % len(data)] ^= 1 << bit
    with pytest.raises(ValueError, match="encoder"):
        load_encoder(BODY, {**FILES, name: bytes(data)})


def test_another_encoder_s_weights_are_refused():
    other = encoder_files(Encoder.initialise(CONFIG, seed=1))
    with pytest.raises(ValueError, match="its card names"):
        load_encoder(BODY, other)


def test_a_changed_config_is_refused_even_when_the_weights_fit():
    body = json.loads(json.dumps(BODY))
    body["config"]["preprocess"]["fit"] = "crop"
    with pytest.raises(ValueError, match="One was changed"):
        load_encoder(body, FILES)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"preprocess_rule": 99}, "preprocess_rule is 99"),
        ({"config": None}, "does not describe"),
        ({"config": {"backbone": {}, "projector": {}}}, "does not describe"),
        (
            {"config": {**BODY["config"], "backbone": {"name": "narrow", "attention": 8}}},
            "does not describe",
        ),
    ],
)
def test_a_card_of_another_version_is_refused_with_what_to_do(change, words):
    with pytest.raises(ValueError, match=words):
        load_encoder({**BODY, **change}, FILES)
