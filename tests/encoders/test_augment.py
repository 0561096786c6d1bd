import dataclasses
import math

import pytest
import torch
import torchvision.transforms.v2 as T
import torchvision.transforms.v2.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.augment import AugmentConfig, augment, augment_views, crop_boxes
from encoders.counter_rng import uniform_NK
from encoders.encoder import normalise
from encoders.preprocess import PreprocessConfig

PLAIN = AugmentConfig(
    crop_size=16,
    crop_scale=(1.0, 1.0),
    crop_ratio=(1.0, 1.0),
    flip_probability=0.0,
    jitter_probability=0.0,
    gray_probability=0.0,
)
FULL = AugmentConfig(crop_size=16, blur_probability=0.5, solarise_probability=0.3)


def with_(config: AugmentConfig, **changes) -> AugmentConfig:
    return dataclasses.replace(config, **changes)


def pictures(num: int, edge: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(num, 3, 5, 5, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(edge, edge), mode="bilinear")
    return (fine * 255).to(torch.uint8)


def view(pixels, ids=None, *, config=FULL, seed=0, epoch=0, number=0):
    ids = torch.arange(len(pixels)) if ids is None else ids
    return augment(pixels, ids, config=config, seed=seed, epoch=epoch, view=number)


def several(pixels, configs, *, preprocess=None):
    ids = torch.arange(len(pixels))
    return augment_views(pixels, ids, views=configs, seed=0, epoch=0, preprocess=preprocess)


def test_one_picture_repeated_gives_as_many_distinct_views():
    views = view(pictures(1).expand(24, -1, -1, -1))
    assert views.shape == (24, 3, 16, 16)
    assert views.dtype == torch.float32
    distances = torch.cdist(views.flatten(1), views.flatten(1)) + torch.eye(24) * 9
    assert distances.min() > 0.1


def test_a_view_depends_on_its_own_picture_and_id_alone():
    pixels, ids = pictures(12), torch.arange(100, 112)
    together = view(pixels, ids)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(view(pixels[order], ids[order]), together[order])
    for start in (0, 5, 11):
        part = slice(start, start + 5)
        assert torch.equal(view(pixels[part], ids[part]), together[part])


def test_two_ranks_together_see_what_one_sees():
    pixels, ids = pictures(8), torch.arange(8)
    ranks = [view(pixels[rank::2], ids[rank::2]) for rank in range(2)]
    alone = view(pixels, ids)
    for rank in range(2):
        assert torch.equal(ranks[rank], alone[rank::2])


def test_seed_epoch_and_view_each_change_every_picture():
    pixels = pictures(6)
    first = view(pixels)
    for other in (view(pixels, seed=1), view(pixels, epoch=1), view(pixels, number=1)):
        assert ((other - first).flatten(1).abs().amax(1) > 0.02).all()
    assert torch.equal(first, view(pixels))


def test_values_stay_between_zero_and_one_at_great_strength():
    wild = with_(FULL, brightness=3.0, contrast=3.0, saturation=3.0, hue=0.5)
    for epoch in range(3):
        views = view(pictures(16), config=wild, epoch=epoch)
        assert views.min() >= 0
        assert views.max() <= 1


def test_an_empty_batch_gives_no_views():
    assert view(pictures(3)[:0]).shape == (0, 3, 16, 16)
    small = with_(FULL, crop_size=8)
    shapes = [drawn.shape for drawn in several(pictures(3)[:0], [FULL, FULL, small])]
    assert shapes == [(0, 3, 16, 16), (0, 3, 16, 16), (0, 3, 8, 8)]


def test_all_views_in_one_call_are_the_views_one_by_one():
    pixels = pictures(9)
    small = with_(FULL, crop_size=8, crop_scale=(0.05, 0.2))
    other = with_(FULL, hue=0.0, blur_probability=1.0)
    configs = [FULL, other, small, FULL, small]
    drawn = several(pixels, configs)
    for number, config in enumerate(configs):
        assert torch.equal(drawn[number], view(pixels, config=config, number=number))
        assert drawn[number].is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(drawn[0], drawn[3])


def test_views_are_normalised_as_the_encoder_does():
    pixels, preprocess = pictures(5), PreprocessConfig(size=16)
    plain = several(pixels, [FULL, FULL])
    for number, drawn in enumerate(several(pixels, [FULL, FULL], preprocess=preprocess)):
        assert torch.equal(drawn, normalise(plain[number], preprocess))


@pytest.mark.parametrize("shape", [(17, 40), (33, 21), (16, 16)])
def test_pictures_of_any_shape_are_cut_alike_in_any_memory_layout(shape):
    pixels = torch.nn.functional.interpolate(pictures(6), size=shape)
    drawn = view(pixels, config=with_(FULL, crop_size=13))
    assert drawn.shape == (6, 3, 13, 13)
    again = pixels.contiguous(memory_format=torch.channels_last)
    assert torch.equal(view(again, config=with_(FULL, crop_size=13)), drawn)


def test_a_crop_larger_than_the_pictures_of_the_cache_is_refused():
    message = r"crops of 24 px from pictures of 20 x 20 px.*no larger.*make the cache anew"
    with pytest.raises(ValueError, match=message):
        several(pictures(3), [FULL, with_(FULL, crop_size=24)])


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(2, 3, 20, 20),
        torch.zeros(2, 20, 20, 3, dtype=torch.uint8),
        torch.zeros(3, 20, 20, dtype=torch.uint8),
    ],
)
def test_what_is_no_batch_of_pictures_is_refused(pixels):
    with pytest.raises(ValueError, match=r"must be uint8 \[N, 3, H, W\]. Give pictures"):
        several(pixels, [FULL])


def test_with_everything_off_a_view_is_the_resized_picture():
    pixels = pictures(4)
    expected = TF.resize(pixels.float() / 255, [16, 16], antialias=True)
    torch.testing.assert_close(view(pixels, config=PLAIN), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "reference"),
    [
        ({"flip_probability": 1.0}, lambda x: x.flip(-1)),
        ({"gray_probability": 1.0}, lambda x: TF.rgb_to_grayscale(x, 3)),
        ({"solarise_probability": 1.0}, lambda x: TF.solarize(x, 0.5)),
        (
            {"blur_probability": 1.0, "blur_sigma": (0.8, 0.8)},
            lambda x: TF.gaussian_blur(x, [3, 3], [0.8, 0.8]),
        ),
    ],
)
def test_probability_one_changes_every_picture_as_torchvision_does(change, reference):
    pixels = pictures(5)
    plain = view(pixels, config=PLAIN)
    changed = view(pixels, config=with_(PLAIN, **change))
    torch.testing.assert_close(changed, reference(plain), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["flip", "gray", "solarise", "blur", "jitter"])
def test_a_probability_is_the_share_of_pictures_changed(name):
    pixels = pictures(1).expand(600, -1, -1, -1)
    plain = view(pixels, config=PLAIN)
    config = with_(PLAIN, **{f"{name}_probability": 0.3}, blur_sigma=(1.0, 2.0))
    changed = (view(pixels, config=config) - plain).abs().flatten(1).amax(1) > 1e-4
    # Five standard deviations of a share of 600.
    assert abs(changed.float().mean().item() - 0.3) < 0.094


@pytest.mark.parametrize(
    ("field", "apply"),
    [
        ("brightness", TF.adjust_brightness),
        ("contrast", TF.adjust_contrast),
        ("saturation", TF.adjust_saturation),
    ],
)
def test_jitter_draws_its_factor_evenly_from_the_stated_range(field, apply):
    off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    config = with_(PLAIN, jitter_probability=1.0, **(off | {field: 0.4}))
    pixels = pictures(1).expand(200, -1, -1, -1)
    plain = view(pixels[:1], config=PLAIN)
    grid = torch.linspace(0.6, 1.4, 801)
    candidates = torch.stack([apply(plain[0], factor) for factor in grid.tolist()]).flatten(1)
    views = view(pixels, config=config).flatten(1)
    distance, nearest = torch.cdist(views, candidates).min(1)
    assert distance.max() < 0.05
    factors = grid[nearest].sort().values
    evenly = torch.linspace(0.6, 1.4, 200)
    # Kolmogorov and Smirnov: 99.9 % of samples of 200 stay within 0.138 of the range.
    assert (factors - evenly).abs().max() < 0.138 * 0.8


def test_jitter_takes_each_order_of_its_adjustments_equally_often():
    config = with_(
        PLAIN, jitter_probability=1.0, brightness=0.9, contrast=0.9, saturation=0.0, hue=0.0
    )
    num = 400
    pixels = pictures(1).expand(num, -1, -1, -1)
    plain = view(pixels[:1], config=PLAIN)[0]
    # The factors are the 24th and 25th draw; the orders differ in the means that contrast takes.
    factors = 0.1 + 1.8 * uniform_NK(0, 0, torch.arange(num), 0, 26)[:, 24:26]
    views = view(pixels, config=config)
    brightness_first = 0
    for row in range(num):
        bright, contrast = factors[row].tolist()
        one = TF.adjust_contrast(TF.adjust_brightness(plain, bright), contrast)
        two = TF.adjust_brightness(TF.adjust_contrast(plain, contrast), bright)
        distances = [(views[row] - way).abs().max().item() for way in (one, two)]
        assert min(distances) < 1e-5
        brightness_first += distances[0] <= distances[1]
    assert abs(brightness_first / num - 0.5) < 0.125


def drawn_boxes(num: int, height: int, width: int, config: AugmentConfig) -> torch.Tensor:
    draws = uniform_NK(7, 0, torch.arange(num), 0, 22)
    return crop_boxes(draws[:, :10], draws[:, 10:20], draws[:, 20:], height, width, config)


@pytest.mark.parametrize(("height", "width"), [(200, 200), (120, 300)])
def test_crops_are_distributed_as_torchvisions(height, width):
    config = AugmentConfig(crop_scale=(0.2, 1.0))
    ours = drawn_boxes(4000, height, width, config)
    torch.manual_seed(0)
    reference = T.RandomResizedCrop(8, scale=config.crop_scale, ratio=config.crop_ratio)
    picture = torch.zeros(1, height, width)
    drawn = [reference.make_params([picture]) for _ in range(2000)]
    theirs = torch.tensor([[d["left"], d["top"], d["width"], d["height"]] for d in drawn]).float()
    for column in range(4):
        points = torch.linspace(0, 1, 21)
        ours_at = torch.quantile(ours[:, column], points[1:-1])
        theirs_at = torch.quantile(theirs[:, column], points[1:-1])
        assert (ours_at - theirs_at).abs().max() < 0.05 * max(height, width)
    areas = [box[:, 2] * box[:, 3] / (height * width) for box in (ours, theirs)]
    assert abs(areas[0].mean() - areas[1].mean()) < 0.02


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(8, 300),
    width=st.integers(8, 300),
    low=st.floats(0.01, 1.0),
    ratio=st.floats(0.1, 1.0),
)
def test_every_crop_lies_inside_its_picture_and_keeps_its_ratio(height, width, low, ratio):
    config = AugmentConfig(crop_scale=(low, 1.0), crop_ratio=(ratio, 1 / ratio))
    left, top, box_width, box_height = drawn_boxes(40, height, width, config).double().unbind(1)
    assert (torch.stack([left, top]) >= 0).all()
    assert (left + box_width <= width * (1 + 1e-5)).all()
    assert (top + box_height <= height * (1 + 1e-5)).all()
    seen = box_width / box_height
    assert (seen >= ratio * (1 - 1e-4)).all()
    assert (seen <= (1 + 1e-4) / ratio).all()


def test_when_no_attempt_fits_the_crop_is_the_largest_in_the_centre():
    config = AugmentConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    assert drawn_boxes(1, 20, 60, config)[0].tolist() == [20, 0, 20, 20]


def test_presets_state_the_published_strengths():
    small, large = AugmentConfig.simclr(32), AugmentConfig.simclr(224, strength=1.0)
    assert (small.brightness, small.hue, small.blur_probability) == (0.4, 0.1, 0.0)
    assert math.isclose(large.hue, 0.2)
    assert (large.brightness, large.blur_probability) == (0.8, 0.5)
    assert AugmentConfig.moco_v2(224).crop_scale == (0.2, 1.0)
    first, second = (AugmentConfig.byol(224, view=number) for number in (0, 1))
    assert (first.blur_probability, first.solarise_probability) == (1.0, 0.0)
    assert (second.blur_probability, second.solarise_probability) == (0.1, 0.2)
    assert first.saturation == 0.2


@pytest.mark.parametrize(
    "change",
    [
        {"flip_probability": 1.1},
        {"crop_scale": (0.5, 0.2)},
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.5, 1.5)},
        {"crop_ratio": (-1.0, 1.0)},
        {"blur_sigma": (0.0, 1.0)},
        {"hue": 0.6},
        {"contrast": -0.1},
        {"crop_size": 4},
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        AugmentConfig(**change)
