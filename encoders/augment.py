"""Augmentation of a whole batch at once, each picture with draws of its own.

The order is fixed: crop with flip, colour jitter, grayscale, blur, solarise; inside the jitter the
four adjustments come in random order, as in torchvision. What a picture becomes is a function of
(seed, epoch, sample id, view) alone, to the bit: batch size, worker count and resume do not change
it. What is drawn stands here, how it is painted in `encoders.view_render`.

Shapes: N pictures, H and W source, S crop edge, K draws, M views of all pictures together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from encoders.counter_rng import uniform_VNK
from encoders.preprocess import PreprocessConfig
from encoders.view_render import ViewParameters, render

__all__ = ["AugmentConfig", "augment", "augment_views", "crop_boxes", "view_parameters"]

CROP_ATTEMPTS = 10
# Draws in their order: areas, ratios, position, flip, jitter or not, its factors, its order,
# grayscale or not, blur or not, sigma, solarise or not. Another order would change every run.
DRAWS = (CROP_ATTEMPTS, CROP_ATTEMPTS, 2, 1, 1, 4, 4, 1, 1, 1, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """How strongly one view differs from its picture."""

    crop_size: int = 32
    """Edge in pixels of the crop that the network trains on."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Share of the picture's area that a crop keeps."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of the kept area before it is made square."""
    flip_probability: float = 0.5
    """Mirror left and right this often; 0 where direction matters, as in letters."""
    jitter_probability: float = 0.8
    """Change the colours this often."""
    brightness: float = 0.4
    """Brightness is multiplied by a factor from 1 - this to 1 + this."""
    contrast: float = 0.4
    """Likewise the distance of each value from the picture's mean gray."""
    saturation: float = 0.4
    """Likewise the distance of each value from its pixel's gray."""
    hue: float = 0.1
    """Turn of the colour circle, at most this share of it (0.5 is all) either way."""
    gray_probability: float = 0.2
    """Drop all colour this often, so that colour alone cannot tell pictures apart."""
    blur_probability: float = 0.0
    """Blur this often; SimCLR leaves it out at 32 px and takes 0.5 at 224."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Standard deviation of the blur in pixels; its kernel is a tenth of the crop."""
    solarise_probability: float = 0.0
    """Invert the bright half this often (BYOL's second view: 0.2)."""

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "gray", "blur", "solarise"):
            value = getattr(self, f"{name}_probability")
            if not 0 <= value <= 1:
                raise ValueError(
                    f"augment {name}_probability is {value}, it must be 0 (never) to 1 (always)."
                )
        for name, lowest, highest in (
            ("crop_scale", 0.0, 1.0),
            ("crop_ratio", 0.0, math.inf),
            ("blur_sigma", 0.0, math.inf),
        ):
            low, high = getattr(self, name)
            if not lowest < low <= high <= highest:
                raise ValueError(
                    f"augment {name} is ({low}, {high}), it must rise within "
                    f"({lowest}, {highest}]. Give the smaller number first."
                )
        if min(self.brightness, self.contrast, self.saturation) < 0 or not 0 <= self.hue <= 0.5:
            raise ValueError(
                f"augment brightness {self.brightness}, contrast {self.contrast}, saturation "
                f"{self.saturation} must be 0 or more, hue {self.hue} must be 0 to 0.5. 0 is off."
            )
        if self.crop_size < 8:
            raise ValueError(f"augment crop_size is {self.crop_size} px, it must be 8 or more.")

    @classmethod
    def simclr(cls, crop_size: int, strength: float = 0.5) -> AugmentConfig:
        """Chen et al. 2020, appendix A: strength 0.5 without blur for CIFAR, 1 for ImageNet."""
        return cls(
            crop_size=crop_size,
            crop_scale=(0.08, 1.0),
            brightness=0.8 * strength,
            contrast=0.8 * strength,
            saturation=0.8 * strength,
            hue=0.2 * strength,
            blur_probability=0.5 if crop_size > 64 else 0.0,
        )

    @classmethod
    def moco_v2(cls, crop_size: int) -> AugmentConfig:
        """Chen et al. 2020, "Improved baselines": crops keep 20 % or more; blur above 64 px."""
        return cls(crop_size=crop_size, blur_probability=0.5 if crop_size > 64 else 0.0)

    @classmethod
    def byol(cls, crop_size: int, view: int) -> AugmentConfig:
        """Grill et al. 2020, table 6: view 0 is always blurred, view 1 seldom, but solarised.

        Deviation: neither is blurred at 64 px and below.
        """
        blur = (1.0, 0.1)[view] if crop_size > 64 else 0.0
        return cls(
            crop_size=crop_size,
            crop_scale=(0.08, 1.0),
            saturation=0.2,
            blur_probability=blur,
            solarise_probability=(0.0, 0.2)[view],
        )


def augment_views(
    pixels_N3HW: Tensor,
    ids_N: Tensor,
    *,
    views: Sequence[AugmentConfig],
    seed: int,
    epoch: int,
    preprocess: PreprocessConfig | None = None,
) -> list[Tensor]:
    """Several augmented views of each picture, large and small, in one call.

    Args:
        pixels_N3HW: uint8, best in channels_last layout, on any device; H and W are at least S.
        ids_N: int64 sample ids, best on the CPU; they key the draws.
        views: strengths and probabilities of view 0, 1, ...
        seed: of the run.
        epoch: of the run; another epoch gives other views.
        preprocess: normalise as the encoder does; without it values are in [0, 1].

    Returns:
        float32 ``[N, 3, S, S]`` of each view, in channels_last layout on the device of the pixels.

    Raises:
        ValueError: the pixels are not uint8 with three colours, or smaller than a crop.
    """
    _check_pixels(pixels_N3HW, max(view.crop_size for view in views))
    height, width = pixels_N3HW.shape[2:]
    ids_N = ids_N.cpu()  # What is done to each picture is decided there.
    parameters: dict[int, list[ViewParameters]] = {}
    numbers: dict[int, list[int]] = {}
    for config in dict.fromkeys(views):
        alike = [number for number, view in enumerate(views) if view == config]
        draws_VNK = uniform_VNK(seed, epoch, ids_N, alike, sum(DRAWS))
        drawn = view_parameters(draws_VNK.flatten(0, 1), config, height, width, len(ids_N))
        parameters.setdefault(config.crop_size, []).append(drawn)
        numbers.setdefault(config.crop_size, []).extend(alike)
    normalisation = {} if preprocess is None else {"mean": preprocess.mean, "std": preprocess.std}
    painted: dict[int, Tensor] = {}
    for size, parts in parameters.items():
        images_M3SS = render(pixels_N3HW, ViewParameters.joined(parts), size=size, **normalisation)
        painted |= zip(numbers[size], images_M3SS.chunk(len(numbers[size])), strict=True)
    return [painted[number] for number in range(len(views))]


def augment(
    pixels_N3HW: Tensor, ids_N: Tensor, *, config: AugmentConfig, seed: int, epoch: int, view: int
) -> Tensor:
    """One view alone, of any number, as `augment_views` makes it; pictures may be enlarged.

    Args:
        pixels_N3HW: uint8, in any memory layout, on any device.
        ids_N: int64 sample ids; they key the draws.
        config: strengths and probabilities.
        seed: of the run.
        epoch: of the run; another epoch gives other views.
        view: number of the view; each number gives another view.

    Returns:
        float32 ``[N, 3, S, S]`` in [0, 1], on the device of the pixels, not yet normalised.
    """
    _check_pixels(pixels_N3HW, 1)
    height, width = pixels_N3HW.shape[2:]
    draws_VNK = uniform_VNK(seed, epoch, ids_N.cpu(), [view], sum(DRAWS))
    drawn = view_parameters(draws_VNK[0], config, height, width, len(ids_N))
    return render(pixels_N3HW, drawn, size=config.crop_size)


def _check_pixels(pixels_N3HW: Tensor, crop_size: int) -> None:
    shape = list(pixels_N3HW.shape)
    if pixels_N3HW.dtype != torch.uint8 or pixels_N3HW.ndim != 4 or shape[1] != 3:
        raise ValueError(
            f"pixels to augment are {pixels_N3HW.dtype} {shape}, they must be uint8 "
            "[N, 3, H, W]. Give pictures as the pixel cache holds them, colours second."
        )
    if min(shape[2:]) < crop_size:
        raise ValueError(
            f"crops of {crop_size} px from pictures of {shape[3]} x {shape[2]} px; a crop must be "
            "no larger than the pictures in the cache. Lower crop_size, or make the cache anew "
            "with a larger preprocess.size."
        )


def view_parameters(
    draws_MK: Tensor, config: AugmentConfig, height: int, width: int, num_pictures: int
) -> ViewParameters:
    """What the draws of one or more views of the same pictures mean.

    Args:
        draws_MK: in [0, 1), view after view, K as in ``DRAWS``.
        config: strengths and probabilities.
        height: of the source.
        width: of the source.
        num_pictures: N.
    """
    areas, ratios, place, flip, jitter, factors, order, gray, blur, sigma, invert = (
        draws_MK.split_with_sizes(DRAWS, dim=1)
    )
    strength_4 = torch.tensor([config.brightness, config.contrast, config.saturation, config.hue])
    centre_4 = torch.tensor([1.0, 1.0, 1.0, 0.0])
    low_4 = torch.cat([(centre_4 - strength_4)[:3].clamp_min(0), -strength_4[3:]])
    kinds_M4 = order.argsort(dim=1)
    adjusted_M4 = (strength_4 > 0)[kinds_M4] & (jitter < config.jitter_probability)
    low_sigma, high_sigma = config.blur_sigma
    return ViewParameters(
        pictures=torch.arange(num_pictures).repeat(len(draws_MK) // max(1, num_pictures)),
        boxes=crop_boxes(areas, ratios, place, height, width, config),
        flips=flip[:, 0] < config.flip_probability,
        kinds=torch.where(adjusted_M4, kinds_M4, -1),
        amounts=low_4 + (centre_4 + strength_4 - low_4) * factors,
        grays=gray[:, 0] < config.gray_probability,
        blurs=blur[:, 0] < config.blur_probability,
        sigmas=low_sigma + (high_sigma - low_sigma) * sigma[:, 0],
        solarised=invert[:, 0] < config.solarise_probability,
    )


def crop_boxes(
    areas_NA: Tensor,
    ratios_NA: Tensor,
    place_N2: Tensor,
    height: int,
    width: int,
    config: AugmentConfig,
) -> Tensor:
    """Random resized crops: the first of A attempts that fits the picture, at a random place.

    When none fits, the largest centred box of an allowed ratio.

    Args:
        areas_NA: draws in [0, 1), one an attempt.
        ratios_NA: likewise.
        place_N2: draws for the position.
        height: of the source.
        width: of the source.
        config: ``crop_scale`` and ``crop_ratio``.

    Returns:
        float32 ``[N, 4]``: left, top, width, height in source pixels.

    Source: Szegedy et al. 2015, section 6, as in torchvision's RandomResizedCrop. Deviation: boxes
    are not rounded to whole pixels, which would be coarse in small pictures.
    """
    low, high = config.crop_scale
    area_NA = (low + (high - low) * areas_NA) * (height * width)
    log_low, log_high = math.log(config.crop_ratio[0]), math.log(config.crop_ratio[1])
    ratio_NA = (log_low + (log_high - log_low) * ratios_NA).exp()
    widths_NA, heights_NA = (area_NA * ratio_NA).sqrt(), (area_NA / ratio_NA).sqrt()
    fits_NA = (widths_NA <= width) & (heights_NA <= height)
    first_N1 = fits_NA.int().argmax(dim=1, keepdim=True)
    sizes_N2 = torch.cat([widths_NA.gather(1, first_N1), heights_NA.gather(1, first_N1)], dim=1)
    ratio = min(max(width / height, config.crop_ratio[0]), config.crop_ratio[1])
    whole_2 = torch.tensor([min(width, height * ratio), min(height, width / ratio)])
    some_N1 = fits_NA.any(dim=1, keepdim=True)
    sizes_N2 = torch.where(some_N1, sizes_N2, whole_2)
    room_N2 = torch.tensor([width, height]) - sizes_N2
    corners_N2 = room_N2 * torch.where(some_N1, place_N2, 0.5)
    return torch.cat([corners_N2, sizes_N2], dim=1)
