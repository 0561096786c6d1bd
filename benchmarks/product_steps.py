"""The project's own training steps: through Ray Train, as ``pretrain`` does, or in one process.

A program that others start; it prints one JSON line. Both roads read the same pixel cache of the
same workspace and take the same configuration.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.catalog import open_corpus
from cluster.context import Context
from cluster.kept_memory import kept_memory
from cluster.pixels_job import build_pixels
from cluster.pretrain_job import PretrainJobConfig, pretrain
from cluster.run_watch import examined_pictures
from cluster.runlog import read_metrics
from cluster.scan_job import ScanConfig, scan
from cluster.where import num_cores
from cluster.workspace import Workspace
from encoders.augment import AugmentConfig
from encoders.preprocess import PreprocessConfig
from encoders.pretrain_config import PretrainConfig
from encoders.recipes import simclr_small
from encoders.training import Pretraining

__all__ = ["LOG_EVERY", "configuration"]

CORPUS = "pictures"
LOG_EVERY = 10
SIZE = 32


def configuration(batch: int, epochs: int, seed: int) -> PretrainConfig:
    """`simclr_small` on pictures of 32 px, with the views of SimCLR's authors for such pictures."""
    view = AugmentConfig.simclr(SIZE)
    return replace(
        simclr_small(),
        preprocess=PreprocessConfig(size=SIZE),
        view_a=view,
        view_b=view,
        batch_size=batch,
        epochs=epochs,
        seed=seed,
    )


def prepare(workspace: Workspace, pictures: Path) -> dict[str, Any]:
    """Scan the folder and build its pixel cache, which both roads find there."""
    context = Context(workspace)
    scan(ScanConfig(source=str(pictures), corpus=CORPUS), context)
    catalog = open_corpus(workspace, CORPUS)
    cache = build_pixels(catalog, PreprocessConfig(size=SIZE), context, error_budget=0.0)
    return {"pictures": len(cache)}


def by_ray_train(workspace: Workspace, config: PretrainConfig, warmup: int) -> dict[str, Any]:
    """Run the verb to its end, and read its speed from the metrics that it wrote."""
    name = f"steps-{uuid.uuid4().hex[:8]}"
    job = PretrainJobConfig(corpus=CORPUS, name=name, training=config, log_every=LOG_EVERY)
    pretrain(job, Context(workspace))
    lines = read_metrics(workspace.folder("runs", name))
    return _speed([(line["step"], line["time_s"]) for line in lines], warmup, config.batch_size)


def in_one_process(workspace: Workspace, config: PretrainConfig, warmup: int) -> dict[str, Any]:
    """The same steps without Ray, metrics and checkpoints."""
    torch.set_num_threads(num_cores())
    catalog, context = open_corpus(workspace, CORPUS), Context(workspace)
    cache = build_pixels(catalog, config.preprocess, context, error_budget=0.0)
    trained = config.trained_rows(len(cache), None)
    examined = examined_pictures(cache, None, config, torch.device("cpu"))
    training = Pretraining(config, num_pictures=len(trained), examined=examined)
    times, started_s = [], time.monotonic()
    while training.step_index < training.num_steps:
        rows = trained[training.next_rows()]
        training.train_step(cache.read(rows), cache.ids[rows])
        if training.step_index % LOG_EVERY == 0:
            times.append((training.step_index, time.monotonic() - started_s))
    return _speed(times, warmup, config.batch_size)


def _speed(times: list[tuple[int, float]], warmup: int, batch: int) -> dict[str, Any]:
    """Pictures a second after the warm-up: over all of it, and of the median stretch."""
    steps, seconds = (np.array(column) for column in zip(*times, strict=True))
    steady = steps >= warmup
    steps, seconds = steps[steady], seconds[steady]
    stretches = np.diff(steps) / np.diff(seconds)
    return {
        "images_per_s": float(batch * (steps[-1] - steps[0]) / (seconds[-1] - seconds[0])),
        "images_per_s_median": float(batch * np.median(stretches)),
        "steps": int(steps[-1] - steps[0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("road", choices=["prepare", "ray", "plain"])
    parser.add_argument("--workspace", required=True)
    parser.add_argument("--folder", type=Path, help="of pictures, to prepare")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=60, help="steps that do not count")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.road == "plain" and not kept_memory().items() <= os.environ.items():
        # Read when a process starts: the same memory settings as Ray Train's workers get.
        again = [sys.executable, "-m", "benchmarks.product_steps", *sys.argv[1:]]
        os.execve(sys.executable, again, {**os.environ, **kept_memory()})
    workspace = Workspace.at(asked.workspace)
    config = configuration(asked.batch, asked.epochs, asked.seed)
    if asked.road == "prepare":
        print(json.dumps(prepare(workspace, asked.folder)))
        return
    road = by_ray_train if asked.road == "ray" else in_one_process
    encoder = Pretraining(config, num_pictures=asked.batch).encoder()
    parts = (encoder.backbone, encoder.projector)
    figures = road(workspace, config, asked.warmup)
    figures["parameters"] = sum(p.numel() for part in parts for p in part.parameters())
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
