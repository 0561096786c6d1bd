"""Views drawn on a processor: one compiled loop over views, each in the cache from end to end.

Does what `encoders.resample` and `encoders.pixel_ops` do with torch, which are its reference and
paint on GPUs. Nothing is computed across views, and no sum is reordered, so that a view is the same
to the bit whatever it is drawn together with, by however many threads, on whatever processor.

Compiled when it is first called, some ten seconds, and kept on disk from then on. Written so that
the compiler finds its vectors: plain loops over lines of memory, choices as minima and
maxima, unsigned positions where a table decides (a signed one might count from the end).

Shapes: N pictures, H and W their edges, M views, S edge and P pixels of a view, T taps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from encoders.compiled import compiled

__all__ = ["Work", "paint"]

Floats = NDArray[np.float32]

f32 = np.float32
position = np.uint64
RED, GREEN, BLUE = f32(0.2989), f32(0.587), f32(0.114)
SIXTH, THIRD, HALF, TWO_THIRDS = f32(1 / 6), f32(1 / 3), f32(1 / 2), f32(2 / 3)
ZERO, ONE, SIX, TINY = f32(0), f32(1), f32(6), f32(1e-20)


class Work(NamedTuple):
    """What `paint` takes; all of M views."""

    pixels: NDArray[np.uint8]
    """[N, H, W, 3]"""
    pictures: NDArray[np.int64]
    """[M], which of the pixels a view shows."""
    row_places: NDArray[np.int32]
    """[M, S, T], rows of the source, from `encoders.resample.find_taps`."""
    row_weights: Floats
    """[M, S, T], such that 255 becomes 1; zeros stand at either end alone."""
    column_places: NDArray[np.int32]
    """[M, S, T], likewise along the width."""
    column_weights: Floats
    """[M, S, T], which sum to 1."""
    kinds: NDArray[np.int64]
    """[M, 4], in their order: 0 brightness, 1 contrast, 2 saturation, 3 hue, -1 nothing."""
    amounts: Floats
    """[M, 4], of each of these kinds."""
    grays: NDArray[np.bool_]
    """[M], whose colour is dropped."""
    blurs: NDArray[np.bool_]
    """[M], which are blurred."""
    kernels: Floats
    """[M, T], with what; symmetric, and T is odd."""
    solarised: NDArray[np.bool_]
    """[M], which are solarised."""
    mean: Floats
    """[3], taken off the values in [0, 1]."""
    std: Floats
    """[3], what they are divided by then."""


@compiled
def paint(work: Work, first: int, last: int, views_MSS3: Floats) -> None:
    """Paint the views from ``first`` to before ``last``."""
    size = views_MSS3.shape[1]
    image_3SS = np.empty((3, size, size), f32)
    image_3P = image_3SS.reshape(3, size * size)
    line = np.empty(work.pixels.shape[2] * 3, f32)
    places_ST = np.empty(work.column_places.shape[1:], position)
    scratch_SS = np.empty((size, size), f32)
    padded = np.empty(size + work.kernels.shape[1], f32)
    for view in range(first, last):
        crop(work, view, (line, places_ST), image_3SS)
        for kind in work.kinds[view]:
            adjust(kind, work.amounts[view], image_3SS, scratch_SS[0])
        if work.grays[view]:
            drop_colour(image_3P)
        if work.blurs[view]:
            for colour in range(3):
                blur(image_3SS[colour], work.kernels[view], scratch_SS, padded)
        if work.solarised[view]:
            solarise(image_3P)
        normalise(image_3P, work.mean, work.std, views_MSS3[view].reshape(-1))


@compiled
def crop(
    work: Work, view: int, scratch: tuple[Floats, NDArray[np.uint64]], image_3SS: Floats
) -> None:
    """Weighted rows of the source, then of each such line weighted columns."""
    picture_HW3 = work.pixels[work.pictures[view]]
    row_places_ST, row_weights_ST = work.row_places[view], work.row_weights[view]
    column_places_ST, column_weights_ST = work.column_places[view], work.column_weights[view]
    line, places_ST = scratch
    size, num_taps = column_places_ST.shape
    left, right = column_places_ST.min(), column_places_ST.max() + 1
    for x in range(size):
        for tap in range(num_taps):
            places_ST[x, tap] = (column_places_ST[x, tap] - left) * 3
    for y in range(size):
        weigh_rows(picture_HW3, (left, right), row_places_ST[y], row_weights_ST[y], line)
        if num_taps == 2:
            weigh_two_columns(line, places_ST, column_weights_ST, image_3SS[:, y])
        else:
            weigh_columns(line, places_ST, column_weights_ST, image_3SS[:, y])


@compiled
def weigh_rows(
    picture_HW3: NDArray[np.uint8],
    part: tuple[int, int],
    places_T: NDArray[np.int32],
    weights_T: Floats,
    line: Floats,
) -> None:
    """Of the columns of a part."""
    left, right = part
    first, last = 0, len(weights_T) - 1
    while first < last and weights_T[first] == 0:
        first += 1
    while last > first and weights_T[last] == 0:
        last -= 1
    one, weight = picture_HW3[places_T[first], left:right].reshape(-1), weights_T[first]
    if last == first:
        for i in range(len(one)):
            line[i] = weight * f32(one[i])
        return
    two, weight_two = picture_HW3[places_T[first + 1], left:right].reshape(-1), weights_T[first + 1]
    for i in range(len(one)):
        line[i] = weight * f32(one[i]) + weight_two * f32(two[i])
    for tap in range(first + 2, last + 1):
        one, weight = picture_HW3[places_T[tap], left:right].reshape(-1), weights_T[tap]
        for i in range(len(one)):
            line[i] += weight * f32(one[i])


@compiled
def weigh_two_columns(
    line: Floats, places_S2: NDArray[np.uint64], weights_S2: Floats, out_3S: Floats
) -> None:
    """As many as a crop has that does not shrink."""
    green, blue = position(1), position(2)
    for x in range(len(places_S2)):
        here, there = places_S2[x, 0], places_S2[x, 1]
        weight, other = weights_S2[x, 0], weights_S2[x, 1]
        out_3S[0, x] = weight * line[here] + other * line[there]
        out_3S[1, x] = weight * line[here + green] + other * line[there + green]
        out_3S[2, x] = weight * line[here + blue] + other * line[there + blue]


@compiled
def weigh_columns(
    line: Floats, places_ST: NDArray[np.uint64], weights_ST: Floats, out_3S: Floats
) -> None:
    """Any number of them."""
    for x in range(len(places_ST)):
        red = green = blue = ZERO
        for tap in range(places_ST.shape[1]):
            here, weight = places_ST[x, tap], weights_ST[x, tap]
            red += weight * line[here]
            green += weight * line[here + position(1)]
            blue += weight * line[here + position(2)]
        out_3S[0, x], out_3S[1, x], out_3S[2, x] = red, green, blue


@compiled
def luma(red: Any, green: Any, blue: Any) -> Any:
    return RED * red + GREEN * green + BLUE * blue


@compiled
def clamped(value: Any) -> Any:
    return min(max(value, ZERO), ONE)


@compiled
def adjust(kind: int, amounts_4: Floats, image_3SS: Floats, scratch_S: Floats) -> None:
    image_3P = image_3SS.reshape(3, -1)
    if kind == 0:
        adjust_brightness(image_3P, amounts_4[0])
    elif kind == 1:
        adjust_contrast(image_3SS, amounts_4[1], scratch_S)
    elif kind == 2:
        adjust_saturation(image_3P, amounts_4[2])
    elif kind == 3:
        shift_hue(image_3P, amounts_4[3])


@compiled
def adjust_brightness(image_3P: Floats, factor: float) -> None:
    values = image_3P.reshape(-1)
    for i in range(len(values)):
        values[i] = min(values[i] * factor, ONE)


@compiled
def adjust_contrast(image_3SS: Floats, factor: float, sums_S: Floats) -> None:
    size = len(sums_S)
    sums_S[:] = ZERO
    for y in range(size):
        red, green, blue = image_3SS[0, y], image_3SS[1, y], image_3SS[2, y]
        for x in range(size):
            sums_S[x] += luma(red[x], green[x], blue[x])
    total = ZERO
    for x in range(size):
        total += sums_S[x]
    rest = total / f32(size * size) * (ONE - factor)
    values = image_3SS.reshape(-1)
    for i in range(len(values)):
        values[i] = clamped(values[i] * factor + rest)


@compiled
def adjust_saturation(image_3P: Floats, factor: float) -> None:
    red, green, blue = image_3P[0], image_3P[1], image_3P[2]
    for i in range(len(red)):
        rest = luma(red[i], green[i], blue[i]) * (ONE - factor)
        red[i] = clamped(red[i] * factor + rest)
        green[i] = clamped(green[i] * factor + rest)
        blue[i] = clamped(blue[i] * factor + rest)


@compiled
def ramp(hue: Any, centre: Any) -> Any:
    return min(max(abs(hue - centre) - SIXTH, ZERO), SIXTH)


@compiled
def shift_hue(image_3P: Floats, shift: float) -> None:
    """See `encoders.pixel_ops.shift_hue` for the formula."""
    red, green, blue = image_3P[0], image_3P[1], image_3P[2]
    turn = shift + ONE
    for i in range(len(red)):
        r, g, b = red[i], green[i], blue[i]
        high, low = max(r, g, b), min(r, g, b)
        chroma6 = max((high - low) * SIX, TINY)
        hue = (g + b - r - low) / chroma6 + SIXTH
        hue = (hue if g >= b else -hue) + turn
        hue -= np.floor(hue)
        red[i] = low + ramp(hue, HALF) * chroma6
        green[i] = high - ramp(hue, THIRD) * chroma6
        blue[i] = high - ramp(hue, TWO_THIRDS) * chroma6


@compiled
def drop_colour(image_3P: Floats) -> None:
    red, green, blue = image_3P[0], image_3P[1], image_3P[2]
    for i in range(len(red)):
        red[i] = green[i] = blue[i] = luma(red[i], green[i], blue[i])


@compiled
def blur(plane_SS: Floats, kernel_T: Floats, scratch_SS: Floats, padded: Floats) -> None:
    """Down the columns into ``scratch_SS``, and along its rows back; borders are mirrors."""
    size, centre = len(plane_SS), len(kernel_T) // 2
    reach = centre
    while reach > 0 and kernel_T[centre + reach] == 0:
        reach -= 1
    for y in range(size):
        middle, out = plane_SS[y], scratch_SS[y]
        for x in range(size):
            out[x] = kernel_T[centre] * middle[x]
        for tap in range(1, reach + 1):
            below = y + tap if y + tap < size else 2 * (size - 1) - y - tap
            add_two(plane_SS[abs(y - tap)], plane_SS[below], kernel_T[centre + tap], out)
    for y in range(size):
        middle, out = scratch_SS[y], plane_SS[y]
        for x in range(size):
            padded[reach + x] = middle[x]
            out[x] = kernel_T[centre] * middle[x]
        for tap in range(1, reach + 1):
            padded[reach - tap] = middle[tap]
            padded[reach + size - 1 + tap] = middle[size - 1 - tap]
        for tap in range(1, reach + 1):
            add_two(padded[reach - tap :], padded[reach + tap :], kernel_T[centre + tap], out)


@compiled
def add_two(one: Floats, two: Floats, weight: float, out: Floats) -> None:
    for x in range(len(out)):
        out[x] += weight * (one[x] + two[x])


@compiled
def solarise(image_3P: Floats) -> None:
    values = image_3P.reshape(-1)
    for i in range(len(values)):
        values[i] = min(values[i], ONE - values[i])


@compiled
def normalise(image_3P: Floats, mean_3: Floats, std_3: Floats, out: Floats) -> None:
    """Float rounding in resize, hue and blur steps over the ends by some 1e-7."""
    mean_red, mean_green, mean_blue = mean_3[0], mean_3[1], mean_3[2]
    std_red, std_green, std_blue = std_3[0], std_3[1], std_3[2]
    red, green, blue = image_3P[0], image_3P[1], image_3P[2]
    for i in range(len(red)):
        out[3 * i] = (clamped(red[i]) - mean_red) / std_red
        out[3 * i + 1] = (clamped(green[i]) - mean_green) / std_green
        out[3 * i + 2] = (clamped(blue[i]) - mean_blue) / std_blue
