"""Measuring encoders beside each other, untrained ones and raw pixels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster import evaluate_job
from cluster.cli import main
from cluster.contenders import Look, read_entrants, sources_of
from cluster.evaluate_job import EvaluateConfig, evaluate
from encoders.backbone import BackboneConfig
from encoders.distort import distort
from encoders.encoder import Encoder, EncoderConfig
from encoders.heads import ProjectorConfig
from encoders.preprocess import PreprocessConfig
from index.artifact import MissingArtifactError, open_door

CONFIG = EvaluateConfig(
    corpus="digits",
    encoder=("tiny",),
    num_queries=20,
    labels_per_class=(1, 2),
    num_draws=2,
    knn_k=1,
)
FIGURES = [
    "recall@1", "recall@10", "mAP", "class recall@1", "class recall@10", "kNN-1",
    "1 labels/class", "2 labels/class",
]  # fmt: skip


def publish_other(library: Any, name: str = "other", **facts: Any) -> None:
    """An encoder of another size, fit and dimension, without a projector."""
    encoder = Encoder.initialise(
        EncoderConfig(
            backbone=BackboneConfig(widths=(4, 8)),
            projector=ProjectorConfig(num_layers=0),
            preprocess=PreprocessConfig(size=24, fit="pad"),
        ),
        seed=3,
    )
    library.workspace.publish_encoder(name, encoder, {"versions": {}, **facts})


@pytest.mark.ray
def test_every_source_of_vectors_is_measured_on_the_same_pictures(
    library: Any, local_ray: Any
) -> None:
    report = evaluate(CONFIG, library.context)
    assert (report["num_pictures"], report["num_queries"]) == (30, 20)
    assert report["corpus_id"] == library.catalog.corpus_id
    assert list(report["figures"]) == ["trained", "trained projector", "random init", "raw pixels"]
    for figures in report["figures"].values():
        assert list(figures) == FIGURES
        assert all(0 <= cell["low"] <= cell["value"] <= cell["high"] for cell in figures.values())
        assert figures["recall@1"]["value"] <= figures["recall@10"]["value"]
        assert (figures["recall@1"]["n"], figures["2 labels/class"]["n"]) == (20, 2)
    assert "linear probe: not measured, as it needs two classes of 5 pictures." in report["notes"]

    # The encoder is an untrained one, drawn with seed 0: so is its twin, and they agree.
    trained, twin = report["figures"]["trained"], report["figures"]["random init"]
    for name in FIGURES:
        assert trained[name]["value"] == twin[name]["value"]
    assert trained["mAP"]["to_baseline"]["value"] <= 0
    other = evaluate(replace(CONFIG, seed=1), library.context)["figures"]
    assert other["trained"] != other["random init"]

    # Several: of other size and dimension, each beside its own untrained twin.
    publish_other(library, imported={"source": "theirs.safetensors"})
    both = evaluate(replace(CONFIG, encoder=("tiny", "other")), library.context)
    assert list(both["figures"]) == [
        "tiny", "tiny projector", "other", "random init of tiny", "random init of other",
        "raw pixels",
    ]  # fmt: skip
    assert [source["origin"] for source in both["sources"]][:3] == ["trained"] * 2 + ["imported"]
    for name, alone in (("tiny", "trained"), ("raw pixels", "raw pixels")):
        for figure in FIGURES:
            found = both["figures"][name][figure]
            assert found["value"] == report["figures"][alone][figure]["value"]
    assert both["figures"]["other"]["mAP"]["to_baseline"]["against"] in (
        "random init of other",
        "raw pixels",
    )
    assert "other is imported (theirs.safetensors): whether" in both["notes"][1]
    assert both["path"].endswith("evaluations/digits-tiny-other")

    # Files that have gone since the scan are left out of the queries, and stop nothing.
    for path in sorted(Path(library.pictures).rglob("*.png"))[:10]:
        path.unlink()
    few = evaluate(replace(CONFIG, error_budget=0.5, num_queries=30), library.context)
    assert few["num_queries"] == 20


@pytest.mark.parametrize(
    "setting",
    [
        {"num_queries": 0},
        {"labels_per_class": ()},
        {"labels_per_class": (0,)},
        {"error_budget": 2},
        {"num_draws": 0},
        {"encoder": ()},
        {"encoder": ("a", "a")},
        {"probe_pictures": 0},
    ],
)
def test_settings_out_of_range_say_what_is_allowed(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))} "):
        replace(CONFIG, **setting)


def test_names_that_together_are_too_long_ask_for_one() -> None:
    long = ("a" * 60, "b" * 60)
    with pytest.raises(ValueError, match=r"evaluation --name .*up to 100 letters"):
        replace(CONFIG, encoder=long)
    assert replace(CONFIG, encoder=long, name="short").evaluation == "short"


@pytest.mark.parametrize("given", [("--corpus", "nope"), ("--encoder", "tiny", "nope")])
def test_unknown_names_list_what_there_is(
    library: Any, given: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    rest = ["--encoder", "tiny"] if given[0] == "--corpus" else ["--corpus", "digits"]
    assert main(["evaluate", *given, *rest, "--workspace", library.location]) == 1
    said = capsys.readouterr().err
    assert "'nope' in" in said
    assert f"Existing: {'digits' if given[0] == '--corpus' else 'tiny'}." in said
    assert "Make it: lookalike" in said
    with pytest.raises(MissingArtifactError):
        read_entrants(library.workspace, ["nope"])


# --- columns -------------------------------------------------------------------------------------


def test_encoders_of_one_architecture_share_an_untrained_twin(
    library: Any, make_encoder: Any
) -> None:
    make_encoder(library.workspace, "second", seed=1)
    sources = sources_of(read_entrants(library.workspace, ["tiny", "second"]))
    assert [source.name for source in sources] == [
        "tiny", "tiny projector", "second", "second projector", "random init", "raw pixels",
    ]  # fmt: skip
    publish_other(library)
    sources = sources_of(read_entrants(library.workspace, ["other", "tiny"]))
    assert [source.name for source in sources if source.is_baseline] == [
        "random init of other", "random init of tiny", "raw pixels",
    ]  # fmt: skip
    assert sources[-1].look == Look(24, "pad", 512)


def test_a_query_shows_the_same_at_every_size() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (6, 6, 6, 3)).repeat(32, axis=1).repeat(32, axis=2)
    large = distort(coarse.astype(np.uint8), np.arange(6), seed=0, size=96)
    small = distort(coarse.astype(np.uint8), np.arange(6), seed=0, size=48)
    shrunk = large.reshape(6, 48, 2, 48, 2, 3).mean((2, 4))
    assert np.abs(shrunk - small).mean() < 3


# --- what was measured is kept -------------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[EvaluateConfig]:
    """Every evaluation that is really made."""
    made: list[EvaluateConfig] = []
    cell = {"value": 0.7, "low": 0.6, "high": 0.8, "n": 10}

    def _measure(config: EvaluateConfig, *_: Any) -> dict[str, Any]:
        made.append(config)
        return {
            "corpus": config.corpus,
            "encoders": [{"name": name} for name in config.encoder],
            "sources": [{"name": "trained", "origin": "trained", "layer": "backbone"}],
            **{f"num_{what}": len(made) for what in ("pictures", "queries", "labelled")},
            "groups": {"find the original": ["recall@1"]},
            "figures": {"trained": {"recall@1": cell}},
            "config": {"seed": config.seed},
            "notes": [],
        }

    monkeypatch.setattr(evaluate_job, "_measure", _measure)
    return made


def evaluated(library: Any, **given: Any) -> dict[str, Any]:
    return evaluate(EvaluateConfig(corpus="digits", encoder=("tiny",), **given), library.context)


def test_an_evaluation_is_made_once(library: Any, measured: list[EvaluateConfig]) -> None:
    first = evaluated(library)
    assert evaluated(library) == first
    assert len(measured) == 1
    assert first["path"] == str(library.folder("evaluations", "digits-tiny"))


def test_an_evaluation_names_what_it_measured(library: Any, measured: list[Any]) -> None:
    report = evaluated(library)
    door = open_door(library.folder("evaluations", "digits-tiny"), "evaluation")
    assert door["parents"]["corpus_id"] == library.catalog.corpus_id
    encoder_id = library.workspace.open_encoder("tiny").encoder_id
    assert door["parents"]["encoders"] == {"tiny": encoder_id}
    assert len(door["parents"]["config_id"]) == 64
    assert {"scikit-learn", "torch"} <= set(door["versions"])
    assert Path(report["plot"]).read_text().startswith("<svg ")
    assert [Path(report["plot"]).name] == list(door["files"])


def test_other_settings_replace_it_and_another_name_keeps_both(
    library: Any, measured: list[EvaluateConfig]
) -> None:
    evaluated(library)
    evaluated(library, num_queries=5)
    assert [config.num_queries for config in measured] == [1000, 5]
    evaluated(library, name="mine")
    evaluated(library, num_queries=5)
    assert len(measured) == 3
    plots = [n for n in library.folder("evaluations", "digits-tiny").names() if "plot" in n]
    assert len(plots) == 1


def test_another_corpus_and_another_encoder_are_measured_again(
    library: Any, measured: list[EvaluateConfig], make_encoder: Any
) -> None:
    evaluated(library)
    next(library.pictures.glob("1/*")).unlink()
    library.rescan()
    evaluated(library)
    make_encoder(library.workspace, seed=1)
    evaluated(library)
    assert len(measured) == 3


@pytest.mark.parametrize("damage", [b"", b"{}", b"half a li"])
def test_a_damaged_evaluation_is_measured_again(
    library: Any, measured: list[EvaluateConfig], damage: bytes
) -> None:
    evaluated(library)
    library.folder("evaluations", "digits-tiny").write_atomic("evaluation.json", damage)
    evaluated(library)
    evaluated(library)
    assert len(measured) == 2


def test_a_flipped_digit_or_a_lost_plot_is_measured_again(
    library: Any, measured: list[EvaluateConfig]
) -> None:
    figures = evaluated(library)["figures"]
    folder = library.folder("evaluations", "digits-tiny")
    folder.write_atomic(
        "evaluation.json", folder.read_bytes("evaluation.json").replace(b"0.7", b"0.9")
    )
    report = evaluated(library)
    assert report["figures"] == figures
    Path(report["plot"]).unlink()
    assert Path(evaluated(library)["plot"]).exists()
    assert len(measured) == 3


def test_a_workspace_that_moved_reports_where_it_is_now(
    library: Any, measured: list[EvaluateConfig], tmp_path: Path
) -> None:
    evaluated(library)
    moved = library.workspace.root.local_path().rename(tmp_path / "moved")
    context = replace(library.context, workspace=type(library.workspace).at(moved))
    report = evaluate(EvaluateConfig(corpus="digits", encoder=("tiny",)), context)
    assert report["path"] == str(moved / "evaluations" / "digits-tiny")
    assert Path(report["plot"]).is_relative_to(moved)
    assert len(measured) == 1


# --- what was learnt from is said ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"parents": {"corpus_id": "THIS"}}, "has learnt from these very pictures; on new ones"),
        (
            {
                "parents": {"corpus_id": "THIS"},
                "training": {"recipe": {"method": {"name": "supcon"}}},
            },
            "and their labels, so that no figure by class can be trusted",
        ),
        ({"parents": {"corpus_id": "x"}}, "has learnt from another scan or corpus"),
        ({"imported": {"source": "timm:x"}}, "is imported (timm:x)"),
    ],
)
def test_what_an_encoder_learnt_from_is_said(
    library: Any, facts: dict[str, Any], said: str
) -> None:
    catalog = library.catalog
    facts = json.loads(json.dumps(facts).replace("THIS", catalog.corpus_id))
    publish_other(library, **facts)
    entrants = read_entrants(library.workspace, ["other"])
    (note,) = evaluate_job._provenance(entrants, catalog, has_labels=True)
    assert note.startswith("other ")
    assert said in note


def test_vectors_without_a_direction_are_counted_and_miss(library: Any) -> None:
    (source, *_) = sources_of(read_entrants(library.workspace, ["tiny"]))
    vectors = np.array([[1, 0], [np.nan, 1], [0, 0]], np.float32)
    (note,) = evaluate_job._blanked(source, vectors, np.array([[np.inf, 0]], np.float32))
    assert note == "trained: 3 of 4 vectors are zero or not finite: they miss."
    assert vectors.tolist() == [[1, 0], [0, 0], [0, 0]]
    assert evaluate_job._blanked(source, vectors[:1], vectors[:1]) == []
