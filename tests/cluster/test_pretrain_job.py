"""Pretraining: what is refused, what a re-run does, and workers and drivers that are killed."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from cluster import pretrain_job
from cluster.context import Context
from cluster.pretrain_job import PretrainingStoppedError, PretrainJobConfig, pretrain
from cluster.pretrain_worker import train_worker
from cluster.runlog import read_metrics, read_run, write_run
from cluster.scan_job import ScanConfig, scan
from cluster.verify_job import CALM
from cluster.where import CHECKOUT, Where
from cluster.worker_plan import TrainingDataChangedError, WorkerPlan
from cluster.workspace import Workspace
from encoders.recipes import simclr_small, supcon_small, tiny
from index.artifact import CorruptArtifactError
from index.folder import Folder

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

NUM_PICTURES = 40
OPTIM = replace(tiny(simclr_small()).optim, lr=simclr_small().optim.lr * CALM)
TRAINING = replace(tiny(simclr_small()), epochs=20, optim=OPTIM)
DRIVER = """
import io, sys
from rich.console import Console
from cluster.context import Context
from cluster.pretrain_job import PretrainJobConfig, pretrain
from cluster.workspace import Workspace
from dataclasses import replace
from encoders.recipes import simclr_small, tiny
tiny = tiny(simclr_small())
training = replace(tiny, epochs=20, optim=replace(tiny.optim, lr=tiny.optim.lr * 0.1))
config = PretrainJobConfig(corpus="digits", name="killed", training=training, checkpoint_every=3)
pretrain(config, Context(Workspace.at(sys.argv[1]), console=Console(file=io.StringIO())))
"""


def config_of(name: str, **changes: Any) -> PretrainJobConfig:
    return PretrainJobConfig(**{"corpus": "digits", "name": name, "training": TRAINING} | changes)


def context_at(folder: Path) -> Context:
    return Context(Workspace.at(folder), console=Console(file=io.StringIO()))


def with_workers(context: Context, folder: Path, number: int) -> Context:
    profile = {"num_workers": number, "cpus_per_worker": 1}
    text = yaml.safe_dump({"metadata": {"lookalike": {"profiles": {"test": profile}}}})
    (folder / "where.yaml").write_text(text)
    return replace(context, where=Where(profile="test", ray_config=folder / "where.yaml"))


@pytest.fixture(scope="module")
def scanned(
    tmp_path_factory: pytest.TempPathFactory, local_ray: Any, train_here: Any
) -> tuple[Path, Path]:
    """(pictures, workspace with corpus and pixels of them); copy the workspace before writing."""
    folder = tmp_path_factory.mktemp("pretrain")
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 32, (NUM_PICTURES, 24, 24, 3), dtype=np.uint8)
    pixels = noise + generator.integers(0, 224, (NUM_PICTURES, 1, 1, 3), dtype=np.uint8)
    for number in range(NUM_PICTURES):
        path = folder / "pictures" / str(number % 4) / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]).save(path)
    (folder / "pictures" / "0" / "broken.png").write_bytes(path.read_bytes()[:200])
    context = context_at(folder / "workspace")
    scan(ScanConfig(source=str(folder / "pictures"), corpus="digits", labels="folder"), context)
    with pytest.MonkeyPatch.context() as patch:
        train_here(patch)
        pretrain(config_of("one"), context)
    return folder / "pictures", folder / "workspace"


@pytest.fixture
def context(scanned: tuple[Path, Path], tmp_path: Path) -> Context:
    shutil.copytree(scanned[1], tmp_path / "workspace")
    return context_at(tmp_path / "workspace")


@pytest.fixture
def here(train_here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker runs in this process, not under Ray Train."""
    train_here(monkeypatch)


@pytest.fixture
def scanned_again(scanned: tuple[Path, Path], context: Context) -> Iterator[Context]:
    """The corpus has grown by a picture since run ``one``."""
    pictures, _ = scanned
    new = pictures / "0" / "new.png"
    Image.new("RGB", (24, 24), "red").save(new)
    scan(ScanConfig(source=str(pictures), corpus="digits", labels="folder"), context)
    yield context
    new.unlink()


def weights(context: Context, name: str) -> np.ndarray:
    state = context.workspace.open_encoder(name).backbone.state_dict()
    return np.concatenate([state[key].numpy().ravel().astype(np.float64) for key in sorted(state)])


def flip_a_bit(folder: Folder, start: str) -> None:
    (name,) = (name for name in folder.names() if name.startswith(start))
    data = bytearray(folder.read_bytes(name))
    data[len(data) // 2] ^= 1
    folder.write_atomic(name, bytes(data))


def run_state(context: Context, name: str) -> dict[str, Any]:
    return read_run(context.workspace.folder("runs", name))


def test_a_finished_run_is_reported_again_and_not_touched(context: Context) -> None:
    before = run_state(context, "one")
    report = pretrain(config_of("one"), context)
    assert run_state(context, "one") == before
    assert (report["pictures"], report["failed"]) == (NUM_PICTURES, {"unreadable": 1})
    assert (report["steps"], report["resumed_at"], report["note"]) == (100, None, None)
    assert report["knn"] is not None
    assert report["encoder_id"] == context.workspace.open_encoder("one").encoder_id


@pytest.mark.parametrize("damage", ["model", "projector", "card.json", "all"])
def test_a_damaged_encoder_is_published_again_from_the_last_checkpoint(
    context: Context, damage: str
) -> None:
    encoder_id = context.workspace.open_encoder("one").encoder_id
    folder = context.workspace.folder("encoders", "one")
    if damage == "all":
        folder.fs.delete_dir(folder.path)
    else:
        flip_a_bit(folder, damage)
    folder.make().write_atomic("model-of-another.safetensors", b"left over")
    report = pretrain(config_of("one"), context)
    assert report["encoder_id"] == encoder_id
    assert context.workspace.open_encoder("one").encoder_id == encoder_id
    assert "model-of-another.safetensors" not in folder.names()


def test_a_damaged_encoder_without_a_last_checkpoint_is_trained_to_the_same_again(
    context: Context, here: None
) -> None:
    encoder_id = context.workspace.open_encoder("one").encoder_id
    flip_a_bit(context.workspace.folder("encoders", "one"), "model")
    checkpoints = context.workspace.folder("runs", "one") / "checkpoints"
    checkpoints.fs.delete_dir(checkpoints.path)
    assert pretrain(config_of("one"), context)["encoder_id"] == encoder_id


def test_a_run_keeps_what_automatic_recipes_choose_by(scanned_again: Context) -> None:
    before = {"num_pictures": NUM_PICTURES + 1, "edge": 24}  # one turns out unreadable
    assert run_state(scanned_again, "one")["corpus_facts"] == before


def test_a_finished_run_outlives_the_scan_that_it_learnt_from(scanned_again: Context) -> None:
    report = pretrain(config_of("one"), scanned_again)
    assert report["note"] == "trained on an earlier scan of the corpus"
    flip_a_bit(scanned_again.workspace.folder("encoders", "one"), "model")
    assert pretrain(config_of("one"), scanned_again)["encoder_id"] == report["encoder_id"]


def test_an_unfinished_run_whose_corpus_changed_is_told_what_it_can_do(
    scanned_again: Context,
) -> None:
    write_run(scanned_again.workspace.folder("runs", "one"), state="stopped")
    with pytest.raises(ValueError, match=r"earlier scan of corpus 'digits'.* new name") as error:
        pretrain(config_of("one"), scanned_again)
    assert "old settings" not in str(error.value)
    assert run_state(scanned_again, "one")["state"] == "stopped"


def test_an_unfinished_run_does_not_go_on_with_other_pictures(context: Context) -> None:
    write_run(context.workspace.folder("runs", "one"), state="stopped", pixels_id="0" * 64)
    with pytest.raises(ValueError, match="began on 40 pictures; the 40 that can be read now"):
        pretrain(config_of("one"), context)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"training": replace(tiny(supcon_small()), epochs=20)},
            "method.name was 'simclr', is 'supcon'",
        ),
        (
            {"training": replace(TRAINING, seed=5, epochs=3)},
            "epochs was 20, is 3, seed was 0, is 5",
        ),
    ],
    ids=["method", "fields"],
)
def test_a_run_s_name_belongs_to_its_settings(
    context: Context, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=f"another configuration; different: {words}"):
        pretrain(config_of("one", **changes), context)


def test_a_run_s_name_belongs_to_its_corpus(context: Context, scanned: tuple[Path, Path]) -> None:
    scan(ScanConfig(source=str(scanned[0]), corpus="other", labels="folder"), context)
    with pytest.raises(ValueError, match="different: corpus was 'digits', is 'other'"):
        pretrain(config_of("one", corpus="other"), context)


def test_a_damaged_run_is_named(context: Context) -> None:
    context.workspace.folder("runs", "one").write_atomic("run.json", b'{"state": "do')
    with pytest.raises(CorruptArtifactError, match=r"run\.json: no JSON object"):
        pretrain(config_of("one"), context)


@pytest.mark.parametrize(
    ("changes", "workers", "words"),
    [
        ({"batch_size": 64}, 1, "41 pictures, the global batch 64"),
        ({"batch_size": 41}, 1, "40 pictures, the global batch 41"),
        ({}, 3, "batch of 8 does not divide among 3 workers"),
    ],
    ids=["batch", "batch with the unreadable", "workers"],
)
def test_what_cannot_be_shared_is_refused_before_the_run_begins(
    context: Context, tmp_path: Path, changes: dict[str, Any], workers: int, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        pretrain(
            config_of("new", training=replace(TRAINING, **changes)),
            with_workers(context, tmp_path, workers),
        )
    assert run_state(context, "new") == {}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_failures": -1}, "max_failures is -1; it has to be 0 or more"),
        ({"log_every": 0}, "log_every is 0; it has to be 1 or more"),
        ({"error_budget": 1.5}, "error_budget is 1.5; it has to be a share from 0 to 1"),
        ({"error_budget": float("nan")}, "error_budget is nan"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_with_what_to_do(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=rf"{words}.*\. (Leave|Use)"):
        config_of("one", **changes)


def plan_of(context: Context, monkeypatch: pytest.MonkeyPatch) -> WorkerPlan:
    """What the workers of an unfinished run ``one`` are told."""
    plans: list[WorkerPlan] = []
    done = {"stopped": None, "resumed_at": None}
    monkeypatch.setattr(pretrain_job, "fit", lambda plan, *_, **__: (plans.append(plan), done)[1])
    write_run(context.workspace.folder("runs", "one"), state="stopped")
    pretrain(config_of("one"), context)
    return plans[0]


def test_a_worker_refuses_other_pixels_than_the_run_began_with(
    context: Context, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(context, monkeypatch)
    with pytest.raises(TrainingDataChangedError, match="run 'one' learns from 000"):
        train_worker({"plan": replace(plan, pixels_id="0" * 64)})


def test_a_worker_keeps_the_labels_that_the_run_began_with(
    context: Context, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(context, monkeypatch)
    corpus = context.workspace.folder("corpora", "digits")
    corpus.fs.delete_dir(corpus.path)
    assert train_worker({"plan": plan})["stopped"] is None
    flip_a_bit(context.workspace.folder("runs", "one"), "labels.parquet")
    with pytest.raises(CorruptArtifactError, match="sha256 differs"):
        train_worker({"plan": plan})


def test_a_run_that_cannot_go_on_says_why_and_is_marked_stopped(
    context: Context, here: None
) -> None:
    wild = replace(TRAINING, optim=replace(TRAINING.optim, lr=1e30), epochs=40)
    with pytest.raises(PretrainingStoppedError, match=r"learning rate|collapsed"):
        pretrain(config_of("wild", training=wild), context)
    run = run_state(context, "wild")
    assert run["state"] == "stopped"
    assert run["error"]
    assert context.workspace.names("encoders") == ["one"]


def test_a_worker_s_failure_comes_out_as_itself_and_leaves_nothing_of_ray(
    context: Context,
) -> None:
    """A file lies where the encoder's folder should be: no typed stop, but a failure."""
    (context.workspace.root / "encoders").write_atomic("new", b"in the way")
    leftover = context.workspace.folder("runs", "new") / "ray" / "killed-run"
    leftover.make().write_atomic("state.json", b"{}")
    with pytest.raises(OSError, match="encoders/new"):
        pretrain(config_of("new", max_failures=0), context)
    run = run_state(context, "new")
    assert run["state"] == "failed"
    assert "encoders/new" in run["error"]
    assert not context.workspace.folder("runs", "new").exists("ray")
    assert read_metrics(context.workspace.folder("runs", "new"))[-1]["step"] == 100


def wait_for(folder: Folder, checkpoints: int) -> None:
    deadline = time.monotonic() + 120
    while len((folder / "checkpoints").names()) < checkpoints and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_killed_driver_s_run_goes_on_to_the_same_weights_to_the_bit(context: Context) -> None:
    folder = context.workspace.folder("runs", "killed")
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, context.workspace.location],
        cwd=CHECKOUT,
        start_new_session=True,
    ) as driver:
        wait_for(folder, checkpoints=2)
        os.killpg(driver.pid, signal.SIGKILL)
    assert read_run(folder)["state"] == "running"
    report = pretrain(config_of("killed", checkpoint_every=3), context)
    assert report["resumed_at"] > 0
    assert not folder.exists("ray")
    steps = [line["step"] for line in read_metrics(folder)]
    assert steps == sorted(set(steps))
    assert steps[-1] == report["steps"] == 100
    np.testing.assert_array_equal(weights(context, "killed"), weights(context, "one"))


def test_an_encoder_that_no_run_made_is_not_replaced(context: Context, make_encoder: Any) -> None:
    made = make_encoder(context.workspace, "imported")
    config = PretrainJobConfig(corpus="digits", name="imported", training=tiny(simclr_small()))
    with pytest.raises(ValueError, match=r"'imported' in .* did not make it.*another --name"):
        pretrain(config, context)
    assert context.workspace.open_encoder("imported").encoder_id == made.encoder_id
