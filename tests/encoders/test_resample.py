import math

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from torchvision.transforms import InterpolationMode

from encoders.resample import find_taps, weighted_rows
from encoders.resample import resample as resample_with_taps


def resample(pixels, boxes_N4, flips_N, size: int) -> torch.Tensor:
    """Every picture once, as ``[N, 3, S, S]`` in [0, 1]."""
    left, top, width, height = boxes_N4.unbind(1)
    rows = find_taps(top, height, torch.zeros_like(flips_N), pixels.shape[2], size)
    columns = find_taps(left, width, flips_N, pixels.shape[3], size)
    every = torch.arange(len(pixels))
    cut = resample_with_taps(pixels.permute(0, 2, 3, 1), every, rows, columns)
    return cut.permute(1, 0, 3, 2) / 255


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


def test_weighted_rows_are_sums_of_rows():
    table = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([[[0, 3], [6, 6]], [[1, 2], [5, 0]]], dtype=torch.int32)
    weights = torch.tensor([[[0.5, 2.0], [1.0, -1.0]], [[0.0, 1.0], [3.0, 0.25]]])
    sums = weighted_rows(table, rows, weights)
    assert sums.shape == (2, 2, 5)
    expected = [
        0.5 * table[0] + 2 * table[3],
        torch.zeros(5),
        table[2],
        3 * table[5] + 0.25 * table[0],
    ]
    torch.testing.assert_close(sums.view(4, 5), torch.stack(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("source", "size"), [(20, 20), (20, 33), (33, 20), (41, 8), (9, 64)])
def test_no_tap_of_the_filter_is_lost(source, size):
    generator = torch.Generator().manual_seed(source)
    length = (0.05 + 0.95 * torch.rand(50, generator=generator)) * source
    start = torch.rand(50, generator=generator) * (source - length)
    start[0], length[0] = 0, source
    taps = find_taps(start, length, torch.arange(50) % 2 == 0, source, size)
    dense = torch.zeros(50, size, source)
    dense.scatter_add_(2, taps.places.long(), taps.weights)
    step = (length / size)[:, None, None]
    along = torch.arange(size) + 0.5
    along = torch.where((torch.arange(50) % 2 == 0)[:, None], size - along, along)
    centres = start[:, None, None] + along[:, :, None] * step
    whole = (1 - (torch.arange(source) + 0.5 - centres).abs() / step.clamp_min(1)).clamp_min(0)
    torch.testing.assert_close(dense, whole / whole.sum(-1, keepdim=True), atol=2e-5, rtol=0)
    # Zeros stand at either end alone, which spares compiled code a look at each.
    inner = (taps.weights > 0).int().diff(dim=-1)
    assert ((inner == 1).sum(-1) <= 1).all()
    assert ((inner == -1).sum(-1) <= 1).all()


def test_one_picture_may_be_cut_several_times(pixels):
    where = boxes((0, 0, 26, 20), (3, 4, 9, 9), (0, 0, 26, 20))
    left, top, width, height = where.unbind(1)
    upright = torch.zeros(3, dtype=torch.bool)
    rows = find_taps(top, height, upright, 20, 8)
    columns = find_taps(left, width, upright, 26, 8)
    cut = resample_with_taps(
        pixels.permute(0, 2, 3, 1), torch.tensor([1, 0, 0]), rows, columns
    ).permute(1, 0, 3, 2)
    for row, picture in enumerate([1, 0, 0]):
        alone = resample(pixels[picture : picture + 1], where[row : row + 1], upright[:1], 8)
        assert torch.equal(cut[row] / 255, alone[0])
