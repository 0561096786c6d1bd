"""Pictures a second of ``embed``, beside a bare loop, Ray Data's idiom and a DataLoader's.

``python -m benchmarks.embedding --cases png-32 jpeg-96``: each case is kept by itself, in
``results/embedding/CASE.json``. The encoder is the narrow ResNet of the ``-small`` recipes with
fresh weights, so that it is the pictures' way to it that is measured and not the network alone.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import measuring
from benchmarks.embedding_loops import CONTESTANTS, CORPUS, ENCODER
from benchmarks.pictures import fashion_mnist, write_jpegs, write_png
from cluster.context import Context
from cluster.scan_job import ScanConfig, scan
from cluster.workspace import Workspace
from encoders.backbone import BackboneConfig
from encoders.encoder import Encoder, EncoderConfig
from encoders.preprocess import PreprocessConfig

__all__ = ["CASES", "Case"]

SEED = 0
TIMEOUT_S = 600.0
LOOP_S = 20
"""Long enough for loops without Ray to use up what they decoded before their model was warm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Pictures of one kind, and the size at which the encoder sees them.

    Args:
        title: for the page.
        size: edge of the encoder's square.
        num: pictures.
        shard_rows: small enough for a rate in steady state.
        write: writes ``num`` of them into a folder.
        goal: times `ray.data.read_images`; None where none was set.
        backbone: the encoder's.
        profile: of ray_config.yaml.
    """

    title: str
    size: int
    num: int
    shard_rows: int
    write: Callable[[int, Path], None]
    goal: float | None
    backbone: str = "narrow"
    profile: str = "laptop"


def small_pngs(num: int, folder: Path) -> None:
    """Fashion-MNIST, in order."""
    write_png(fashion_mnist("train")[0][:num], folder)


CASES = {
    "png-32": Case(
        title="PNGs of 32 px, at 32 px",
        size=32,
        num=60_000,
        shard_rows=2000,
        write=small_pngs,
        goal=2.0,
    ),
    "jpeg-96": Case(
        title="JPEGs of 500 x 375, at 96 px",
        size=96,
        num=4_096,
        shard_rows=512,
        write=partial(write_jpegs, size=(500, 375), distinct=384, seed=SEED),
        goal=2.0,
    ),
    "jpeg-224": Case(
        title="JPEGs of 500 x 375, at 224 px",
        size=224,
        num=2_048,
        shard_rows=256,
        write=partial(write_jpegs, size=(500, 375), distinct=384, seed=SEED),
        goal=1.5,
    ),
    "photo-224": Case(
        title="JPEGs of 4000 x 3000, at 224 px",
        size=224,
        num=768,
        shard_rows=96,
        write=partial(write_jpegs, size=(4000, 3000), distinct=24, seed=SEED),
        goal=1.5,
    ),
    "gpu-224": Case(
        title="JPEGs of 500 x 375, at 224 px, ResNet-50 on a GPU",
        size=224,
        num=49_152,
        shard_rows=2048,
        write=partial(write_jpegs, size=(500, 375), distinct=384, seed=SEED),
        goal=1.5,
        backbone="resnet50",
        profile="gpu",
    ),
}


def lay_out(case: Case, folder: Path) -> list[str]:
    """Write the pictures, scan them, publish the encoder; returns the contestants' arguments."""
    case.write(case.num, folder / "pictures")
    workspace = Workspace.at(folder / "workspace")
    scan(ScanConfig(source=str(folder / "pictures"), corpus=CORPUS), Context(workspace))
    preprocess = PreprocessConfig(size=case.size, decode_edge=0)
    config = EncoderConfig(backbone=BackboneConfig(name=case.backbone), preprocess=preprocess)
    workspace.publish_encoder(ENCODER, Encoder.initialise(config, SEED), {"versions": {}})
    arguments = ["--workspace", workspace.location, "--folder", str(folder / "pictures")]
    arguments += ["--shard-rows", str(case.shard_rows), "--seconds", str(LOOP_S)]
    return [*arguments, "--profile", case.profile]


def measure(name: str, rounds: int) -> None:
    """Measure one case and keep it."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as made:
        arguments = lay_out(case, Path(made))
        program = [measuring.OWN_PYTHON, "-m", "benchmarks.embedding_loops"]
        commands = {contestant: [*program, contestant, *arguments] for contestant in CONTESTANTS}
        hardware = measuring.machine()
        found = measuring.in_turn(measuring.programs(commands, TIMEOUT_S), rounds)
    settings = {
        "title": case.title,
        "pictures": case.num,
        "size": case.size,
        "shard_rows": case.shard_rows,
        "goal": case.goal,
        "backbone": case.backbone,
        "profile": case.profile,
        "seed": SEED,
    }
    measuring.save(f"embedding/{name}", {"settings": settings, "rounds": found}, hardware)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    here = [name for name, case in CASES.items() if case.profile == "laptop"]
    parser.add_argument("--cases", nargs="+", choices=CASES, default=here)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    for name in asked.cases:
        measure(name, asked.rounds)


if __name__ == "__main__":
    main()
