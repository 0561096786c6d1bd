"""What a person reads: every report in words, file names as they are."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from cluster.show import show


def shown(verb: str, report: dict[str, Any], width: int = 100) -> str:
    stream = io.StringIO()
    show(verb, report, Console(file=stream, width=width))
    return stream.getvalue()


def words(verb: str, report: dict[str, Any]) -> str:
    return " ".join(shown(verb, report).split())


def hit(rank: int, file: str, status: str = "ok") -> dict[str, Any]:
    return {"rank": rank, "id": 10 * rank, "score": 0.98765, "file": file, "status": status}


def search_report(*hits: dict[str, Any], flags: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "hits": list(hits),
        "took_ms": 3.2,
        "version": "v000001",
        "reaching": 1234 if "limited" in flags else None,
        "guarantee": "Exact: all pictures were compared.",
        "flags": list(flags),
    }


def cell(value: float, half: float, **gaps: Any) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "n": 10, **gaps}


def gap(value: float, half: float) -> dict[str, Any]:
    return {"against": "raw pixels", **cell(value, half)}


EVALUATION = {
    "num_queries": 1000,
    "num_pictures": 2460,
    "sources": [
        {"name": "trained", "origin": "trained", "layer": "backbone"},
        {"name": "raw pixels", "origin": "raw pixels", "layer": None},
    ],
    "groups": {"find the original": ["recall@1"], "classify": ["5 labels"]},
    "figures": {
        "trained": {
            "recall@1": cell(0.7, 0.1, to_baseline=gap(0.5, 0.1)),
            "5 labels": cell(0.5, 0.025, to_baseline=gap(-0.1, 0.2), to_best=gap(-0.1, 0.2)),
        },
        "raw pixels": {
            "recall@1": cell(0.2, 0.1, to_best=gap(-0.5, 0.1)),
            "5 labels": cell(0.6, 0.01),
        },
    },
    "notes": ["enc1 has learnt from these [very] pictures"],
    "path": "/w/evaluations/e",
    "plot": "/w/evaluations/e/plot-1.svg",
}


def test_any_report_becomes_lines_of_names_and_values() -> None:
    report = {"corpus_id": "ab", "pictures": {"ok": 12345, "gone": 0}, "rate": 1 / 3, "no": None}
    assert words("scan", report) == "corpus id ab pictures ok 12,345, gone 0 rate 0.3333"
    assert words("scan", {"files": [], "ok": True}) == "files none ok True"


def test_a_long_name_goes_on_in_the_next_line() -> None:
    name = "/pictures/" + "x" * 200 + ".png"
    assert name in words("graph", {"outliers": [{"id": 1, "file": name}]}).replace(" ", "")


def test_file_names_are_shown_as_they_are() -> None:
    name = "/a/[bold]x[/bold] [link=http://x]y[/link].png"
    assert name in words("search", search_report(hit(1, name)))
    assert name in words("scan", {"folder": name})


def test_results_are_rows_with_rank_score_id_and_file() -> None:
    text = words("search", search_report(hit(1, "/a/x.png"), hit(2, "/a/y.png")))
    assert "1 0.988 10 /a/x.png 2 0.988 20 /a/y.png 2 pictures in 3 ms, v000001" in text


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("short", "no more pictures than these"),
        ("limited", "1,234 pictures reach that score"),
        ("changed_since_index", "Embed and index again"),
    ],
)
def test_flags_are_explained(flag: str, said: str) -> None:
    text = words("search", search_report(hit(1, "/a/x.png", "replaced"), flags=(flag,)))
    assert f"{flag}: " in text
    assert said in text
    assert "/a/x.png (replaced)" in text
    assert "Exact: all pictures were compared." in text


def test_every_flag_of_the_search_has_an_explanation() -> None:
    from cluster.search_job import CHANGED
    from cluster.show import FLAGS

    assert set(FLAGS) == {"limited", "short", CHANGED}


def test_figures_are_per_cent_with_half_their_interval() -> None:
    lines = shown("evaluate", EVALUATION).splitlines()
    assert any(line.split() == ["recall@1", "70.0", "±10.0", "20.0", "±10.0"] for line in lines)
    assert any(line.split() == ["5", "labels", "50.0", "±2.5", "60.0", "±1.0"] for line in lines)
    assert "1,000 queries and 2,460 pictures, in %" in words("evaluate", EVALUATION)


def test_gains_on_the_better_baseline_stand_below_with_their_sign() -> None:
    below = words("evaluate", EVALUATION).partition("points above the better")[2]
    assert "recall@1 +50.0 ±10.0" in below
    assert "5 labels -10.0 ±20.0" in below
    assert "raw pixels recall@1" not in below


def test_notes_and_places_follow_the_figures() -> None:
    text = words("evaluate", EVALUATION)
    assert "- enc1 has learnt from these [very] pictures report: /w/evaluations/e/eval" in text
    assert text.endswith("plot: /w/evaluations/e/plot-1.svg")


def styled(pattern: str) -> list[str]:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system="standard", width=100)
    show("evaluate", EVALUATION, console)
    return re.findall(pattern, stream.getvalue())


def test_the_best_of_a_row_is_bold_and_what_is_not_told_from_it() -> None:
    # 50.0 lies below 60.0, but the interval of their difference reaches 0.
    assert styled(r"\x1b\[1m *([\d.]+ ±[\d.]+)") == ["70.0 ±10.0", "50.0 ±2.5", "60.0 ±1.0"]
    assert styled(r"\x1b\[2m *([-+][\d.]+ ±[\d.]+)") == ["-10.0 ±20.0"]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_many_encoders_with_long_names_fit_by_going_on_in_further_tables(width: int) -> None:
    names = [f"encoder-of-long-name-{number}{'x' * 40}" for number in range(6)]
    sources = [{"name": name, "origin": "trained", "layer": "backbone"} for name in names]
    figures = dict.fromkeys(names, EVALUATION["figures"]["trained"])
    report = {
        **EVALUATION,
        "sources": [*sources, EVALUATION["sources"][1]],
        "figures": {**figures, "raw pixels": EVALUATION["figures"]["raw pixels"]},
        "notes": [],
    }
    text = shown("evaluate", report, width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("70.0 ±10.0") == text.count("+50.0 ±10.0") == 6
    assert "…" not in text


def test_the_doctor_names_each_check_with_its_result() -> None:
    check = {"name": "ray", "level": "fail", "detail": "no [cluster] answers"}
    assert words("doctor", {"ok": False, "checks": [check]}).endswith(
        "ray fail no [cluster] answers"
    )


def test_the_demo_ends_with_its_steps_and_figures() -> None:
    step = {"step": "scan", "result": "30 pictures", "path": "/w/corpora/a", "seconds": 1.26}
    report = {
        "steps": [step],
        "evaluation": EVALUATION,
        "index_recall": "1.000 at 10",
        "attribution": "Pictures: OpenMoji",
    }
    text = words("demo", report)
    assert "scan 30 pictures /w/corpora/a 1.3 s" in text
    assert "70.0 ±10.0" in text
    assert text.endswith("index: 1.000 at 10 Pictures: OpenMoji")
