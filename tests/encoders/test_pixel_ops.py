import pytest
import torch
import torchvision.transforms.v2.functional as TF

from encoders import pixel_ops
from encoders.pixel_ops import (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    blur,
    blur_kernels,
    drop_colour,
    shift_hue,
    solarise,
    to_gray,
)


def changed(operation, images_N3SS: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
    """What an operation, which works in place with colours first, makes of pictures."""
    images_3NSS = images_N3SS.transpose(0, 1).clone(memory_format=torch.contiguous_format)
    operation(images_3NSS, *parameters)
    return images_3NSS.transpose(0, 1)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(5, 3, 12, 12, generator=generator)
    noise[0, :, :4] = torch.tensor([0.2, 0.2, 0.2]).view(3, 1, 1)
    noise[0, :, 4:8] = torch.tensor([1.0, 0.0, 1.0]).view(3, 1, 1)
    noise[0, :, 8:] = torch.tensor([0.0, 0.5, 0.5]).view(3, 1, 1)
    return noise


@pytest.mark.parametrize(
    ("ours", "theirs", "amounts"),
    [
        (adjust_brightness, TF.adjust_brightness, [0.0, 0.5, 1.0, 1.4, 3.0]),
        (adjust_contrast, TF.adjust_contrast, [0.0, 0.5, 1.0, 1.4, 3.0]),
        (adjust_saturation, TF.adjust_saturation, [0.0, 0.5, 1.0, 1.4, 3.0]),
        (shift_hue, TF.adjust_hue, [-0.5, -0.1, 0.0, 0.2, 0.5]),
    ],
)
def test_colour_adjustments_equal_torchvision_picture_by_picture(images, ours, theirs, amounts):
    adjusted = changed(ours, images, torch.tensor(amounts))
    for row, amount in enumerate(amounts):
        torch.testing.assert_close(adjusted[row], theirs(images[row], amount), atol=2e-6, rtol=0)


def test_gray_and_solarise_equal_torchvision(images):
    gray = TF.rgb_to_grayscale(images, num_output_channels=1)
    torch.testing.assert_close(to_gray(images.transpose(0, 1))[:, None], gray, atol=1e-6, rtol=0)
    everywhere = gray.expand_as(images)
    torch.testing.assert_close(changed(drop_colour, images), everywhere, atol=1e-6, rtol=0)
    halves = torch.cat([images, torch.full_like(images, 0.5)])
    assert torch.equal(changed(solarise, halves), TF.solarize(halves, 0.5))


def test_a_third_of_the_colour_circle_turns_red_into_green():
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    green = changed(shift_hue, red, torch.tensor([1 / 3]))
    torch.testing.assert_close(green.flatten(), torch.tensor([0.0, 1.0, 0.0]), atol=1e-6, rtol=0)


def test_hue_turned_there_and_back_is_the_picture(images):
    turn = torch.linspace(-0.4, 0.4, 5)
    there = changed(shift_hue, images, turn)
    assert (there - images)[0].abs().max() > 0.5
    torch.testing.assert_close(changed(shift_hue, there, -turn), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("radius", [1, 3])
def test_blur_equals_torchvision_with_each_sigma(images, radius):
    sigmas = torch.tensor([0.1, 0.5, 1.0, 2.0, 7.0])
    blurred = changed(blur, images, blur_kernels(sigmas, radius))
    for row, sigma in enumerate(sigmas.tolist()):
        expected = TF.gaussian_blur(images[row], [2 * radius + 1] * 2, [sigma] * 2)
        torch.testing.assert_close(blurred[row], expected, atol=1e-6, rtol=0)


def test_the_jitter_has_its_four_adjustments_in_the_order_of_its_strengths():
    assert (
        adjust_brightness,
        adjust_contrast,
        adjust_saturation,
        shift_hue,
    ) == pixel_ops.ADJUSTMENTS


def test_a_blur_spends_no_time_on_denormal_weights():
    kernels = blur_kernels(torch.linspace(0.1, 2.0, 100), 11)
    assert kernels[kernels > 0].min() > torch.finfo(torch.float32).tiny
    torch.testing.assert_close(kernels.sum(1), torch.ones(100), atol=1e-6, rtol=0)
