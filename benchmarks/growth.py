"""Time and peak memory of scan, embed and index at N, 4N and 16N pictures.

Each step is a process of its own; its peak is what it took beyond what it had with everything
imported. ``embed`` works in an actor, which has a line of its own: all it holds, imports included.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measuring
from benchmarks.pictures import write_png
from cluster.context import Context
from cluster.embed_job import EmbedConfig, embed
from cluster.engine import connect
from cluster.index_job import IndexJobConfig, index_embeddings
from cluster.scan_job import ScanConfig, scan
from cluster.where import Where
from cluster.workspace import Workspace
from encoders.encoder import Encoder, EncoderConfig
from encoders.preprocess import PreprocessConfig

__all__ = ["STEPS"]

SEED, EDGE, SIZE = 0, 16, 32
TIMES = (1, 4, 16)
TIMEOUT_S = 600.0
CORPUS, ENCODER = "pictures", "encoder"


def scan_all(context: Context, folder: Path) -> dict[str, Any]:
    """List the folder and read every header."""
    scan(ScanConfig(source=str(folder), corpus=CORPUS), context)
    return {}


def embed_all(context: Context, folder: Path) -> dict[str, Any]:
    """Every picture to its vector."""
    del folder
    report = embed(EmbedConfig(corpus=CORPUS, encoder=ENCODER), context)
    return {"actor_peak_mb": report["work"]["peak_mib"]}


def build_all(context: Context, folder: Path) -> dict[str, Any]:
    """The contest and its winner."""
    del folder
    index_embeddings(IndexJobConfig(corpus=CORPUS, encoder=ENCODER), context)
    return {}


STEPS: dict[str, Callable[[Context, Path], dict[str, Any]]] = {
    "scan": scan_all,
    "embed": embed_all,
    "index": build_all,
}


def step(name: str, workspace: Workspace, folder: Path) -> dict[str, Any]:
    """Seconds of one step, and its memory beyond what the process had before."""
    context = Context(workspace)
    with connect(Where()) if name == "embed" else tempfile.TemporaryDirectory():
        before, started_s = measuring.peak_mb(), time.monotonic()
        found = STEPS[name](context, folder)
        seconds = time.monotonic() - started_s
        return {"seconds": seconds, "peak_mb": measuring.peak_mb() - before, **found}


def lay_out(num: int, folder: Path) -> Workspace:
    """So many different pictures of noise, and an encoder with fresh weights."""
    pixels = np.random.default_rng(SEED).integers(0, 256, (num, EDGE, EDGE, 3), dtype=np.uint8)
    write_png(pixels, folder / "pictures")
    workspace = Workspace.at(folder / "workspace")
    config = EncoderConfig(preprocess=PreprocessConfig(size=SIZE))
    workspace.publish_encoder(ENCODER, Encoder.initialise(config, SEED), {"versions": {}})
    return workspace


def measure(num: int, folder: Path) -> dict[str, dict[str, Any]]:
    """All steps at one size, one after the other."""
    workspace = lay_out(num, folder)
    found = {}
    for name in STEPS:
        command = [measuring.OWN_PYTHON, "-m", "benchmarks.growth", "--step", name]
        command += ["--workspace", workspace.location, "--folder", str(folder / "pictures")]
        found[name] = measuring.child(command, TIMEOUT_S)
        print(f"{num:,} pictures, {name}: {found[name]}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=2_000, help="N")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--workspace", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.step:
        print(json.dumps(step(asked.step, Workspace.at(asked.workspace), asked.folder)))
        return
    hardware = measuring.machine()
    cases = []
    for times in TIMES:
        num = times * asked.pictures
        with tempfile.TemporaryDirectory() as made:
            cases.append({"pictures": num, "rounds": [measure(num, Path(made))]})
    settings = {"edge": EDGE, "size": SIZE, "seed": SEED}
    measuring.save("growth", {"settings": settings, "cases": cases}, hardware)


if __name__ == "__main__":
    main()
