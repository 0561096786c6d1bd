import dataclasses

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF

from encoders import view_render
from encoders.augment import DRAWS, AugmentConfig, augment_views, view_parameters
from encoders.counter_rng import uniform_NK
from encoders.pixel_ops import ADJUSTMENTS
from encoders.view_render import ViewParameters, paint_in_torch

PAINTERS = (view_render._paint_compiled, paint_in_torch)
MEAN, STD = (0, 0, 0), (1, 1, 1)
EVERYTHING = AugmentConfig(
    crop_size=33, blur_probability=0.5, gray_probability=0.3, solarise_probability=0.3
)
TORCHVISION = (
    TF.adjust_brightness,
    TF.adjust_contrast,
    TF.adjust_saturation,
    TF.adjust_hue,
)


def pictures(num: int, height: int = 41, width: int = 37) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(num, 3, 6, 6, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return (fine * 255).to(torch.uint8)


def parameters(num: int, config: AugmentConfig = EVERYTHING) -> ViewParameters:
    draws = uniform_NK(3, 0, torch.arange(num), 0, sum(DRAWS))
    return view_parameters(draws, config, 41, 37, num)


def by_torchvision(image: torch.Tensor, drawn: ViewParameters, row: int) -> torch.Tensor:
    """All but the crop and solarising."""
    for kind in drawn.kinds[row].tolist():
        if kind >= 0:
            image = TORCHVISION[kind](image, drawn.amounts[row, kind].item())
    if drawn.grays[row]:
        image = TF.rgb_to_grayscale(image, 3)
    if drawn.blurs[row]:
        image = TF.gaussian_blur(image, [3, 3], [drawn.sigmas[row].item()] * 2)
    return image


@pytest.mark.parametrize("paint", PAINTERS)
def test_a_view_is_what_torchvision_makes_of_its_crop_by_its_parameters(paint):
    pixels, drawn = pictures(24), parameters(24)
    nothing = torch.zeros(24, dtype=torch.bool)
    cropped = dataclasses.replace(
        drawn,
        kinds=torch.full((24, 4), -1),
        grays=nothing,
        blurs=nothing,
        solarised=nothing,
    )
    views = paint(pixels, drawn, 33, MEAN, STD)
    for row, crop in enumerate(paint(pixels, cropped, 33, MEAN, STD)):
        image = by_torchvision(crop, drawn, row)
        apart = (views[row] - image).abs()
        if drawn.solarised[row]:
            # A value within rounding of one half may fall on either side.
            apart = (
                (views[row] - TF.solarize(image, 0.5)).abs().where((image - 0.5).abs() > 1e-4, 0)
            )
        assert apart.max() < 2e-5, row
    assert len(TORCHVISION) == len(ADJUSTMENTS)


@pytest.mark.parametrize("size", [8, 20, 33, 37])
@pytest.mark.parametrize("height", [37, 90])
def test_compiled_code_paints_what_torch_paints(size, height):
    """Crops that shrink, by many taps, and that grow; blurs wider than they need; odd and even."""
    config = dataclasses.replace(
        EVERYTHING, crop_size=size, crop_scale=(0.05, 1), blur_sigma=(0.1, 3)
    )
    pixels, num = pictures(60, height), 60
    draws = uniform_NK(3, 0, torch.arange(num), 0, sum(DRAWS))
    drawn = view_parameters(draws, config, height, 37, num)
    ours, theirs = (
        paint(pixels, drawn, size, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)) for paint in PAINTERS
    )
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert ours.shape == theirs.shape == (num, 3, size, size)
    smooth = ~drawn.solarised  # A value within rounding of one half may fall on either side.
    torch.testing.assert_close(ours[smooth], theirs[smooth], atol=1e-4, rtol=0)
    apart = (ours - theirs).abs().amax((1, 2, 3))
    assert (apart > 1e-4).float().mean() < 0.05


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_layout_of_the_pixels_changes_no_bit(layout):
    pixels, ids = pictures(10), torch.arange(10)
    (apart,) = augment_views(
        pixels.contiguous(memory_format=layout), ids, views=[EVERYTHING], seed=1, epoch=2
    )
    (expected,) = augment_views(pixels, ids, views=[EVERYTHING], seed=1, epoch=2)
    assert torch.equal(apart, expected)


@pytest.mark.parametrize("config", [EVERYTHING, AugmentConfig(crop_size=32)], ids=["odd", "even"])
def test_company_changes_no_bit(config):
    pixels, ids = pictures(40), torch.arange(40)
    whole = augment_views(pixels, ids, views=[config] * 2, seed=1, epoch=2)
    for some in (slice(0, 1), slice(7, 30)):
        alone = augment_views(pixels[some], ids[some], views=[config] * 2, seed=1, epoch=2)
        for view, all_views in zip(alone, whole, strict=True):
            assert torch.equal(view, all_views[some])


def test_blocks_on_a_gpu_change_no_bit(monkeypatch):
    pixels, drawn, whole = pictures(40), parameters(40), None
    for block_bytes in (1, 50_000, 10**9):
        monkeypatch.setattr(view_render, "BLOCK_BYTES", block_bytes)
        views = paint_in_torch(pixels, drawn, 33, MEAN, STD)
        whole = views if whole is None else whole
        assert torch.equal(views, whole)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_no_bit(threads, monkeypatch):
    monkeypatch.setattr(view_render, "BYTES_A_THREAD", 1000)
    pixels, ids = pictures(30), torch.arange(30)
    before = torch.get_num_threads()
    drawn = []
    for count in (threads, 2):
        torch.set_num_threads(count)
        drawn.append(augment_views(pixels, ids, views=[EVERYTHING], seed=1, epoch=2)[0])
    torch.set_num_threads(before)
    assert torch.equal(*drawn)


def test_neighbours_are_adjusted_in_the_same_order():
    drawn = parameters(600)
    ordered = drawn.at(view_render._sorted(drawn)).kinds.numpy()
    runs = 1 + (ordered[1:] != ordered[:-1]).any(1).sum()
    assert runs == len(np.unique(ordered, axis=0)) == 25


@pytest.mark.gpu
def test_a_gpu_paints_what_the_processor_paints():
    pixels, ids = pictures(64), torch.arange(64)
    small = AugmentConfig(crop_size=20, crop_scale=(0.05, 0.2), blur_probability=0.5)
    views = [EVERYTHING, EVERYTHING, small]
    there = augment_views(pixels.cuda(), ids, views=views, seed=0, epoch=0)
    for ours, theirs in zip(
        augment_views(pixels, ids, views=views, seed=0, epoch=0), there, strict=True
    ):
        # Solarising turns a step at one half into a jump, whatever the rounding.
        apart = (ours - theirs.cpu()).abs().amax((1, 2, 3))
        assert (apart > 1e-4).float().mean() < 0.05
