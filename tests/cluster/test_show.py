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
    return {"hits": list(hits), "took_ms": 3.2, "version": "v000001", "flags": list(flags)}


EVALUATION = {
    "num_queries": 1000,
    "num_pictures": 2460,
    "figures": {
        "trained": {
            "recall@1": {"value": 0.7, "low": 0.6, "high": 0.8, "n": 10},
            "5 labels": {"value": 0.5, "sd": 0.025, "n": 10},
        },
        "raw pixels": {
            "recall@1": {"value": 0.2, "low": 0.1, "high": 0.3, "n": 10},
            "5 labels": {"value": 0.6, "sd": 0.01, "n": 10},
        },
    },
}


def test_any_report_becomes_lines_of_names_and_values() -> None:
    report = {"corpus_id": "ab", "pictures": {"ok": 12345, "gone": 0}, "rate": 1 / 3, "no": None}
    assert words("scan", report) == "corpus id ab pictures ok 12,345, gone 0 rate 0.3333"
    assert words("scan", {"files": [], "ok": True}) == "files none ok True"


def test_file_names_are_shown_as_they_are() -> None:
    name = "/a/[bold]x[/bold] [link=http://x]y[/link].png"
    assert name in words("search", search_report(hit(1, name)))
    assert name in words("scan", {"folder": name})


def test_results_are_rows_with_rank_score_id_and_file() -> None:
    text = words("search", search_report(hit(1, "/a/x.png"), hit(2, "/a/y.png")))
    assert "1 0.988 10 /a/x.png 2 0.988 20 /a/y.png 2 pictures in 3 ms, v000001" in text


@pytest.mark.parametrize(
    ("flag", "said"),
    [("short", "holds no more pictures"), ("changed_since_index", "Embed and index again")],
)
def test_flags_are_explained(flag: str, said: str) -> None:
    text = words("search", search_report(hit(1, "/a/x.png", "replaced"), flags=(flag,)))
    assert f"{flag}: " in text
    assert said in text
    assert "/a/x.png (replaced)" in text


def test_every_flag_of_the_search_has_an_explanation() -> None:
    from cluster.search_job import CHANGED
    from cluster.show import FLAGS

    assert set(FLAGS) == {"short", CHANGED}


def test_figures_are_per_cent_with_half_the_interval_or_the_deviation() -> None:
    lines = shown("evaluate", EVALUATION).splitlines()
    assert any(line.split() == ["recall@1", "70.0", "±10.0", "20.0", "±10.0"] for line in lines)
    assert any(line.split() == ["5", "labels", "50.0", "±2.5", "60.0", "±1.0"] for line in lines)
    assert "1,000 queries and 2,460 pictures, in %" in words("evaluate", EVALUATION)


def test_the_best_of_a_row_is_bold() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system="standard", width=100)
    show("evaluate", EVALUATION, console)
    bold = re.findall(r"\x1b\[1m *([\d.]+ ±[\d.]+)", stream.getvalue())
    assert bold == ["70.0 ±10.0", "60.0 ±1.0"]


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
