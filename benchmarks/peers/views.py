"""Two views of every picture with another library, in one thread; prints one JSON line.

Each as its documentation shows it: lightly's transform of PIL pictures, torchvision's v2 transforms
of a tensor picture by picture, kornia's of a whole batch. Shapes: N pictures, S edge in pixels.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE = (0.08, 1.0)
BATCH = 128
Views = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", choices=sorted(LIBRARIES), required=True)
    parser.add_argument("--pixels", required=True, help="a .npy file, uint8 [N, S, S, 3]")
    parser.add_argument("--strength", type=float, required=True, help="of the colour jitter")
    parser.add_argument("--blur", type=float, required=True, help="its probability")
    parser.add_argument("--seconds", type=float, required=True, help="CPU time to measure for")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(asked.seed)
    np.random.seed(asked.seed)  # noqa: NPY002 -- lightly draws from it
    pixels = np.load(asked.pixels)
    views = LIBRARIES[asked.library](pixels, asked.strength, asked.blur)
    views()
    passes, started_s = 0, time.process_time()
    while time.process_time() - started_s < asked.seconds:
        views()
        passes += 1
    rate = 2 * len(pixels) * passes / (time.process_time() - started_s)
    version = importlib.metadata.version(asked.library)
    print(json.dumps({"views_per_s": rate, "versions": {asked.library: version}}))


def lightly(pixels: np.ndarray, strength: float, blur: float) -> Views:
    from lightly.transforms import SimCLRTransform
    from PIL import Image

    pictures = [Image.fromarray(picture) for picture in pixels]
    transform = SimCLRTransform(
        input_size=pixels.shape[1], cj_strength=strength, gaussian_blur=blur
    )

    def views() -> object:
        for start in range(0, len(pictures), BATCH):
            pairs = [transform(picture) for picture in pictures[start : start + BATCH]]
            _ = [torch.stack(column) for column in zip(*pairs, strict=True)]
        return None

    return views


def torchvision(pixels: np.ndarray, strength: float, blur: float) -> Views:
    from torchvision.transforms import v2

    size = pixels.shape[1]
    pictures = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    blurring = v2.RandomApply([v2.GaussianBlur(_kernel(size), (0.1, 2.0))], p=blur)
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=SCALE, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(*_jitter(strength))], p=0.8),
            v2.RandomGrayscale(0.2),
            *([blurring] if blur else []),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )

    def views() -> object:
        for batch in pictures.split(BATCH):
            _ = [torch.stack([transform(picture) for picture in batch]) for _ in range(2)]
        return None

    return views


def kornia(pixels: np.ndarray, strength: float, blur: float) -> Views:
    import kornia.augmentation as K

    size, (brightness, contrast, saturation, hue) = pixels.shape[1], _jitter(strength)
    pictures = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    kernel = (_kernel(size), _kernel(size))
    transform = torch.nn.Sequential(
        K.RandomResizedCrop((size, size), scale=SCALE),
        K.RandomHorizontalFlip(),
        K.ColorJitter(brightness, contrast, saturation, hue, p=0.8),
        K.RandomGrayscale(p=0.2),
        *([K.RandomGaussianBlur(kernel, (0.1, 2.0), p=blur)] if blur else []),
        K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )

    def views() -> object:
        with torch.no_grad():
            for batch in pictures.split(BATCH):
                images: Tensor = batch.float() / 255
                _ = [transform(images) for _ in range(2)]
        return None

    return views


def _kernel(size: int) -> int:
    """A tenth of the edge, odd, as SimCLR has it."""
    return 2 * max(1, size // 20) + 1


def _jitter(strength: float) -> tuple[float, float, float, float]:
    return 0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength


LIBRARIES = {"lightly": lightly, "torchvision": torchvision, "kornia": kornia}

if __name__ == "__main__":
    main()
