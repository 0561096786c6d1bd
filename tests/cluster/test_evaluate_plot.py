"""The plot of an evaluation: well-formed, whole, and safe with any name."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

from cluster.evaluate_plot import plot_svg

NAMESPACE = "{http://www.w3.org/2000/svg}"


def report(num_encoders: int = 2, name: str = "enc") -> dict[str, Any]:
    names = [f"{name}{number}" for number in range(num_encoders)]
    sources = [{"name": each, "origin": "trained", "layer": "backbone"} for each in names]
    sources += [
        {"name": "random init", "origin": "random init", "layer": "backbone"},
        {"name": "raw pixels", "origin": "raw pixels", "layer": None},
    ]
    cell = {"value": 0.5, "low": 0.25, "high": 1.0, "n": 9}
    figures = {"recall@1": cell, "mAP": {**cell, "value": 1.0, "low": 0.9}}
    return {
        "corpus": "mine",
        "encoders": [{"name": each} for each in names],
        "sources": sources,
        "num_pictures": 1234,
        "num_queries": 99,
        "groups": {"find the original": ["recall@1"], "search by class": ["mAP"]},
        "figures": {source["name"]: figures for source in sources},
    }


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter(f"{NAMESPACE}text")]


def test_every_figure_of_every_source_is_a_point_with_its_interval() -> None:
    svg = plot_svg(report())
    shown = texts(svg)
    assert "enc0, enc1 on mine" in shown
    assert {"recall@1", "mAP", "find the original", "per cent", "0", "100"} <= set(shown)
    assert shown.count("50.0") == shown.count("100.0") == 4
    lines = re.findall(r'<line class="mark s\d" x1="([\d.]+)" x2="([\d.]+)"', svg)
    assert len(lines) == 8
    assert set(lines) == {("341.5", "796.0"), ("735.4", "796.0")}  # 25 to 100, and 90 to 100
    assert "1,234 pictures, 99 queries" in svg


def test_marks_stay_inside_however_many_encoders_there_are() -> None:
    for number in (1, 12):
        root = ElementTree.fromstring(plot_svg(report(number)))
        width, height = float(root.get("width", 0)), float(root.get("height", 0))
        for node in root.iter():
            for name, limit in (("x", width), ("cx", width), ("y", height), ("cy", height)):
                assert 0 <= float(node.get(name, 0)) <= limit
        classes = {node.get("class") for node in root.iter() if "mark" in node.get("class", "")}
        assert classes == {f"mark s{place}" for place in range(number + 2)}


def test_colours_are_given_for_light_and_for_dark_and_paper_is_white() -> None:
    svg = plot_svg(report())
    light, dark = svg.split("@media screen and (prefers-color-scheme: dark)")
    assert ".page { fill: #ffffff; }" in light
    for place in range(4):
        assert light.count(f".s{place} {{") == dark.count(f".s{place} {{") == 1


def test_names_are_text_and_long_ones_end_in_dots() -> None:
    shown = texts(plot_svg(report(name="<b>&")))
    assert "<b>&0 (trained)" in shown
    shown = texts(plot_svg(report(name="x" * 120)))
    assert max(map(len, shown)) <= 92
    assert any(text.endswith("…") for text in shown)
