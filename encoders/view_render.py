"""Views drawn from pictures: what is done to each is decided before, painting it stands here.

A processor draws one view after the other, each in its cache from end to end, by compiled code
(`encoders.view_kernel`). A GPU draws all at once, by torch (`paint_in_torch`): sorted, so that
neighbours are adjusted in the same order, and what concerns some of them runs over them in place.
Both do the same up to rounding, and with neither a view depends on what it is drawn with, to the
bit.

Shapes: M views to draw, of N pictures; B views of one block; S edge of a view; T taps of a blur.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoders.pixel_ops import ADJUSTMENTS, blur, blur_kernels, drop_colour, solarise
from encoders.resample import Taps, find_taps, resample

__all__ = ["ViewParameters", "paint_in_torch", "render"]

BLOCK_BYTES = 256_000_000
"""Of float pictures that torch paints at once: bounds memory."""
BYTES_A_THREAD = 1_000_000
"""Of float views that are worth a thread of their own on a processor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewParameters:
    """What is done to a picture for each of M views, on the CPU."""

    pictures: Tensor
    """int64 [M], the position of the picture."""
    boxes: Tensor
    """float32 [M, 4], left, top, width, height of the crop in pixels of the picture."""
    flips: Tensor
    """bool [M], mirror left and right."""
    kinds: Tensor
    """int64 [M, 4], adjustments in their order as positions in ``ADJUSTMENTS``, -1 for none."""
    amounts: Tensor
    """float32 [M, 4], how strong each of ``ADJUSTMENTS`` is."""
    grays: Tensor
    """bool [M], drop all colour."""
    blurs: Tensor
    """bool [M], blur."""
    sigmas: Tensor
    """float32 [M], standard deviation of the blur in pixels."""
    solarised: Tensor
    """bool [M], invert the bright half."""

    def __len__(self) -> int:
        return len(self.pictures)

    @classmethod
    def joined(cls, parts: Sequence[ViewParameters]) -> ViewParameters:
        """Those of several batches, one after the other."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})

    def at(self, order_M: Tensor) -> ViewParameters:
        """The same in another order."""
        return ViewParameters(
            **{field.name: getattr(self, field.name)[order_M] for field in fields(self)}
        )


@dataclass(frozen=True, slots=True)
class Change:
    """An operation on some of the pictures."""

    operation: Callable[..., None]
    chosen: NDArray[np.bool_]
    """[M]"""
    parameter: Tensor | None = None
    """[M, ...] on the device, what the operation takes for each picture."""

    def apply(self, images_3BSS: Tensor, block: slice) -> None:
        """Change the chosen pictures of a block in place."""
        (rows,) = self.chosen[block].nonzero()
        if not len(rows):
            return
        own = [] if self.parameter is None else [self.parameter[block]]
        first, last = int(rows[0]), int(rows[-1]) + 1
        if last - first == len(rows):
            if len(rows) < images_3BSS.shape[1]:
                images_3BSS, own = images_3BSS[:, first:last], [all_B[first:last] for all_B in own]
            self.operation(images_3BSS, *own)
            return
        there = torch.from_numpy(rows).to(images_3BSS.device, non_blocking=True)
        some = images_3BSS.index_select(1, there)
        self.operation(some, *(all_B[there] for all_B in own))
        images_3BSS.index_copy_(1, there, some)


def render(
    pixels_N3HW: Tensor,
    parameters: ViewParameters,
    *,
    size: int,
    mean: Sequence[float] = (0, 0, 0),
    std: Sequence[float] = (1, 1, 1),
) -> Tensor:
    """Paint views: crop with flip, adjustments, grayscale, blur, solarise, normalise.

    Args:
        pixels_N3HW: uint8, best in channels_last layout, on any device.
        parameters: of M views.
        size: S.
        mean: taken off the values in [0, 1], one a colour.
        std: what they are divided by then.

    Returns:
        float32 ``[M, 3, S, S]`` in channels_last layout, on the device of the pixels.
    """
    paint = _paint_compiled if pixels_N3HW.device.type == "cpu" else paint_in_torch
    return paint(pixels_N3HW, parameters, size, mean, std)


def _paint_compiled(
    pixels_N3HW: Tensor,
    parameters: ViewParameters,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    """On the processor, by as many threads as torch may use."""
    from encoders.compiled import in_threads
    from encoders.view_kernel import Work, paint  # brings a compiler, which a GPU does not need

    num = len(parameters)
    rows, columns = _find_taps(parameters, pixels_N3HW, size)
    tensors = {
        "pixels": pixels_N3HW.permute(0, 2, 3, 1),
        "pictures": parameters.pictures,
        "row_places": rows.places,
        "row_weights": rows.weights,
        "column_places": columns.places,
        "column_weights": columns.weights,
        "kinds": parameters.kinds,
        "amounts": parameters.amounts,
        "grays": parameters.grays,
        "blurs": parameters.blurs,
        "kernels": _kernels(parameters, size),
        "solarised": parameters.solarised,
        "mean": torch.tensor(mean, dtype=torch.float32),
        "std": torch.tensor(std, dtype=torch.float32),
    }
    work = Work(**{name: tensor.contiguous().numpy() for name, tensor in tensors.items()})
    views_MSS3 = np.empty((num, size, size, 3), np.float32)
    num_threads = min(torch.get_num_threads(), 1 + views_MSS3.nbytes // BYTES_A_THREAD)
    in_threads(lambda first, end: paint(work, first, end, views_MSS3), num, num_threads)
    return torch.from_numpy(views_MSS3).permute(0, 3, 1, 2)


def _kernels(parameters: ViewParameters, size: int) -> Tensor:
    """float32 [M, T], what is blurred with: a tenth of the edge, as SimCLR has it."""
    return blur_kernels(parameters.sigmas, max(1, size // 20))


def paint_in_torch(
    pixels_N3HW: Tensor,
    parameters: ViewParameters,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    """`render` on any device, which it is not waited for; on a processor the reference."""
    device, num = pixels_N3HW.device, len(parameters)
    order_M = _sorted(parameters)
    parameters = parameters.at(order_M)
    rows, columns = _find_taps(parameters, pixels_N3HW, size)
    pictures_M = parameters.pictures.to(device, non_blocking=True)
    changes = list(_changes(parameters, _kernels(parameters, size), device))
    mean_3111, std_3111 = (
        torch.tensor(values, dtype=torch.float32).view(3, 1, 1, 1).to(device, non_blocking=True)
        for values in (mean, std)
    )
    views_MSS3 = torch.empty(num, size, size, 3, device=device)
    there_M = order_M.to(device, non_blocking=True)
    num_block = max(1, BLOCK_BYTES // (3 * size * size * 4))
    for start in range(0, num, num_block):
        block = slice(start, start + num_block)
        images_3BSS = resample(
            pixels_N3HW.permute(0, 2, 3, 1), pictures_M[block], rows[block], columns[block]
        )
        for change in changes:
            change.apply(images_3BSS, block)
        # Float rounding in resize, hue and blur steps over the ends by some 1e-7.
        images_3BSS.clamp_(0, 1).sub_(mean_3111).div_(std_3111)
        views_MSS3.index_copy_(0, there_M[block], images_3BSS.permute(1, 3, 2, 0))
    return views_MSS3.permute(0, 3, 1, 2)


def _sorted(parameters: ViewParameters) -> Tensor:
    """An order in which neighbours are treated alike.

    First by when their hue turns, which costs most, then by their other adjustments, blur and loss
    of colour.
    """
    kinds_M4 = parameters.kinds.numpy()
    hue_M = (kinds_M4 == 3).argmax(1) + 4 * (kinds_M4 < 0).all(1)
    keys = (parameters.grays, parameters.blurs, *kinds_M4.T[::-1], hue_M)
    return torch.from_numpy(np.lexsort(keys))


def _find_taps(parameters: ViewParameters, pixels_N3HW: Tensor, size: int) -> tuple[Taps, Taps]:
    """Along rows and columns; those of the rows bring 255 down to 1."""
    device, (height, width) = pixels_N3HW.device, pixels_N3HW.shape[2:]
    left_M, top_M, box_width_M, box_height_M = parameters.boxes.to(
        device, non_blocking=True
    ).unbind(1)
    flips_M = parameters.flips.to(device, non_blocking=True)
    rows = find_taps(top_M, box_height_M, torch.zeros_like(flips_M), height, size)
    rows.weights.mul_(1 / 255)
    return rows, find_taps(left_M, box_width_M, flips_M, width, size)


def _changes(
    parameters: ViewParameters, kernels_MT: Tensor, device: torch.device
) -> Iterator[Change]:
    """All operations after the crop, in their order."""
    kinds_M4 = parameters.kinds.numpy()
    amounts_4M = parameters.amounts.T.contiguous().to(device, non_blocking=True)
    for kinds_M in kinds_M4.T:
        for kind, adjust in enumerate(ADJUSTMENTS):
            yield Change(adjust, kinds_M == kind, amounts_4M[kind])
    yield Change(drop_colour, parameters.grays.numpy())
    yield Change(blur, parameters.blurs.numpy(), kernels_MT.to(device, non_blocking=True))
    yield Change(solarise, parameters.solarised.numpy())
