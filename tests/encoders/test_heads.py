import pytest
import torch
from torch import nn

from encoders.heads import PredictorConfig, ProjectorConfig, build_predictor, build_projector


def kinds(module: nn.Sequential) -> list[str]:
    return [type(layer).__name__ for layer in module]


def test_the_simclr_projector_is_linear_norm_relu_linear():
    projector = build_projector(ProjectorConfig(hidden_dim=16, output_dim=4), 8)
    assert kinds(projector) == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert projector[0].bias is None
    assert projector[3].bias is not None
    assert projector(torch.randn(5, 8)).shape == (5, 4)


def test_without_norms_hidden_layers_keep_their_bias():
    config = ProjectorConfig(hidden_dim=16, output_dim=4, num_layers=3, batch_norm=False)
    projector = build_projector(config, 8)
    assert kinds(projector) == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert all(layer.bias is not None for layer in projector if isinstance(layer, nn.Linear))


def test_one_layer_is_linear_and_none_is_the_identity():
    assert kinds(build_projector(ProjectorConfig(num_layers=1), 8)) == ["Linear"]
    features = torch.randn(3, 8)
    assert torch.equal(build_projector(ProjectorConfig(num_layers=0), 8)(features), features)


def test_an_output_norm_makes_each_dimension_standard_over_the_batch():
    config = ProjectorConfig(hidden_dim=16, output_dim=4, output_batch_norm=True)
    projections = build_projector(config, 8)(torch.randn(64, 8))
    assert projections.mean(0).abs().max() < 1e-5
    assert (projections.std(0, correction=0) - 1).abs().max() < 1e-2


def test_the_predictor_returns_to_the_dimension_it_came_from():
    predictor = build_predictor(PredictorConfig(hidden_dim=16), 4)
    assert kinds(predictor) == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert predictor(torch.randn(5, 4)).shape == (5, 4)


def test_wrong_sizes_are_refused():
    for options in ({"hidden_dim": 0}, {"output_dim": 0}, {"num_layers": -1}):
        with pytest.raises(ValueError, match="projector"):
            ProjectorConfig(**options)
    for options in ({"hidden_dim": 0}, {"num_layers": 0}):
        with pytest.raises(ValueError, match="predictor"):
            PredictorConfig(**options)
