"""What a run starts from and learns: encoders, labels of the scan, labels that people gave."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from cluster.catalog import open_corpus
from cluster.context import Context
from cluster.pretrain_job import PretrainJobConfig, pretrain
from cluster.run_labels import UnreadableLabelsError, load_labels
from cluster.runlog import read_metrics, read_run, write_run
from cluster.scan_job import ScanConfig, scan
from cluster.workspace import Workspace
from encoders.encoder import Encoder
from encoders.pretrain_config import PretrainConfig
from encoders.recipes import simclr_small, supcon_finetune_small, supcon_small, tiny
from encoders.training import Pretraining
from encoders.warm_start import starting_config
from index.artifact import CorruptArtifactError, MissingArtifactError
from index.folder import Folder
from index.labels import LabelEvent, LabelStore

pytestmark = pytest.mark.ray

NUM_PICTURES = 40
SIMCLR, SUPCON = tiny(simclr_small()), tiny(supcon_small())
PAIRS = replace(SUPCON, batch_size=2)


def context_at(folder: Path) -> Context:
    return Context(Workspace.at(folder), console=Console(file=io.StringIO(), width=1000))


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory, local_ray: Any, train_here: Any) -> Path:
    """A workspace with four pictures in each of ten folders, and pixels; copy before writing."""
    folder = tmp_path_factory.mktemp("inputs")
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 32, (NUM_PICTURES, 24, 24, 3), dtype=np.uint8)
    pixels = noise + generator.integers(0, 224, (NUM_PICTURES, 1, 1, 3), dtype=np.uint8)
    # Ids follow the paths, so picture ``i`` is of class ``i // 4``.
    for number in range(NUM_PICTURES):
        path = folder / "pictures" / str(number // 4) / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]).save(path)
    context = context_at(folder / "workspace")
    scan(ScanConfig(source=str(folder / "pictures"), corpus="digits", labels="folder"), context)
    with pytest.MonkeyPatch.context() as patch:
        train_here(patch)
        pretrain(job("pixels", SIMCLR), context)
    return folder / "workspace"


@pytest.fixture
def context(
    scanned: Path, tmp_path: Path, train_here: Any, monkeypatch: pytest.MonkeyPatch
) -> Context:
    monkeypatch.delenv("LOOKALIKE_LABELS_URL", raising=False)
    shutil.copytree(scanned, tmp_path / "workspace")
    train_here(monkeypatch)
    return context_at(tmp_path / "workspace")


def job(name: str, training: PretrainConfig, **changes: Any) -> PretrainJobConfig:
    settings = {"trackers": (), "corpus": "digits", "name": name, "training": training}
    return PretrainJobConfig(**settings | changes)


def run_state(context: Context, name: str) -> dict[str, Any]:
    return read_run(context.workspace.folder("runs", name))


def said(context: Context) -> str:
    assert isinstance(context.console.file, io.StringIO)
    return context.console.file.getvalue()


def give(context: Context, labels: dict[int, str], *, audit: Sequence[int] = ()) -> None:
    """Label pictures as a person does in the Label tab."""
    uid = open_corpus(context.workspace, "digits").uid
    with closing(LabelStore(context.workspace.labels_url)) as store:
        store.add(
            LabelEvent(
                user="local",
                corpus_uid=uid,
                picture_id=picture,
                label=label,
                source="audit" if picture in audit else "suggest",
            )
            for picture, label in labels.items()
        )


def taught(monkeypatch: pytest.MonkeyPatch) -> dict[int, set[int]]:
    """Every label that training is shown from now on, by picture."""
    shown: dict[int, set[int]] = {}
    train_step = Pretraining.train_step

    def spy(self: Pretraining, pixels: Any, ids: Any, labels: Any, **how: Any) -> dict[str, float]:
        for picture, label in zip(ids.tolist(), labels.tolist(), strict=True):
            shown.setdefault(picture, set()).add(label)
        return train_step(self, pixels, ids, labels, **how)

    monkeypatch.setattr(Pretraining, "train_step", spy)
    return shown


def held_out_of(context: Context, name: str) -> np.ndarray:
    folder = context.workspace.folder("runs", name)
    codes, held_out = load_labels(folder, read_run(folder)["labels"]["file"])
    assert (codes[held_out] >= 0).all()
    return np.flatnonzero(held_out)


def test_every_run_with_labels_is_measured_beside_its_baselines(context: Context) -> None:
    last = read_metrics(context.workspace.folder("runs", "pixels"))[-1]
    names = {"knn", "knn_random", "knn_pixels", "probe", "probe_random", "probe_pixels"}
    assert names < set(last)
    assert (last["num_bank"], last["num_test"], last["knn_k"]) == (30, 10, 5)
    report = pretrain(job("pixels", SIMCLR), context)
    assert report["knn_random"] == last["knn_random"]


def test_a_supervised_run_never_sees_the_labels_it_is_measured_by(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = taught(monkeypatch)
    pretrain(job("supcon", SUPCON), context)
    held_out = held_out_of(context, "supcon")
    assert len(held_out) == 10  # one of four of each class
    assert not shown.keys() & set(held_out.tolist())
    assert run_state(context, "supcon")["num_trained"] == NUM_PICTURES - 10
    others = set(range(NUM_PICTURES)) - set(held_out.tolist())
    assert all(shown[picture] == {picture // 4} for picture in others)
    card = context.workspace.folder("encoders", "supcon")
    assert b'"labels_id"' in card.read_bytes("card.json")


def test_all_labels_can_be_learnt_and_then_nothing_is_measured(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = taught(monkeypatch)
    report = pretrain(job("all", SUPCON, held_out=0.0), context)
    assert all(shown[picture] == {picture // 4} for picture in range(NUM_PICTURES))
    assert report["knn"] is None


def test_given_labels_are_learnt_kept_and_named_in_the_card(
    context: Context, monkeypatch: pytest.MonkeyPatch, make_encoder: Any
) -> None:
    start: Encoder = make_encoder(context.workspace, "first")
    give(context, {0: "round", 1: "long", 3: "round", 7: "long", 8: "round"}, audit=[3])
    shown = taught(monkeypatch)
    training = starting_config(tiny(supcon_finetune_small()), start)
    config = job("tuned", training, start="first", labels="given")
    with pytest.raises(ValueError, match=r"there are 3, .* Use a batch_size of 3 or less"):
        pretrain(config, context)
    config = replace(config, training=replace(training, batch_size=2))
    pretrain(config, context)
    held_out = held_out_of(context, "tuned").tolist()
    assert 3 in held_out  # the one that was drawn at random
    assert len(held_out) == 2
    assert shown.keys() == {0, 1, 3, 7, 8} - set(held_out)
    run = run_state(context, "tuned")
    assert (run["num_trained"], run["num_steps"]) == (3, training.epochs)
    assert run["labels"]["snapshot_id"]
    assert run["parents"]["start_id"] == start.encoder_id
    last = read_metrics(context.workspace.folder("runs", "tuned"))[-1]
    assert {"knn_start", "probe_start"} < set(last)
    # Labels that come later are those of another run.
    give(context, {5: "round"})
    write_run(context.workspace.folder("runs", "tuned"), state="stopped")
    shown.clear()
    pretrain(config, context)
    assert run_state(context, "tuned")["labels"] == run["labels"]


def test_pictures_without_a_label_can_be_taken_along(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(context, {0: "round", 1: "long", 7: "long", 8: "round"})
    shown = taught(monkeypatch)
    alone = replace(SUPCON, method=replace(SUPCON.method, unlabelled="alone"))
    pretrain(job("alone", alone, labels="given"), context)
    assert shown.keys() == set(range(NUM_PICTURES))
    assert len([picture for picture, labels in shown.items() if labels != {-1}]) == 2


def test_given_labels_take_the_place_of_the_corpus_own(context: Context) -> None:
    give(context, dict.fromkeys(range(0, NUM_PICTURES, 2), "mine"))
    pretrain(job("both", SIMCLR), context)
    facts = run_state(context, "both")["labels"]
    assert (facts["num_labelled"], facts["num_classes"]) == (NUM_PICTURES, 11)
    pretrain(job("corpus", SIMCLR, labels="corpus"), context)
    assert run_state(context, "corpus")["labels"]["num_classes"] == 10


def test_which_labels_are_measured_by_changes_no_weight(context: Context) -> None:
    give(context, {picture: "odd" if picture % 2 else "even" for picture in range(12)})
    one = pretrain(job("by-given", SIMCLR, labels="given"), context)
    two = pretrain(job("by-corpus", SIMCLR, labels="corpus", held_out=0.5), context)
    assert (
        one["encoder_id"]
        == two["encoder_id"]
        == pretrain(job("pixels", SIMCLR), context)["encoder_id"]
    )
    assert (one["num_test"], two["num_test"]) == (2, 20)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({}, "there are none"),
        ({0: "cat", 4: "cat", 9: "cat"}, "all 2 are 'cat'"),
        ({900: "cat", 901: "dog"}, r"there are none \(2 are of pictures that are gone\)"),
    ],
    ids=["none", "one class", "gone"],
)
def test_too_few_given_labels_are_refused_before_anything_is_made(
    context: Context, labels: dict[int, str], words: str
) -> None:
    give(context, labels)
    with pytest.raises(ValueError, match=rf"run 'new': of the labels .*{words}.* Label pictures"):
        pretrain(job("new", SUPCON, labels="given"), context)
    assert run_state(context, "new") == {}


def test_labels_of_pictures_that_are_gone_are_counted_and_left_out(context: Context) -> None:
    give(context, {0: "a", 1: "b", 2: "a", 3: "b", 900: "a"})
    pretrain(job("some", SIMCLR, labels="given"), context)
    assert "1 more are of pictures that are gone" in said(context)
    assert run_state(context, "some")["labels"]["num_labelled"] == 4


def test_looking_for_given_labels_makes_no_label_log(context: Context) -> None:
    pretrain(job("new", SIMCLR), context)
    assert not context.workspace.root.exists("labels.db")


def test_given_labels_that_cannot_be_read_are_said_and_stop_only_who_learns_them(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOKALIKE_LABELS_URL", "sqlite:////nowhere/at/all/labels.db")
    monkeypatch.setattr("cluster.run_labels.Path.exists", lambda _: True)
    report = pretrain(job("new", SIMCLR), context)
    assert report["knn"] is not None
    assert "cannot be read: " in said(context)
    assert "measured by the corpus' own labels" in said(context)
    with pytest.raises(UnreadableLabelsError, match=r"cannot be read: .*use --labels corpus"):
        pretrain(job("other", SUPCON, labels="given"), context)


def test_damaged_labels_are_written_anew_while_they_are_the_same(context: Context) -> None:
    folder = context.workspace.folder("runs", "one")
    pretrain(job("one", SUPCON), context)
    write_run(folder, state="stopped")
    folder.write_atomic("labels.parquet", b"damaged")
    pretrain(job("one", SUPCON), context)
    assert len(held_out_of(context, "one")) == 10
    give(context, {0: "a", 1: "b", 2: "a", 3: "b"})
    pretrain(job("two", PAIRS, labels="given"), context)
    folder = context.workspace.folder("runs", "two")
    write_run(folder, state="stopped")
    folder.write_atomic("labels.parquet", b"damaged")
    give(context, {4: "a"})
    with pytest.raises(CorruptArtifactError, match=r"labels\.parquet.* another --name"):
        pretrain(job("two", PAIRS, labels="given"), context)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": "given"}, "source was None, is 'given'"),
        ({"held_out": 0.5}, "share was 0.2, is 0.5"),
        ({"start": "pixels"}, "began from weights of its seed, .* start from encoder 'pixels'"),
    ],
    ids=str,
)
def test_a_run_keeps_its_labels_and_its_start(
    context: Context, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        pretrain(job("pixels", SIMCLR, **changes), context)


def start_weight(encoder: Encoder) -> torch.Tensor:
    return encoder.backbone.state_dict()["net.conv1.weight"]


def test_a_run_starts_from_an_encoder_and_goes_on_without_it(
    context: Context, make_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    start: Encoder = make_encoder(context.workspace, "first", seed=5)
    training = starting_config(SIMCLR, start)
    config = job("second", training, start="first", checkpoint_every=1000)
    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "train_step", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pretrain(config, context)
    home = context.workspace.folder("encoders", "first")
    home.fs.delete_dir(home.path)
    begun: list[torch.Tensor] = []
    train_step = Pretraining.train_step

    def spy(self: Pretraining, *given: Any, **how: Any) -> dict[str, float]:
        begun.append(start_weight(self.encoder()).clone())
        return train_step(self, *given, **how)

    monkeypatch.setattr(Pretraining, "train_step", spy)
    pretrain(config, context)
    torch.testing.assert_close(begun[0], start_weight(start), rtol=0, atol=0)
    run = run_state(context, "second")
    assert run["start"] == {"encoder": "first", "encoder_id": start.encoder_id}
    assert run["config_id"] != run_state(context, "pixels")["config_id"]


def test_an_encoder_that_changed_since_is_refused(context: Context, make_encoder: Any) -> None:
    start: Encoder = make_encoder(context.workspace, "first", seed=5)
    config = job("second", starting_config(SIMCLR, start), start="first")
    pretrain(config, context)
    other: Encoder = make_encoder(context.workspace, "first", seed=6)
    words = f"when it was {start.encoder_id[:12]}; it is {other.encoder_id[:12]} now.* new --name"
    with pytest.raises(ValueError, match=words):
        pretrain(config, context)
    with pytest.raises(ValueError, match=r"began from encoder 'first', .* weights of its seed"):
        pretrain(replace(config, start=None), context)


def test_a_start_that_is_missing_or_another_network_is_refused(
    context: Context, make_encoder: Any
) -> None:
    with pytest.raises(MissingArtifactError, match=r"'none' in .*Existing: pixels"):
        pretrain(job("second", SIMCLR, start="none"), context)
    make_encoder(context.workspace, "first")
    with pytest.raises(ValueError, match=r"--start first: its network is .*the encoder decides"):
        pretrain(job("second", SIMCLR, start="first"), context)
    assert run_state(context, "second") == {}


def test_event_files_are_written_unless_they_are_not_wanted(context: Context) -> None:
    def event_files(folder: Folder) -> list[str]:
        return [name for name in folder.names() if name.startswith("events.out.tfevents.")]

    pretrain(job("shown", SIMCLR, trackers=("tensorboard",)), context)
    assert len(event_files(context.workspace.folder("runs", "shown"))) == 1
    assert event_files(context.workspace.folder("runs", "pixels")) == []
