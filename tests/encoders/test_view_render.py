import dataclasses

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF

from encoders import view_render
from encoders.augment import DRAWS, AugmentConfig, augment_views, view_parameters
from encoders.counter_rng import uniform_NK
from encoders.pixel_ops import ADJUSTMENTS
from encoders.view_render import ViewParameters, render

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


def test_a_view_is_what_torchvision_makes_of_its_crop_by_its_parameters():
    pixels, drawn = pictures(24), parameters(24)
    nothing = torch.zeros(24, dtype=torch.bool)
    cropped = dataclasses.replace(
        drawn,
        kinds=torch.full((24, 4), -1),
        grays=nothing,
        blurs=nothing,
        solarised=nothing,
    )
    views = render(pixels, drawn, size=33)
    for row, crop in enumerate(render(pixels, cropped, size=33)):
        image = by_torchvision(crop, drawn, row)
        apart = (views[row] - image).abs()
        if drawn.solarised[row]:
            # A value within rounding of one half may fall on either side.
            apart = (
                (views[row] - TF.solarize(image, 0.5)).abs().where((image - 0.5).abs() > 1e-4, 0)
            )
        assert apart.max() < 2e-5, row
    assert len(TORCHVISION) == len(ADJUSTMENTS)


@pytest.mark.parametrize("config", [EVERYTHING, AugmentConfig(crop_size=32)], ids=["odd", "even"])
def test_blocks_change_no_bit(config, monkeypatch):
    pixels, ids = pictures(40), torch.arange(40)
    whole = None
    for block_bytes in (1, 50_000, 10**9):
        monkeypatch.setattr(view_render, "BLOCK_BYTES", block_bytes)
        views = torch.stack(augment_views(pixels, ids, views=[config] * 2, seed=1, epoch=2))
        whole = views if whole is None else whole
        assert torch.equal(views, whole)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_no_bit(threads):
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
