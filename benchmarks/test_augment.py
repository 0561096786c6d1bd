"""Augmentation per core: both views of a batch here, against torchvision picture by picture.

``make bench`` prints the ratio. One thread, best of three rounds each, in turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torchvision.transforms import v2

from encoders.augment import AugmentConfig, augment

NUM_PICTURES = 256


def seconds(run: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    run()
    return time.perf_counter() - started_s


@pytest.mark.bench
@pytest.mark.parametrize("size", [32, 96])
def test_two_views_of_a_batch_against_torchvision(
    size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    pixels = torch.randint(0, 256, (NUM_PICTURES, 3, size, size), dtype=torch.uint8)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    ids = torch.arange(NUM_PICTURES)
    config = AugmentConfig.moco_v2(size)
    theirs = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=config.crop_scale, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            *([v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], p=0.5)] if size > 64 else []),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )

    def ours_s() -> float:
        return seconds(
            lambda: [augment(pixels, ids, config=config, seed=0, epoch=0, view=v) for v in (0, 1)]
        )

    def theirs_s() -> float:
        return seconds(lambda: [[theirs(picture) for picture in pixels] for _ in range(2)])

    rounds = [(ours_s(), theirs_s()) for _ in range(3)]
    ours, other = (min(column) for column in zip(*rounds, strict=True))
    views = 2 * NUM_PICTURES
    with capsys.disabled():
        print(
            f"\n{size} px, one thread: {views / ours:,.0f} views/s here, "
            f"{views / other:,.0f} with torchvision v2, ratio {other / ours:.1f}"
        )
    assert ours < other
