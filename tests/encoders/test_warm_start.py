from dataclasses import replace

import pytest
import torch

from encoders.backbone import BackboneConfig
from encoders.encoder import Encoder, EncoderConfig
from encoders.heads import ProjectorConfig
from encoders.preprocess import PreprocessConfig
from encoders.pretrain_config import PretrainConfig
from encoders.recipes import byol_small, moco_small, simclr_small, supcon_small, tiny
from encoders.training import Pretraining
from encoders.warm_start import keeps_projector, starting_config

RECIPE = tiny(simclr_small())


def encoder_of(
    backbone: BackboneConfig, size: int = 32, projector: ProjectorConfig | None = None
) -> Encoder:
    preprocess = PreprocessConfig(size=size, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    config = EncoderConfig(
        backbone=backbone,
        preprocess=preprocess,
        projector=projector or ProjectorConfig(num_layers=0),
    )
    return Encoder.initialise(config, seed=99)


def test_backbone_and_colours_come_from_the_encoder_and_the_rest_from_the_recipe() -> None:
    encoder = encoder_of(BackboneConfig(widths=(4, 8)))
    config = starting_config(RECIPE, encoder)
    assert config.backbone == BackboneConfig(widths=(4, 8), stem="stride2")
    assert config.preprocess.mean == (0.1, 0.2, 0.3)
    assert config.preprocess.size == RECIPE.preprocess.size == 16
    changed = {"backbone": RECIPE.backbone, "preprocess": RECIPE.preprocess}
    assert replace(config, **changed) == RECIPE


@pytest.mark.parametrize("recipe", [simclr_small, moco_small, byol_small, supcon_small])
def test_training_starts_from_the_encoders_weights_and_so_do_its_targets(recipe: object) -> None:
    assert callable(recipe)
    encoder = encoder_of(BackboneConfig(widths=(4, 8)))
    config: PretrainConfig = starting_config(tiny(recipe()), encoder)
    training = Pretraining(config, num_pictures=40, start=encoder)
    given = encoder.backbone.state_dict()
    states = training.state_dict()["method"]
    found = [name for name in states if "backbone.net.conv1.weight" in name]
    assert found
    for name in found:
        torch.testing.assert_close(states[name], given["net.conv1.weight"], rtol=0, atol=0)
    fresh = Pretraining(config, num_pictures=40).state_dict()["method"]
    assert not torch.equal(fresh["backbone.net.conv1.weight"], given["net.conv1.weight"])
    weight = "projector.0.weight"
    torch.testing.assert_close(states[weight], fresh[weight], rtol=0, atol=0)


def test_a_projector_of_the_recipes_shape_is_trained_further() -> None:
    encoder = encoder_of(BackboneConfig(widths=(4, 8)), projector=RECIPE.projector)
    config = starting_config(RECIPE, encoder)
    assert keeps_projector(config, encoder)
    training = Pretraining(config, num_pictures=40, start=encoder)
    assert training.encoder().encoder_id == replace_size(encoder, config).encoder_id


def replace_size(encoder: Encoder, config: PretrainConfig) -> Encoder:
    """The same weights at the size that the recipe trains for."""
    return Encoder(config.encoder, encoder.backbone, encoder.projector)


def test_an_encoder_of_another_architecture_is_refused_with_the_tensor_that_differs() -> None:
    encoder = encoder_of(BackboneConfig(widths=(4, 8)))
    wider = replace(starting_config(RECIPE, encoder), backbone=BackboneConfig(widths=(4, 16)))
    with pytest.raises(ValueError, match=r"its tensor .* does not fit narrow for 16 px\. Train wi"):
        Pretraining(wider, num_pictures=40, start=encoder)


def test_starting_moves_no_random_generator() -> None:
    encoder = encoder_of(BackboneConfig(widths=(4, 8)))
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    Pretraining(starting_config(RECIPE, encoder), num_pictures=40, start=encoder)
    assert torch.equal(torch.rand(1), expected)
