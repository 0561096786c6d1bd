"""Goals of the index: who is judged against whom; contestants of fewer rounds in the table."""

from __future__ import annotations

from typing import Any

from benchmarks.index_tables import curves_section

SETTINGS = {
    "k": 10, "source": "clusters", "vectors": 5000, "dim": 32, "clusters": 50, "noise": 1.0,
    "queries": 9, "seed": 0,
}  # fmt: skip


def index(rates: dict[float, float], memory: float, build_s: float) -> dict[str, Any]:
    curve = [{"setting": "", "recall": r, "queries_per_s": rate} for r, rate in rates.items()]
    sizes = {"grown_mb": memory, "disk_bytes_per_vector": 1.0, "peak_mb": 1.0}
    return {**sizes, "build_s": build_s, "curve": curve}


def verdicts(measured: dict[str, Any]) -> list[str]:
    lines = curves_section({"settings": SETTINGS, "rounds": [measured]})
    return [line for line in lines if line.startswith("- ")]


def test_the_smallest_of_ours_that_are_as_fast_is_judged_against_the_fastest_peer() -> None:
    found = verdicts(
        {
            "lookalike ivf": index({0.96: 900, 0.99: 100}, 50, 4),
            "lookalike exact": index({1.0: 600}, 40, 1),
            "lookalike ivf-pq": index({0.96: 100}, 10, 9),
            "FAISS ivf": index({0.96: 500, 0.99: 300}, 100, 2),
            "hnswlib": index({0.96: 400}, 100, 8),
            "chroma": index({0.96: 1}, 1, 16),
        }
    )
    assert found == [
        "- at 0.95, lookalike exact: queries a second, times FAISS ivf's: 1.2, n = 1; "
        "goal at least 1: reached.",
        "- at 0.95, lookalike exact: memory, times FAISS ivf's: 0.4, n = 1; "
        "goal at most 0.6: reached.",
        "- at 0.95, lookalike exact: seconds to build, times hnswlib's: 0.125, n = 1; "
        "goal at most 1: reached.",
        "- at 0.99, lookalike exact: queries a second, times FAISS ivf's: 2, n = 1; "
        "goal at least 1: reached.",
        "- at 0.99, lookalike exact: memory, times FAISS ivf's: 0.4, n = 1; "
        "goal at most 0.6: reached.",
        "- at 0.99, lookalike exact: seconds to build, times hnswlib's: 0.125, n = 1; "
        "goal at most 1: reached.",
    ]


def test_the_fastest_of_ours_is_judged_where_none_is_as_fast() -> None:
    found = verdicts(
        {
            "lookalike ivf": index({0.99: 200}, 90, 4),
            "lookalike pq": index({0.99: 100}, 10, 4),
            "voyager": index({0.99: 400}, 100, 2),
        }
    )
    assert "lookalike ivf: queries a second, times voyager's: 0.5, n = 1;" in found[0]
    assert "times voyager's: 0.9, n = 1; goal at most 0.6: **missed**." in found[1]


def test_nothing_is_judged_before_both_sides_are_measured() -> None:
    assert verdicts({"lookalike ivf": index({0.99: 200}, 90, 4)}) == []
    assert verdicts({"hnswlib": index({0.99: 200}, 90, 4)}) == []
    assert (
        verdicts({"lookalike ivf": index({0.99: 9}, 1, 1), "hnswlib": index({0.5: 9}, 1, 1)}) == []
    )


def test_who_was_measured_in_fewer_rounds_has_no_range() -> None:
    def measured(*names: str, rate: float) -> dict[str, Any]:
        return {name: index({0.99: rate}, 10, 1) for name in names}

    rounds = [
        measured("lookalike ivf", "chroma", rate=50) | measured("hnswlib", rate=100),
        measured("hnswlib", rate=200),
        measured("hnswlib", rate=300),
    ]
    lines = curves_section({"settings": SETTINGS, "rounds": rounds})
    assert any("| hnswlib | 200 (100 to 300) |" in line for line in lines)
    assert any("| chroma | 50 |" in line for line in lines)
    assert "times hnswlib's: 0.5, n = 1; goal at least 1: **missed**" in lines[-4]
