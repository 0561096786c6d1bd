"""How long a checkpoint holds the training loop up: written in it, and beside it.

``make bench`` prints both. The state is that of MoCo with a ResNet-18 and momentum: 135 MB.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cluster.checkpoint_writer import CheckpointWriter
from cluster.checkpoints import Checkpoint, host_copy, save_checkpoint
from index.folder import Folder

NUM_ROUNDS = 5
FLOATS = 11_200_000


def seconds(run: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    run()
    return time.perf_counter() - started_s


@pytest.mark.bench
def test_a_checkpoint_beside_the_loop_against_one_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    folder = Folder.at(tmp_path / "run")
    live = {name: torch.randn(64, FLOATS // 64) for name in ("weights", "target", "momentum")}
    writer = CheckpointWriter(
        lambda checkpoint: save_checkpoint(folder, checkpoint),
        every=1000,
        step=0,
        tell=lambda _: None,
    )

    def at(step: int, state: object) -> Checkpoint:
        return Checkpoint(step=step, config_id="bench", state={"training": state})

    rounds = []
    for step in range(1, 2 * NUM_ROUNDS, 2):
        inside_s = seconds(lambda step=step: save_checkpoint(folder, at(step, live)))
        beside_s = seconds(lambda step=step: writer.write(at(step + 1, host_copy(live))))
        rest_s = seconds(writer._settle)
        rounds.append((inside_s, beside_s, rest_s))
    writer.close()
    inside, beside, rest = (statistics.median(column) for column in zip(*rounds, strict=True))
    with capsys.disabled():
        print(
            f"\na state of {12 * FLOATS / 1e6:.0f} MB holds the loop up for {inside:.3f} s written "
            f"in it, for {beside:.3f} s beside it; the thread needs another {rest:.3f} s "
            f"(median of {NUM_ROUNDS})"
        )
    assert beside < inside
