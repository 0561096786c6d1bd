import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torchvision.models import resnet, resnet18

from encoders.backbone import BackboneConfig, BasicBlock, build_backbone, resolve_stem


def output(config: BackboneConfig, size: int) -> tuple[torch.Tensor, int]:
    backbone = build_backbone(config, size).eval()
    with torch.no_grad():
        return backbone(torch.randn(2, 3, size, size)), backbone.feature_dim


@pytest.mark.parametrize(
    ("name", "dim"), [("narrow", 128), ("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)]
)
def test_features_have_the_stated_dimension(name, dim):
    features, feature_dim = output(BackboneConfig(name=name), 32)
    assert features.shape == (2, dim)
    assert feature_dim == dim


@pytest.mark.parametrize("name", ["narrow", "resnet18"])
@pytest.mark.parametrize(("stem", "edge"), [("small", 64), ("stride2", 32), ("imagenet", 16)])
def test_each_stem_shrinks_the_picture_as_stated_before_the_first_stage(name, stem, edge):
    net = build_backbone(BackboneConfig(name=name, stem=stem), 64).net.eval()
    stage = net.stage1 if name == "narrow" else net.layer1
    seen = []
    stage.register_forward_hook(lambda _module, inputs, _result: seen.append(inputs[0].shape[-1]))
    with torch.no_grad():
        net(torch.randn(1, 3, 64, 64))
    assert seen == [edge]


@pytest.mark.parametrize(
    ("name", "size", "stem"),
    [
        ("resnet18", 32, "small"),
        ("resnet18", 64, "small"),
        ("resnet18", 65, "imagenet"),
        ("resnet50", 224, "imagenet"),
        ("narrow", 28, "small"),
        ("narrow", 32, "stride2"),
        ("narrow", 96, "stride2"),
        ("narrow", 128, "imagenet"),
    ],
)
def test_the_automatic_stem_follows_the_crop(name, size, stem):
    assert resolve_stem(BackboneConfig(name=name), size) == stem
    assert resolve_stem(BackboneConfig(name=name, stem="stride2"), size) == "stride2"


def test_widths_and_blocks_shape_the_narrow_network():
    config = BackboneConfig(widths=(8, 24), blocks_per_stage=2)
    features, _ = output(config, 16)
    assert features.shape == (2, 24)
    net = build_backbone(config, 16).net
    assert [len(net.stage1), len(net.stage2)] == [2, 2]
    assert not hasattr(net, "stage3")


def test_the_basic_block_is_torchvisions_to_the_bit():
    for width_out, stride in ((8, 1), (8, 2), (12, 1)):
        ours = BasicBlock(8, width_out, stride)
        theirs = resnet.BasicBlock(8, width_out, stride, copy.deepcopy(ours.downsample))
        assert list(theirs.state_dict()) == list(ours.state_dict())
        theirs.load_state_dict(ours.state_dict())
        inputs = [torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(1)) for _ in "ab"]
        outputs = [
            block(x.requires_grad_()) for block, x in zip((ours, theirs), inputs, strict=True)
        ]
        assert torch.equal(*outputs)
        for found in outputs:
            found.square().sum().backward()
        assert torch.equal(inputs[0].grad, inputs[1].grad)


def test_a_narrow_network_waits_for_no_library_that_it_does_not_need():
    code = (
        "import sys, encoders.training, cluster.search_job, cluster.shard_actor\n"
        "from encoders.encoder import Encoder, EncoderConfig\n"
        "Encoder.initialise(EncoderConfig(), 0)\n"
        "assert not {'torchvision', 'torch._dynamo', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_at_full_size_a_resnet_is_torchvisions_own():
    ours = build_backbone(BackboneConfig(name="resnet18"), 224).net
    theirs = resnet18()
    theirs.fc = nn.Identity()
    assert ours.load_state_dict(theirs.state_dict())
    pictures = torch.randn(1, 3, 80, 80)
    with torch.no_grad():
        torch.testing.assert_close(
            ours.eval()(pictures), theirs.eval()(pictures), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("name", ["narrow", "resnet18"])
def test_zero_init_makes_each_residual_block_start_as_its_shortcut(name):
    def last_norms(zero: bool) -> list[float]:
        net = build_backbone(BackboneConfig(name=name, zero_init_residual=zero), 32).net
        return [
            module.weight.abs().max().item()
            for path, module in net.named_modules()
            if path.endswith("bn2")
        ]

    assert set(last_norms(True)) == {0.0}
    assert set(last_norms(False)) == {1.0}


def test_convolutions_are_channels_last_and_gradients_reach_all_weights():
    backbone = build_backbone(BackboneConfig(widths=(4, 8), zero_init_residual=False), 16)
    assert backbone.net.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    backbone(torch.randn(4, 3, 16, 16)).square().sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in backbone.parameters())


def test_a_timm_model_without_timm_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ValueError, match=r"pip install '\.\[timm\]'"):
        build_backbone(BackboneConfig(name="timm:vit_tiny_patch16_224"), 224)


def test_a_timm_model_is_built_without_classifier_when_timm_is_there():
    pytest.importorskip("timm")
    for name in ("timm:resnet10t", "timm:mobilenetv3_small_050"):
        features, feature_dim = output(BackboneConfig(name=name), 64)
        assert features.shape == (2, feature_dim)
    with pytest.raises(ValueError, match="knows no model"):
        build_backbone(BackboneConfig(name="timm:no_such_model"), 64)
    with pytest.raises(ValueError, match="Invalid pretrained tag"):
        build_backbone(BackboneConfig(name="timm:resnet18.no_such_tag"), 64)


def test_a_timm_transformer_is_built_for_the_crop():
    pytest.importorskip("timm")
    features, _ = output(BackboneConfig(name="timm:vit_tiny_patch16_224"), 48)
    assert features.shape == (2, 192)
    with pytest.raises(ValueError, match=r"cannot build it for pictures of 50 px .*patch_size"):
        build_backbone(BackboneConfig(name="timm:xcit_nano_12_p16_224"), 50)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "resnet19"}, "resnet18"),
        ({"stem": "huge"}, "stride2"),
        ({"name": "timm:x", "stem": "small"}, "bring their own stem"),
        ({"widths": ()}, "positive channel counts"),
        ({"widths": (8, 0)}, "positive channel counts"),
        ({"blocks_per_stage": 0}, "1 or more"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_is_allowed(options, words):
    with pytest.raises(ValueError, match=words):
        BackboneConfig(**options)
