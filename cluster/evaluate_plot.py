"""The plot of an evaluation: every figure of every source with its interval, as one SVG.

Written by hand, since it is rows of points on one axis, and a plotting library would be the
project's largest dependency for it. It follows the reader's light or dark scheme and prints on
white.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from xml.sax.saxutils import escape

__all__ = ["plot_svg"]

WIDTH, LEFT, RIGHT = 860, 190, 64
LINE, BAND_GAP, GROUP_HEIGHT, LEGEND_LINE, AXIS_HEIGHT = 15, 13, 34, 18, 46
TITLE_HEIGHT = 62
MAX_NAME = 92
"""Longer names end in dots."""
COLOURS = (
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#f0884a"),
    ("#007a5a", "#3fc79a"),
    ("#a6357a", "#e59ac6"),
    ("#8a6d00", "#e6c534"),
    ("#5b4bb5", "#a99cf5"),
)
"""On white and on dark; told apart by colour-blind readers too (after Okabe and Ito 2008)."""
GRAYS = (("#5f6368", "#a8adb4"), ("#8d9298", "#7d828a"))
SHAPES = ("circle", "square", "diamond", "triangle")

STYLE = """
svg { color-scheme: light dark; }
.page { fill: #ffffff; } .rule { stroke: #d9dcdf; } .frame { stroke: #8d9298; }
text { font: 12px system-ui, "DejaVu Sans", sans-serif; fill: #1d1f23; }
.title { font-size: 16px; font-weight: 600; } .group { font-weight: 600; }
.soft { fill: #575b61; } .value { font-size: 10.5px; fill: #575b61; }
"""
DARK = """
.page { fill: #17191d; } .rule { stroke: #33373d; } .frame { stroke: #7d828a; }
text { fill: #e9eaec; } .soft, .value { fill: #a8adb4; }
"""


def plot_svg(report: dict[str, Any]) -> str:
    """The report of `evaluate` as the text of an SVG file."""
    sources = report["sources"]
    bands = [name for figures in report["groups"].values() for name in figures]
    band_height = LINE * len(sources) + BAND_GAP
    top = TITLE_HEIGHT + LEGEND_LINE * len(sources) + 12
    bottom = top + GROUP_HEIGHT * len(report["groups"]) + band_height * len(bands)
    height = bottom + AXIS_HEIGHT
    names = ", ".join(encoder["name"] for encoder in report["encoders"])
    title = _short(f"{names} on {report['corpus']}")
    counts = f"{report['num_pictures']:,} pictures, {report['num_queries']:,} queries"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="title desc">',
        f'<title id="title">{escape(title)}</title>',
        f'<desc id="desc">Figures in per cent, {counts}; lines are 95 % intervals.</desc>',
        f"<style>{_style(sources)}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}"/>',
        f'<text class="title" x="16" y="28">{escape(title)}</text>',
        f'<text class="soft" x="16" y="48">{counts}; lines are 95 % intervals; the table says '
        "what sets sources apart</text>",
        *_legend(sources),
        *_axis(top, bottom),
        *_bands(report, top, band_height),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _style(sources: list[dict[str, Any]]) -> str:
    """Colours of the sources, encoders bright and baselines gray, on light and on dark."""
    light: list[str] = []
    dark: list[str] = []
    coloured = gray = 0
    for place, source in enumerate(sources):
        if source["layer"] is None or source["origin"] == "random init":
            pair = GRAYS[gray % len(GRAYS)]
            gray += 1
        else:
            pair = COLOURS[coloured % len(COLOURS)]
            coloured += 1
        for rules, colour in zip((light, dark), pair, strict=True):
            rules.append(f".s{place} {{ stroke: {colour}; fill: {colour}; }}")
    on_dark = f"@media screen and (prefers-color-scheme: dark) {{{DARK}{' '.join(dark)}\n}}"
    return f"{STYLE}{' '.join(light)}\n.mark {{ stroke-width: 1.6; }}\n{on_dark}\n"


def _legend(sources: list[dict[str, Any]]) -> Iterator[str]:
    for place, source in enumerate(sources):
        y = TITLE_HEIGHT + LEGEND_LINE * place + 8
        yield _mark(place, 24, y)
        name = source["name"]
        shown = _short(name if source["origin"] in name else f"{name} ({source['origin']})")
        yield f'<text x="38" y="{y + 4}">{escape(shown)}</text>'


def _axis(top: int, bottom: int) -> Iterator[str]:
    for percent in range(0, 101, 20):
        x = _x(percent / 100)
        kind = "frame" if percent == 0 else "rule"
        yield f'<line class="{kind}" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>'
        yield f'<text class="soft" x="{x}" y="{bottom + 16}" text-anchor="middle">{percent}</text>'
    yield f'<line class="frame" x1="{_x(0)}" x2="{_x(1)}" y1="{bottom}" y2="{bottom}"/>'
    middle = _x(0.5)
    yield f'<text x="{middle}" y="{bottom + 36}" text-anchor="middle">per cent</text>'


def _bands(report: dict[str, Any], top: int, band_height: int) -> Iterator[str]:
    y: float = top
    for group, figures in report["groups"].items():
        yield f'<text class="group" x="16" y="{y + 20}">{escape(group)}</text>'
        y += GROUP_HEIGHT
        for figure in figures:
            middle = y + (band_height - BAND_GAP) / 2
            yield (
                f'<text x="{LEFT - 14}" y="{middle + 4}" text-anchor="end">{escape(figure)}</text>'
            )
            for place, source in enumerate(report["sources"]):
                cell = report["figures"][source["name"]][figure]
                yield from _point(place, cell, y + LINE * (place + 0.5))
            y += band_height


def _point(place: int, cell: dict[str, Any], y: float) -> Iterator[str]:
    """The interval as a line, the value as a mark on it and as a number beyond it."""
    low, high = _x(cell["low"]), _x(cell["high"])
    yield f'<line class="mark s{place}" x1="{low}" x2="{high}" y1="{y}" y2="{y}"/>'
    yield _mark(place, _x(cell["value"]), y)
    text = f"{100 * cell['value']:.1f}"
    yield f'<text class="value" x="{high + 9}" y="{y + 3.5}">{text}</text>'


def _mark(place: int, x: float, y: float) -> str:
    kind = f'class="mark s{place}"'
    shape = SHAPES[place % len(SHAPES)]
    if shape == "circle":
        return f'<circle {kind} cx="{x}" cy="{y}" r="4"/>'
    if shape == "square":
        return f'<rect {kind} x="{x - 3.5}" y="{y - 3.5}" width="7" height="7"/>'
    corners = {
        "diamond": ((0, -5), (5, 0), (0, 5), (-5, 0)),
        "triangle": ((0, -5), (4.8, 3.8), (-4.8, 3.8)),
    }[shape]
    points = " ".join(f"{round(x + dx, 1)},{round(y + dy, 1)}" for dx, dy in corners)
    return f'<polygon {kind} points="{points}"/>'


def _x(share: float) -> float:
    return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)


def _short(text: str) -> str:
    return text if len(text) <= MAX_NAME else text[: MAX_NAME - 1] + "…"
