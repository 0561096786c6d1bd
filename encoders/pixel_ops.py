"""Picture operations in place, in which every picture of a batch has parameters of its own.

Each equals the torchvision function of that meaning applied picture by picture, up to rounding.
Colours lie apart, so that each operation runs over long lines of memory; comparisons and choices,
which are slow on a CPU, are written as arithmetic.

Shapes: N pictures, S edge, T taps, P pixels; pictures are float32 ``[3, N, S, S]`` in [0, 1], and
which of the last two axes is the height matters to none.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from encoders.resample import weighted_rows

__all__ = [
    "ADJUSTMENTS",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_saturation",
    "blur",
    "blur_kernels",
    "drop_colour",
    "shift_hue",
    "solarise",
    "to_gray",
]

# ITU-R 601-2, to the digits that torchvision and Pillow use.
LUMA = (0.2989, 0.587, 0.114)
TINY = 1e-20


def to_gray(images_3NSS: Tensor) -> Tensor:
    """Luma, a new ``[N, S, S]``."""
    red, green, blue = images_3NSS.unbind()
    return (red * _constant(LUMA[0])).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def drop_colour(images_3NSS: Tensor) -> None:
    """Luma in place of each colour."""
    images_3NSS.copy_(to_gray(images_3NSS))


def adjust_brightness(images_3NSS: Tensor, factor_N: Tensor) -> None:
    """Multiply every value."""
    images_3NSS.mul_(factor_N.view(-1, 1, 1)).clamp_max_(1)


def adjust_contrast(images_3NSS: Tensor, factor_N: Tensor) -> None:
    """Multiply the distance from each picture's mean luma."""
    factor_N11 = factor_N.view(-1, 1, 1)
    mean_N11 = to_gray(images_3NSS.mean((2, 3), keepdim=True))
    images_3NSS.mul_(factor_N11).add_(mean_N11.mul_(1 - factor_N11)).clamp_(0, 1)


def adjust_saturation(images_3NSS: Tensor, factor_N: Tensor) -> None:
    """Multiply the distance from each pixel's luma."""
    factor_N11 = factor_N.view(-1, 1, 1)
    rest_NSS = to_gray(images_3NSS).mul_(1 - factor_N11)
    images_3NSS.mul_(factor_N11).add_(rest_NSS).clamp_(0, 1)


def shift_hue(images_3NSS: Tensor, shift_N: Tensor) -> None:
    """Turn the hue by a share of the colour circle; saturation and value of HSV stay.

    With M and m the largest and smallest colour of a pixel and C = M - m, its hue is
    1/6 + (G + B - R - m) / 6C of the circle away from red, on green's side where G >= B. On the way
    back red is m + 6C ramp(hue - 1/2), green and blue are M - 6C ramp(hue - 1/3 or 2/3), with
    ramp(x) = clamp(abs(x) - 1/6, 0, 1/6).
    """
    red, green, blue = images_3NSS.unbind()
    sixth = _constant(1 / 6)
    high, low = torch.maximum(green, blue), torch.minimum(green, blue)
    hue_NSS = (high + low).sub_(red)
    high, low = torch.maximum(high, red, out=high), torch.minimum(low, red, out=low)
    chroma6_NSS = (high - low).mul_(_constant(6.0)).clamp_min_(TINY)
    hue_NSS.sub_(low).div_(chroma6_NSS).add_(sixth).copysign_(green.sub_(blue))
    # One turn more, so that the fraction is that of a positive number.
    hue_NSS.add_(shift_N.view(-1, 1, 1) + 1).frac_()
    for colour, centre in ((red, 1 / 2), (green, 1 / 3), (blue, 2 / 3)):
        torch.sub(hue_NSS, _constant(centre), out=colour).abs_()
    images_3NSS.sub_(sixth).clamp_(0, 1 / 6).mul_(chroma6_NSS)
    red.add_(low)
    torch.sub(high, images_3NSS[1:], out=images_3NSS[1:])


ADJUSTMENTS = (adjust_brightness, adjust_contrast, adjust_saturation, shift_hue)


def blur_kernels(sigma_N: Tensor, radius: int) -> Tensor:
    """Gaussian weights ``[N, 2 radius + 1]`` for standard deviations in pixels, > 0."""
    taps_T = torch.arange(-radius, radius + 1, device=sigma_N.device, dtype=torch.float32)
    kernels_NT = torch.softmax(-0.5 * (taps_T / sigma_N[:, None]) ** 2, dim=1)
    # Far taps may be denormal numbers, with which a processor is a hundred times slower.
    return F.threshold(kernels_NT, 1e-9, 0.0)


def blur(images_3NSS: Tensor, kernels_NT: Tensor) -> None:
    """Separable blur with reflected borders; half a kernel is shorter than a picture."""
    _, num, size, _ = images_3NSS.shape
    places_ST = _reflected(size, kernels_NT.shape[1], images_3NSS.device)
    starts = torch.arange(0, 3 * num * size, size, device=places_ST.device, dtype=torch.int32)
    places_3NST = places_ST + starts.view(3, num, 1, 1)
    weights_3NST = kernels_NT[:, None].expand(places_3NST.shape)
    blurred = images_3NSS
    for _ in range(2):
        turned_RS = blurred.transpose(2, 3).reshape(-1, size)
        blurred = weighted_rows(turned_RS, places_3NST, weights_3NST)
    images_3NSS.copy_(blurred)


def solarise(images_3NSS: Tensor) -> None:
    """Invert the values of one half and above: take the smaller of a value and its inverse."""
    torch.minimum(images_3NSS, 1 - images_3NSS, out=images_3NSS)


@functools.cache
def _constant(value: float) -> Tensor:
    """A number as torch wants it.

    One of Python's is converted anew each time, which takes longer than to add it to a picture.
    """
    return torch.tensor(value)


@functools.lru_cache(maxsize=64)
def _reflected(size: int, num_taps: int, device: torch.device) -> Tensor:
    """int32 ``[S, T]``: the positions around each position of a line that ends in mirrors."""
    line_1S = torch.arange(size, device=device, dtype=torch.float32)[None]
    padded_P = F.pad(line_1S, (num_taps // 2, num_taps // 2), mode="reflect")[0]
    return padded_P.int().unfold(0, num_taps, 1)
