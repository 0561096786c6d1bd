"""Augmentation per core: two views of each picture of a batch here, and as others make them.

Peers get what they are made for: lightly its ``SimCLRTransform`` on PIL pictures, torchvision
v2 its transforms picture by picture, kornia a whole float batch. One that is not installed is
skipped by name. ``make bench`` prints CPU time in one thread and the ratios: the least of several
rounds, in turn. Pictures are cut from the two photographs of scikit-learn, seed 0; settings are
SimCLR's, as lightly has them for that size.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2

from encoders.augment import AugmentConfig, augment_views
from encoders.picture import PreprocessConfig

NUM_PICTURES = {32: 256, 96: 128, 224: 32}
NUM_ROUNDS = 5
LIKE_ENCODERS = PreprocessConfig()

Work = Callable[[], object]


def photographs(num: int, size: int) -> NDArray[np.uint8]:
    """Squares of 224 to 426 px at random places, resized: uint8 ``[N, S, S, 3]``."""
    from sklearn.datasets import load_sample_images

    generator = np.random.default_rng(0)
    sources = [Image.fromarray(image) for image in load_sample_images().images]
    pixels = np.empty((num, size, size, 3), np.uint8)
    for row in range(num):
        source = sources[row % 2]
        edge = int(generator.integers(224, 427))
        x, y = (int(generator.integers(0, side - edge + 1)) for side in source.size)
        square = source.crop((x, y, x + edge, y + edge))
        pixels[row] = np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))
    return pixels


def settings(size: int) -> AugmentConfig:
    """Lightly advises half the strength, and no blur, for small pictures."""
    return AugmentConfig.simclr(size, strength=0.5 if size <= 64 else 1.0)


def here(pixels: NDArray[np.uint8], config: AugmentConfig) -> Work:
    pixels_N3SS = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    ids = torch.arange(len(pixels))
    views = [config, config]
    return lambda: augment_views(
        pixels_N3SS, ids, views=views, seed=0, epoch=0, preprocess=LIKE_ENCODERS
    )


def with_lightly(pixels: NDArray[np.uint8], config: AugmentConfig) -> Work:
    module = pytest.importorskip("lightly.transforms.simclr_transform")
    transform = module.SimCLRTransform(
        input_size=config.crop_size,
        cj_strength=config.brightness / 0.8,
        gaussian_blur=config.blur_probability,
    )
    pictures = [Image.fromarray(picture) for picture in pixels]
    return lambda: [transform(picture) for picture in pictures]


def jitter_of(config: AugmentConfig) -> tuple[float, float, float, float]:
    return config.brightness, config.contrast, config.saturation, config.hue


def with_torchvision(pixels: NDArray[np.uint8], config: AugmentConfig) -> Work:
    size, kernel = config.crop_size, 2 * max(1, config.crop_size // 20) + 1
    blur = v2.RandomApply([v2.GaussianBlur(kernel, config.blur_sigma)], config.blur_probability)
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=config.crop_scale, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(*jitter_of(config))], config.jitter_probability),
            v2.RandomGrayscale(config.gray_probability),
            *([blur] if config.blur_probability else []),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(LIKE_ENCODERS.mean, LIKE_ENCODERS.std),
        ]
    )
    pictures = list(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())
    return lambda: [[transform(picture) for picture in pictures] for _ in range(2)]


def with_kornia(pixels: NDArray[np.uint8], config: AugmentConfig) -> Work:
    kornia: Any = pytest.importorskip("kornia.augmentation")
    size, kernel = config.crop_size, 2 * max(1, config.crop_size // 20) + 1
    transform = kornia.AugmentationSequential(
        kornia.RandomResizedCrop((size, size), scale=config.crop_scale),
        kornia.RandomHorizontalFlip(),
        kornia.ColorJitter(*jitter_of(config), p=config.jitter_probability),
        kornia.RandomGrayscale(p=config.gray_probability),
        kornia.RandomGaussianBlur((kernel, kernel), config.blur_sigma, p=config.blur_probability),
        kornia.Normalize(torch.tensor(LIKE_ENCODERS.mean), torch.tensor(LIKE_ENCODERS.std)),
        data_keys=["input"],
    )
    pixels_N3SS = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return lambda: [transform(pixels_N3SS.float() / 255) for _ in range(2)]


PEERS = {"lightly": with_lightly, "torchvision v2": with_torchvision, "kornia": with_kornia}


def cpu_s(work: Work) -> float:
    started_s = time.process_time()
    work()
    return time.process_time() - started_s


@pytest.mark.bench
@pytest.mark.parametrize("size", NUM_PICTURES)
@pytest.mark.parametrize("peer", PEERS)
def test_two_views_of_a_batch(size: int, peer: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    num, config = NUM_PICTURES[size], settings(size)
    pixels = photographs(num, size)
    ours, theirs = here(pixels, config), PEERS[peer](pixels, config)
    ours()  # The first call of either finds cold caches.
    theirs()
    rounds = [(cpu_s(ours), cpu_s(theirs)) for _ in range(NUM_ROUNDS)]
    here_s, there_s = (min(column) for column in zip(*rounds, strict=True))
    with capsys.disabled():
        print(
            f"\n{size} px, n {num}, one thread: {1e3 * here_s / num:.3f} ms a picture here, "
            f"{1e3 * there_s / num:.3f} ms with {peer}, ratio {there_s / here_s:.1f}"
        )
    assert here_s < there_s
