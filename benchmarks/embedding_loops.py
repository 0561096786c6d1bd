"""Ways to embed a folder of pictures with one encoder: ours, a bare loop, and two usual idioms.

A program that others start; it prints one JSON line. All load the same encoder from the same
workspace and compute on the GPU if there is one, else in as many threads as there are cores. Only
ours writes anything but vectors: thumbnails, hashes, and what a kill may not cost.

Shapes: N pictures, S edge, D embedding.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from cluster.context import Context
from cluster.embed_job import EmbedConfig, embed
from cluster.engine import connect
from cluster.where import Where, num_cores
from cluster.workspace import Workspace
from encoders.encoder import Encoder, preferred_device
from encoders.picture import open_picture, to_square

__all__ = ["CORPUS", "ENCODER", "speed"]

CORPUS, ENCODER = "pictures", "encoder"
BATCH = 256
"""Of the others, as is usual."""
WARM_SHARE = 0.25
Times = list[tuple[int, float]]
"""Pictures done, and the seconds since the start at which they were."""


def speed(times: Times) -> dict[str, float]:
    """Pictures a second of the whole, and in steady state: once a quarter is done.

    Ray Data's reader decodes everything it has room for while an actor loads its model, so that its
    steady state is never seen: of it, the whole counts.

    >>> speed([(10, 5.0), (20, 6.0), (40, 8.0)])
    {'pictures_per_s': 10.0, 'whole_per_s': 5.0, 'pictures': 40}
    >>> speed([(40, 8.0)])  # all at once: there is nothing to tell from
    {'pictures_per_s': 5.0, 'whole_per_s': 5.0, 'pictures': 40}
    """
    total, end_s = times[-1]
    first, first_s = next(at for at in times if at[0] >= WARM_SHARE * total)
    if first == total:
        first, first_s = 0, 0.0
    return {
        "pictures_per_s": (total - first) / (end_s - first_s),
        "whole_per_s": total / end_s,
        "pictures": total,
    }


def ours(workspace: Workspace, folder: Path, asked: argparse.Namespace) -> Times:
    """The verb to its end, on a Ray that runs; shards are done when they are committed."""
    del folder
    name = f"set-{os.getpid()}"
    config = EmbedConfig(corpus=CORPUS, encoder=ENCODER, name=name, shard_rows=asked.shard_rows)
    where = Where(profile=asked.profile, ray_config=asked.ray_config)
    with connect(where):
        started_s = time.time()
        embed(config, Context(workspace, where))
    records = (workspace.folder("embeddings", name) / "shards").local_path()
    ends = sorted(
        (path.stat().st_mtime - started_s, json.loads(path.read_text())["rows"])
        for path in records.glob("*.json")
    )
    counts = np.cumsum([rows for _, rows in ends]).tolist()
    return [(count, end_s) for count, (end_s, _) in zip(counts, ends, strict=True)]


def bare_loop(workspace: Workspace, folder: Path, asked: argparse.Namespace) -> Times:
    """Our own decoding in threads and the encoder in turn, in one process that writes nothing."""
    torch.set_num_threads(num_cores())
    encoder = workspace.open_encoder(ENCODER).to(preferred_device())
    preprocess = encoder.config.preprocess

    def square(path: Path) -> np.ndarray:
        image = open_picture(path.read_bytes(), decode_edge=preprocess.least_edge)
        return to_square(image, preprocess)

    times, started_s, kept = [], time.monotonic(), []
    paths = paths_in(folder)
    with ThreadPoolExecutor(num_cores()) as pool:
        for start in range(0, len(paths), BATCH):
            squares = list(pool.map(square, paths[start : start + BATCH]))
            kept.append(encoder.embed(np.stack(squares)))
            times.append((start + len(squares), time.monotonic() - started_s))
            if times[-1][1] > asked.seconds:
                break
    return times


def paths_in(folder: Path) -> list[Path]:
    """All files below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def read_images(workspace: Workspace, folder: Path, asked: argparse.Namespace) -> Times:
    """The idiom of Ray Data: its reader decodes and resizes, an actor's model gets the batches."""
    encoder = workspace.open_encoder(ENCODER)
    size = encoder.config.preprocess.size
    with connect(Where(profile=asked.profile, ray_config=asked.ray_config)):
        import ray

        started_s = time.monotonic()
        vectors = ray.data.read_images(str(folder), size=(size, size), mode="RGB").map_batches(
            Model,
            batch_size=BATCH,
            compute=ray.data.ActorPoolStrategy(size=1),
            **({"num_gpus": 1} if torch.cuda.is_available() else {"num_cpus": num_cores()}),
            fn_constructor_kwargs={"location": workspace.location},
        )
        times, done = [], 0
        for batch in vectors.iter_batches(batch_size=None):
            done += len(batch["vector"])
            times.append((done, time.monotonic() - started_s))
    return times


class Model:
    """What the idiom's actor holds."""

    def __init__(self, location: str) -> None:
        torch.set_num_threads(num_cores())
        self._encoder = Workspace.at(location).open_encoder(ENCODER).to(preferred_device())

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Pixels [N, S, S, 3] to vectors [N, D]."""
        return {"vector": self._encoder.embed(batch["image"])}


class Pictures(Dataset):  # type: ignore[type-arg]
    """Files, decoded and transformed as clip-retrieval's reader does it."""

    def __init__(self, paths: Sequence[Path], encoder: Encoder) -> None:
        settings = encoder.config.preprocess
        self._paths = paths
        self._transform = v2.Compose(
            [
                v2.Resize(settings.size, interpolation=v2.InterpolationMode.BICUBIC),
                v2.CenterCrop(settings.size),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(settings.mean), list(settings.std)),
            ]
        )

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, position: int) -> torch.Tensor:
        with Image.open(self._paths[position]) as image:
            found: torch.Tensor = self._transform(image.convert("RGB"))
            return found


@torch.inference_mode()
def data_loader(workspace: Workspace, folder: Path, asked: argparse.Namespace) -> Times:
    """As clip-retrieval works: a loader's processes decode; vectors are written at the end."""
    torch.set_num_threads(num_cores())
    encoder = workspace.open_encoder(ENCODER).to(preferred_device())
    pictures = Pictures(paths_in(folder), encoder)
    loader = DataLoader(pictures, batch_size=BATCH, num_workers=num_cores(), prefetch_factor=2)
    times, parts, done, started_s = [], [], 0, time.monotonic()
    for batch in loader:
        images = batch.to(encoder.device).contiguous(memory_format=torch.channels_last)
        features = torch.nn.functional.normalize(encoder.backbone(images))
        parts.append(features.cpu().numpy().astype(np.float16))
        done += len(batch)
        times.append((done, time.monotonic() - started_s))
        if times[-1][1] > asked.seconds:
            break
    np.save(folder.parent / "vectors.npy", np.concatenate(parts))
    return times


CONTESTANTS: dict[str, Callable[[Workspace, Path, argparse.Namespace], Times]] = {
    "lookalike": ours,
    "bare loop": bare_loop,
    "ray.data.read_images": read_images,
    "DataLoader": data_loader,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contestant", choices=CONTESTANTS)
    parser.add_argument("--workspace", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--shard-rows", type=int, required=True, help="of ours alone")
    parser.add_argument(
        "--seconds", type=float, required=True, help="at most, of loops without Ray"
    )
    parser.add_argument("--profile", default="laptop", help="of those with Ray")
    parser.add_argument("--ray-config", type=Path, help="that holds the profile")
    asked = parser.parse_args()
    workspace = Workspace.at(asked.workspace)
    times = CONTESTANTS[asked.contestant](workspace, asked.folder, asked)
    figures: dict[str, Any] = speed(times)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
