import math

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from torchvision.transforms import InterpolationMode

from encoders import pixel_ops
from encoders.pixel_ops import (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    gaussian_blur,
    resample,
    shift_hue,
    solarise,
    to_gray,
)


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
    adjusted = ours(images, torch.tensor(amounts))
    for row, amount in enumerate(amounts):
        torch.testing.assert_close(adjusted[row], theirs(images[row], amount), atol=2e-6, rtol=0)


def test_gray_and_solarise_equal_torchvision(images):
    gray = TF.rgb_to_grayscale(images, num_output_channels=1)
    torch.testing.assert_close(to_gray(images), gray, atol=1e-6, rtol=0)
    torch.testing.assert_close(solarise(images), TF.solarize(images, 0.5), atol=0, rtol=0)


def test_a_third_of_the_colour_circle_turns_red_into_green():
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    green = shift_hue(red, torch.tensor([1 / 3]))
    torch.testing.assert_close(green.flatten(), torch.tensor([0.0, 1.0, 0.0]), atol=1e-6, rtol=0)


def test_hue_turned_there_and_back_is_the_picture(images):
    turn = torch.linspace(-0.4, 0.4, 5)
    torch.testing.assert_close(shift_hue(shift_hue(images, turn), -turn), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("radius", [1, 3])
def test_blur_equals_torchvision_with_each_sigma(images, radius):
    sigmas = torch.tensor([0.1, 0.5, 1.0, 2.0, 7.0])
    blurred = gaussian_blur(images, sigmas, radius)
    for row, sigma in enumerate(sigmas.tolist()):
        expected = TF.gaussian_blur(images[row], [2 * radius + 1] * 2, [sigma] * 2)
        torch.testing.assert_close(blurred[row], expected, atol=1e-6, rtol=0)


def boxes(*rows: tuple[float, float, float, float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


@pytest.fixture
def pixels():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, 20, 26), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("size", [8, 13, 20, 40])
def test_the_whole_picture_is_resized_as_torchvision_does_with_antialias(pixels, size):
    whole = boxes((0, 0, 26, 20), (0, 0, 26, 20))
    ours = resample(pixels, whole, torch.tensor([False, True]), size)
    theirs = TF.resize(
        pixels.float() / 255, [size, size], InterpolationMode.BILINEAR, antialias=True
    )
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours[1], theirs[1].flip(-1), atol=1e-5, rtol=0)


def test_a_crop_equals_torchvision_away_from_its_edges(pixels):
    ours = resample(pixels, boxes((6, 2, 14, 15), (6, 2, 14, 15)), torch.zeros(2) > 0, 16)
    theirs = TF.resized_crop(
        pixels.float() / 255, 2, 6, 15, 14, [16, 16], InterpolationMode.BILINEAR, antialias=True
    )
    torch.testing.assert_close(ours[..., 2:-2, 2:-2], theirs[..., 2:-2, 2:-2], atol=1e-5, rtol=0)


def naive_resample(picture: torch.Tensor, box, flip: bool, size: int) -> torch.Tensor:
    left, top, box_width, box_height = box
    height, width = picture.shape[1:]
    out = torch.zeros(3, size, size)
    step_x, step_y = box_width / size, box_height / size
    for row in range(size):
        for column in range(size):
            across = size - 1 - column if flip else column
            x, y = left + (across + 0.5) * step_x, top + (row + 0.5) * step_y
            total = 0.0
            for v in range(height):
                for u in range(width):
                    weight_x = max(0.0, 1 - abs(u + 0.5 - x) / max(step_x, 1))
                    weight_y = max(0.0, 1 - abs(v + 0.5 - y) / max(step_y, 1))
                    out[:, row, column] += weight_x * weight_y * picture[:, v, u]
                    total += weight_x * weight_y
            out[:, row, column] /= total
    return out


def test_resampling_equals_the_filter_written_as_loops():
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (3, 3, 9, 7), generator=generator, dtype=torch.uint8)
    rows = [(0.3, 1.7, 5.5, 4.2), (2.0, 0.0, 2.5, 9.0), (0.0, 0.0, 7.0, 9.0)]
    flips = [True, False, True]
    ours = resample(pixels, boxes(*rows), torch.tensor(flips), 4)
    for row in range(3):
        expected = naive_resample(pixels[row].float() / 255, rows[row], flips[row], 4)
        torch.testing.assert_close(ours[row], expected, atol=1e-5, rtol=0)


def test_memory_layout_does_not_matter(pixels):
    whole, flips = boxes((1, 2, 20, 15), (0, 0, 26, 20)), torch.tensor([True, False])
    channels_last = pixels.contiguous(memory_format=torch.channels_last)
    assert torch.equal(resample(pixels, whole, flips, 8), resample(channels_last, whole, flips, 8))


def test_the_identity_box_gives_the_picture_back():
    square = torch.arange(3 * 36, dtype=torch.uint8).view(1, 3, 6, 6)
    same = resample(square, boxes((0, 0, 6, 6)), torch.tensor([False]), 6)
    torch.testing.assert_close(same * 255, square.float(), atol=1e-4, rtol=0)


def test_one_colour_stays_that_colour_under_every_box():
    flat = torch.full((1, 3, 10, 10), 77, dtype=torch.uint8)
    cut = resample(flat, boxes((3.3, 0, 0.7, 10)), torch.tensor([True]), 5)
    assert math.isclose(cut.min().item(), 77 / 255, rel_tol=1e-5)
    assert math.isclose(cut.max().item(), 77 / 255, rel_tol=1e-5)


def test_the_jitter_has_its_four_adjustments_in_the_order_of_its_strengths():
    assert (
        adjust_brightness,
        adjust_contrast,
        adjust_saturation,
        shift_hue,
    ) == pixel_ops.ADJUSTMENTS
