import json

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18

from encoders.backbone import BackboneConfig
from encoders.encoder import Encoder, EncoderConfig
from encoders.export import export_files
from encoders.foreign import foreign_encoder, from_file, from_timm, from_torchvision
from encoders.preprocess import PreprocessConfig


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def theirs():
    """A ResNet-18 of torchvision's own making, with a classifier."""
    torch.manual_seed(0)
    net = resnet18().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
    return net


@pytest.fixture
def torch_home(tmp_path, monkeypatch, theirs):
    """torch's cache, with a file under the name of the published weights, and no way to fetch."""

    def offline(*_args, **_options):
        raise OSError("no way out")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    file = cache / ResNet18_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]
    torch.save(theirs.state_dict(), file)
    return file


def unit_vectors(net, pixels, mean, std):
    """By torchvision's way of writing it: normalise, the network, unit length."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    images = (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        return nn.functional.normalize(net(images)).numpy()


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def without_classifier(net):
    features = resnet18()
    features.fc = nn.Identity()
    features.load_state_dict({k: v for k, v in net.state_dict().items() if "fc." not in k})
    return features.eval()


def at(foreign, size):
    preprocess = foreign.preprocess
    return foreign_encoder(
        foreign, PreprocessConfig(size=size, mean=preprocess.mean, std=preprocess.std)
    )


@pytest.mark.parametrize("weights", ["IMAGENET1K_V1", "DEFAULT"])
def test_weights_that_torchvision_publishes_become_the_same_function(
    torch_home, theirs, pixels, weights
):
    foreign = from_torchvision("resnet18", weights)
    assert foreign.preprocess == PreprocessConfig(size=224, mean=IMAGENET[0], std=IMAGENET[1])
    assert foreign.origin["weights"] == "ResNet18_Weights.IMAGENET1K_V1"
    expected = unit_vectors(without_classifier(theirs), pixels, *IMAGENET)
    np.testing.assert_allclose(at(foreign, 32).embed(pixels), expected, atol=1e-5)


def test_weights_out_of_reach_say_where_a_file_may_be_put(torch_home):
    torch_home.unlink()
    with pytest.raises(ValueError, match=r"cannot be fetched \(no way out\).*hub/checkpoints") as e:
        from_torchvision("resnet18", "IMAGENET1K_V1")
    assert ResNet18_Weights.IMAGENET1K_V1.url in str(e.value)


def test_a_file_that_would_run_programs_is_not_loaded(torch_home):
    torch.save(nn.Linear(1, 1), torch_home)  # a pickled object
    with pytest.raises(ValueError, match="cannot be fetched"):
        from_torchvision("resnet18", "IMAGENET1K_V1")


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("vgg11", "DEFAULT", "resnet18, resnet34, resnet50 can be encoders"),
        ("resnet50", "IMAGENET9", "IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT, random"),
    ],
)
def test_what_torchvision_cannot_give_is_refused_with_what_it_can(name, weights, said):
    with pytest.raises(ValueError, match=said):
        from_torchvision(name, weights)


def test_an_untrained_network_says_so_and_is_the_same_each_time():
    foreign = from_torchvision("resnet18", "random")
    assert foreign.origin == {"weights": "none, untrained"}
    assert at(foreign, 32).encoder_id == at(foreign, 32).encoder_id
    assert at(foreign, 32).layers == ("backbone",)


def test_timm_weights_bring_their_own_preprocessing(monkeypatch):
    torch.manual_seed(0)
    made = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32).eval()
    create = timm.create_model

    def create_model(name, *, pretrained, **options):
        """What timm does, the weights not fetched."""
        if not pretrained:
            return create(name, pretrained=False, **options)
        assert (name, options) == ("vit_tiny_patch16_224", {"num_classes": 0, "img_size": 32})
        return made

    monkeypatch.setattr(timm, "create_model", create_model)
    foreign = from_timm("vit_tiny_patch16_224", size=32)
    half = (0.5, 0.5, 0.5)
    assert foreign.preprocess == PreprocessConfig(size=32, mean=half, std=half)
    assert foreign.origin["license"] == "apache-2.0"
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    vectors = foreign_encoder(foreign, foreign.preprocess).embed(pixels)
    np.testing.assert_allclose(vectors, unit_vectors(made, pixels, half, half), atol=1e-5)


def test_timm_weights_out_of_reach_say_why(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"timm:resnet10t: the weights cannot be fetched \("):
        from_timm("resnet10t")


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 224), ("vit_tiny_patch16_384", 384), ("vit_small_patch14_dinov2", 224)],
)
def test_timm_says_the_usual_size_unless_it_is_beyond_what_pictures_are_decoded_at(name, size):
    assert from_timm(name, "random").preprocess.size == size


def test_timm_weights_are_named_by_a_tag():
    with pytest.raises(ValueError, match=r"by a tag, as in timm:resnet18\.a1_in1k"):
        from_timm("resnet18", "IMAGENET1K_V1")
    with pytest.raises(ValueError, match="knows no model"):
        from_timm("no_such_model", "random")


def test_an_exported_backbone_comes_back_as_it_was(pixels):
    config = EncoderConfig(preprocess=PreprocessConfig(mean=(0.1, 0.2, 0.3), fit="pad"))
    encoder = Encoder.initialise(config, seed=3)
    data = export_files(encoder, "safetensors", "projector")["model.safetensors"]
    foreign = from_file(data, "model.safetensors")
    assert foreign.origin["encoder_id"] == encoder.encoder_id
    assert foreign.preprocess == config.preprocess
    back = foreign_encoder(foreign, foreign.preprocess)
    assert np.array_equal(back.embed(pixels), encoder.embed(pixels))


def test_an_exported_backbone_keeps_its_stem_at_another_size():
    config = EncoderConfig(backbone=BackboneConfig(widths=(4, 8)))
    data = export_files(Encoder.initialise(config, seed=0), "safetensors")["model.safetensors"]
    foreign = from_file(data, "model.safetensors", size=16)
    assert foreign.backbone.stem == "stride2"
    assert at(foreign, 16).dim() == 8


@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_a_resnets_file_tells_its_architecture_and_loses_its_classifier(stem, pixels):
    config = EncoderConfig(backbone=BackboneConfig(name="resnet18", stem=stem))
    encoder = Encoder.initialise(config, seed=1)
    state = {k: v.contiguous() for k, v in encoder.backbone.net.state_dict().items()}
    with_head = {**state, "fc.weight": torch.ones(10, 512), "fc.bias": torch.zeros(10)}
    counters = [name for name in with_head if name.endswith("num_batches_tracked")]
    without_counters = {k: v for k, v in with_head.items() if k not in counters}
    foreign = from_file(save(without_counters), "cifar.safetensors")
    assert foreign.backbone == config.backbone
    assert np.array_equal(at(foreign, 32).embed(pixels), encoder.embed(pixels))


def test_a_file_of_timm_needs_its_architecture_and_loses_its_classifier(pixels):
    torch.manual_seed(0)
    net = timm.create_model("resnet10t").eval()
    data = save(net.state_dict())
    with pytest.raises(ValueError, match=r"not those of any of resnet18.*--architecture timm:NAME"):
        from_file(data, "theirs.safetensors")
    foreign = from_file(data, "theirs.safetensors", architecture="timm:resnet10t", size=32)
    net.reset_classifier(0)
    expected = unit_vectors(net, pixels, *IMAGENET)
    np.testing.assert_allclose(at(foreign, 32).embed(pixels), expected, atol=1e-5)


def test_a_file_of_another_architecture_is_refused(theirs):
    data = save(theirs.state_dict())
    with pytest.raises(ValueError, match="not those of resnet50"):
        from_file(data, "theirs.safetensors", architecture="resnet50")
    foreign = from_file(data, "theirs.safetensors", architecture="timm:resnet10t")
    with pytest.raises(ValueError, match=r"holds other tensors than timm:resnet10t has \(Missing"):
        at(foreign, 32)


def test_a_damaged_file_is_refused(theirs):
    data = save(theirs.state_dict())
    for damaged in (b"", data[:1000], b"<html>not found</html>"):
        with pytest.raises(ValueError, match="no safetensors file"):
            from_file(damaged, "theirs.safetensors")


def test_weights_with_nan_are_refused(theirs):
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"layer1\.0\.conv1\.weight holds NaN"):
        at(from_file(save(state), "theirs.safetensors"), 32)


def test_a_card_of_another_preprocessing_rule_is_refused():
    encoder = Encoder.initialise(EncoderConfig(backbone=BackboneConfig(widths=(4,))), seed=0)
    state = {k: v.contiguous() for k, v in encoder.backbone.net.state_dict().items()}
    data = save(state, {"lookalike": json.dumps({"preprocess_rule": 99})})
    with pytest.raises(ValueError, match="preprocess_rule is 99"):
        from_file(data, "newer.safetensors")


def test_a_size_that_the_network_cannot_take_is_refused_with_the_usual_one():
    foreign = from_timm("vit_tiny_patch16_224", "random")
    with pytest.raises(ValueError, match=r"takes no pictures of 8 px.*224 is usual"):
        at(foreign, 8)
