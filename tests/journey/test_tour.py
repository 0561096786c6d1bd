"""The README's tour on real pictures, through the command line, in one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.cli import main

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

NUM_PICTURES = 600
# Small enough for seconds on two cores, large enough to learn something.
QUICK = "--epochs 16 --backbone.widths 16 32 64 --projector.hidden-dim 64 --projector.output-dim 32"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tour") / "workspace"


@pytest.fixture(scope="module")
def openmoji(workspace: Path) -> Path:
    """Every fourth OpenMoji picture, in its group's folder."""
    import io

    from rich.console import Console

    from cluster.context import Context
    from cluster.openmoji import draw_openmoji
    from cluster.workspace import Workspace

    context = Context(Workspace.at(workspace), console=Console(file=io.StringIO()))
    folder = draw_openmoji(workspace.parent / "openmoji", context)
    for position, path in enumerate(sorted(folder.rglob("*.png"))):
        if position % 4:
            path.unlink()
    return folder


def run(capsys: pytest.CaptureFixture[str], workspace: Path, line: str) -> dict[str, Any]:
    """A verb's report, from the JSON object on stdout."""
    status = main([*line.split(), "--workspace", str(workspace), "--json"])
    out, err = capsys.readouterr()
    assert status == 0, err
    report: dict[str, Any] = json.loads(out)
    return report


def test_the_tour_from_a_folder_to_predictions(
    workspace: Path, openmoji: Path, local_ray: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def lookalike(line: str) -> dict[str, Any]:
        return run(capsys, workspace, line)

    scanned = lookalike(f"scan {openmoji} --corpus mine --labels folder")
    assert scanned["pictures"]["ok"] == scanned["pictures"]["total"] > NUM_PICTURES
    trained = lookalike(f"pretrain simclr-small --corpus mine --name enc1 {QUICK}")
    embedded = lookalike("embed --corpus mine --encoder enc1")
    assert embedded["encoder_id"] == trained["encoder_id"]
    built = lookalike("index --corpus mine --encoder enc1 --target-recall 0.95")
    assert built["rows"] == scanned["pictures"]["ok"]
    assert built["recall"]["low"] >= 0.95

    query = sorted(openmoji.rglob("*.png"))[100]
    hits = lookalike(f"search --index mine-enc1 {query} -k 10")["hits"]
    assert hits[0]["file"] == str(query)
    assert len(hits) == 10
    np.testing.assert_allclose(hits[0]["score"], 1.0, atol=2e-3)

    figures = lookalike("evaluate --corpus mine --encoder enc1 --num-queries 300")["figures"]
    name = "recall@10"
    chance = 10 / built["rows"]
    assert figures["trained"][name]["low"] > 5 * chance
    assert figures["trained"][name]["value"] > figures["random init"][name]["value"] + 0.1

    predicted = lookalike(
        f"classify --index mine-enc1 --labels corpus --export {workspace}/out.parquet"
    )
    table = pq.read_table(f"{workspace}/out.parquet")
    assert table.num_rows == built["rows"] == sum(predicted["predictions"].values())
    correct = np.mean(
        [
            Path(uri).parent.name == label
            for uri, label in zip(table["uri"].to_pylist(), table["label"].to_pylist(), strict=True)
        ]
    )
    assert correct > 0.3  # nine groups

    again = lookalike(f"pretrain simclr-small --corpus mine --name enc1 {QUICK}")
    assert again["encoder_id"] == trained["encoder_id"]
    assert lookalike("embed --corpus mine --encoder enc1") == embedded
    assert lookalike("index --corpus mine --encoder enc1 --target-recall 0.95")["reused"]

    new = Image.open(query).rotate(180)
    new.save(openmoji / "new.png")
    lookalike(f"scan {openmoji} --corpus mine --labels folder")
    grown = lookalike("embed --corpus mine --encoder enc1")
    assert grown["pictures"]["ok"] == embedded["pictures"]["ok"] + 1
    assert lookalike("index --corpus mine --encoder enc1")["version"] == "v000002"
