"""Picture operations in which every picture of a batch has parameters of its own.

Each equals the torchvision function of that meaning applied picture by picture, up to rounding.
Shapes: N pictures, H and W source, S result; pictures are float32 ``[N, 3, ...]`` in [0, 1].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "ADJUSTMENTS",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_saturation",
    "gaussian_blur",
    "resample",
    "shift_hue",
    "solarise",
    "to_gray",
]

# ITU-R 601-2, to the digits that torchvision and Pillow use.
LUMA = (0.2989, 0.587, 0.114)


def resample(pixels_N3HW: Tensor, boxes_N4: Tensor, flips_N: Tensor, size: int) -> Tensor:
    """Cut a box from each picture, resize it to a square and mirror it, by one antialiased filter.

    The filter reaches over a box's edge into the picture around it, and no further.

    Args:
        pixels_N3HW: uint8, best in channels_last layout.
        boxes_N4: float left, top, width, height in source pixels, not necessarily whole.
        flips_N: bool, mirror left and right.
        size: S.

    Returns:
        float32 ``[N, 3, S, S]`` in [0, 1], contiguous.
    """
    num, _, height, width = pixels_N3HW.shape
    left, top, box_width, box_height = boxes_N4.to(pixels_N3HW.device).unbind(1)
    upright = torch.zeros_like(flips_N)
    rows_NSH = _filter_weights(top, box_height, upright, height, size)
    columns_NSW = _filter_weights(left, box_width, flips_N.to(left.device), width, size)
    source = pixels_N3HW.permute(0, 2, 3, 1).reshape(num, height, width * 3).float()
    tall = torch.bmm(rows_NSH, source).view(num, size, width, 3)
    planes = tall.permute(0, 3, 1, 2).reshape(num, 3 * size, width)
    # The weights are a mean; only rounding can leave [0, 1].
    square = torch.bmm(planes, columns_NSW.transpose(1, 2)).div_(255).clamp_(0, 1)
    return square.view(num, 3, size, size)


def _filter_weights(
    start_N: Tensor, length_N: Tensor, flips_N: Tensor, source: int, size: int
) -> Tensor:
    """Triangle filter ``[N, size, source]``, as wide as a pixel of the coarser side."""
    step_N11 = (length_N / size)[:, None, None]
    targets = torch.arange(size, device=start_N.device) + 0.5
    targets_NS = torch.where(flips_N.to(start_N.device)[:, None], size - targets, targets)
    centres_NS1 = start_N[:, None, None] + targets_NS[:, :, None] * step_N11
    sources = torch.arange(source, device=start_N.device) + 0.5
    weights = F.relu(1 - (sources - centres_NS1).abs() / step_N11.clamp_min(1))
    return weights / weights.sum(-1, keepdim=True)


def to_gray(images_N3SS: Tensor) -> Tensor:
    """Luma, ``[N, 1, S, S]``."""
    red, green, blue = images_N3SS.unbind(1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).unsqueeze(1)


def adjust_brightness(images_N3SS: Tensor, factor_N: Tensor) -> Tensor:
    """Multiply every value."""
    return (images_N3SS * factor_N.view(-1, 1, 1, 1)).clamp_(0, 1)


def adjust_contrast(images_N3SS: Tensor, factor_N: Tensor) -> Tensor:
    """Multiply the distance from each picture's mean luma."""
    mean_N111 = to_gray(images_N3SS).mean((1, 2, 3), keepdim=True)
    return _away_from(mean_N111, images_N3SS, factor_N)


def adjust_saturation(images_N3SS: Tensor, factor_N: Tensor) -> Tensor:
    """Multiply the distance from each pixel's luma."""
    return _away_from(to_gray(images_N3SS), images_N3SS, factor_N)


def _away_from(anchor: Tensor, images_N3SS: Tensor, factor_N: Tensor) -> Tensor:
    return torch.lerp(anchor, images_N3SS, factor_N.view(-1, 1, 1, 1)).clamp_(0, 1)


def shift_hue(images_N3SS: Tensor, shift_N: Tensor) -> Tensor:
    """Turn the hue by a share of the colour circle; saturation and value of HSV stay.

    The way back from HSV is the closed form max - chroma * clamp(2 - |k - 2|, 0, 1) with
    k = (6 hue + 5, 3, 1) mod 6 for red, green and blue.
    """
    red, green, blue = images_N3SS.unbind(1)
    top, bottom = images_N3SS.amax(1), images_N3SS.amin(1)
    chroma = top - bottom
    inverse = torch.where(chroma > 0, chroma, 1).reciprocal_()
    sextant = torch.where(
        top == red,
        (green - blue) * inverse,
        torch.where(top == green, (blue - red) * inverse + 2, (red - green) * inverse + 4),
    ).add_(6 * shift_N.view(-1, 1, 1))
    offsets = sextant.new_tensor([5, 3, 1]).view(3, 1, 1)
    k = (sextant.unsqueeze(1) + offsets).remainder_(6)
    share = k.sub_(2).abs_().neg_().add_(2).clamp_(0, 1)
    return torch.addcmul(top.unsqueeze(1), chroma.unsqueeze(1), share, value=-1)


ADJUSTMENTS = (adjust_brightness, adjust_contrast, adjust_saturation, shift_hue)


def gaussian_blur(images_N3SS: Tensor, sigma_N: Tensor, radius: int) -> Tensor:
    """Separable blur with a kernel of 2 radius + 1 taps and reflected borders.

    Args:
        images_N3SS: pictures with S > radius.
        sigma_N: standard deviation in pixels, > 0.
        radius: taps on each side.
    """
    num, channels, height, width = images_N3SS.shape
    taps = torch.arange(-radius, radius + 1, device=images_N3SS.device, dtype=torch.float32)
    kernel_NT = torch.softmax(-0.5 * (taps / sigma_N[:, None]) ** 2, dim=1)
    kernels = kernel_NT.repeat_interleave(channels, dim=0).view(num * channels, 1, 1, len(taps))
    padded = F.pad(images_N3SS, (radius,) * 4, mode="reflect")
    planes = padded.reshape(1, num * channels, height + 2 * radius, width + 2 * radius)
    blurred = F.conv2d(planes, kernels, groups=num * channels)
    blurred = F.conv2d(blurred, kernels.transpose(2, 3), groups=num * channels)
    return blurred.view(num, channels, height, width)


def solarise(images_N3SS: Tensor) -> Tensor:
    """Invert the values of one half and above."""
    return torch.where(images_N3SS >= 0.5, 1 - images_N3SS, images_N3SS)
