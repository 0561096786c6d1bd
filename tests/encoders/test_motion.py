import pytest
import torch

from encoders.backbone import BackboneConfig, build_backbone
from encoders.byol import BYOLConfig
from encoders.heads import ProjectorConfig, build_projector
from encoders.method import Parts
from encoders.motion import Motion
from encoders.simclr import SimCLRConfig


def method_of(config, num_layers: int = 2):
    backbone = build_backbone(BackboneConfig(widths=(4, 6)), 8)
    projector = build_projector(
        ProjectorConfig(hidden_dim=8, output_dim=6, num_layers=num_layers), backbone.feature_dim
    )
    return config.build(Parts(backbone=backbone, projector=projector, embedding_dim=6, seed=0))


def flat(network) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_ratios_and_distances_are_those_of_flat_vectors():
    method = method_of(BYOLConfig())
    before = {name: flat(net) for name, net in method.named_children()}
    motion = Motion(method)
    with torch.no_grad():
        for number, parameter in enumerate(method.parameters()):
            parameter.add_(0.01 * number)
    figures = {name: float(value) for name, value in motion.figures().items()}
    after = {name: flat(net) for name, net in method.named_children()}
    for figure, name in (("update_ratio", "backbone"), ("head_update_ratio", "projector")):
        moved = (after[name] - before[name]).norm() / before[name].norm()
        assert figures[figure] == pytest.approx(float(moved), rel=1e-5)
    online = torch.cat([after["backbone"], after["projector"]])
    target = torch.cat([after["target_backbone"], after["target_projector"]])
    earlier = torch.cat([before["target_backbone"], before["target_projector"]])
    rms = float(after["backbone"].square().mean().sqrt())
    assert figures["weight_rms"] == pytest.approx(rms, rel=1e-5)
    assert figures["ema_drift"] == pytest.approx(float((target - online).norm() / online.norm()))
    assert figures["ema_update"] == pytest.approx(float((target - earlier).norm() / earlier.norm()))


def test_a_step_that_moves_nothing_gives_zeros():
    motion = Motion(method_of(BYOLConfig()))
    figures = motion.figures()
    assert float(figures["update_ratio"]) == float(figures["ema_drift"]) == 0
    assert float(figures["ema_update"]) == float(figures["head_update_ratio"]) == 0


def test_what_a_method_lacks_has_no_figure():
    figures = Motion(method_of(SimCLRConfig(), num_layers=0)).figures()
    assert figures.keys() == {"update_ratio", "weight_rms"}
