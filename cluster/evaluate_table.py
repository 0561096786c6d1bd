"""The tables of an evaluation at the terminal: figures, and what they gain on the baselines."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from rich.table import Table
from rich.text import Text

__all__ = ["figure_tables"]

HEADER_WIDTH = 12
"""Longer names of sources go on in the next line."""
COLUMN_WIDTH = HEADER_WIDTH + 2
CAPTION = "± half the 95 % interval. Bold: the best, and what is not told from it."
GAINS = "points above the better of random init and raw pixels, trial by trial"
GAINS_CAPTION = "± half its 95 % interval; dim where that reaches 0, red below."


def figure_tables(report: dict[str, Any], width: int) -> Iterator[Table]:
    """Figures of an evaluation in per cent, then gains, in as many tables as the width asks for.

    Args:
        report: what `evaluate` returned.
        width: of the terminal in characters. Baselines stand in every table of figures, where
            that leaves room for two others.
    """
    baselines = [source["name"] for source in report["sources"] if _is_baseline(source)]
    others = [source["name"] for source in report["sources"] if not _is_baseline(source)]
    counts = f"{report['num_queries']:,} queries and {report['num_pictures']:,} pictures, in %"
    room = (width - _label_width(report)) // COLUMN_WIDTH
    if room - len(baselines) >= 2:
        pieces = [[*piece, *baselines] for piece in _pieces(others, room - len(baselines))]
    else:
        pieces = list(_pieces([*others, *baselines], room))
    for columns in pieces:
        yield _table(report, columns, _figure, title=counts, caption=CAPTION)
    for columns in _pieces(others, room):
        yield _table(report, columns, _gain, title=GAINS, caption=GAINS_CAPTION)


def _is_baseline(source: dict[str, Any]) -> bool:
    return source["origin"] in ("random init", "raw pixels")


def _label_width(report: dict[str, Any]) -> int:
    figures = [name for group in report["groups"].values() for name in group]
    return max(len(name) + 2 for name in [*figures, *report["groups"]])


def _pieces(names: list[str], size: int) -> Iterator[list[str]]:
    size = max(1, size)
    for start in range(0, len(names), size):
        yield names[start : start + size]


def _table(
    report: dict[str, Any],
    columns: list[str],
    cell: Callable[[dict[str, Any]], Text],
    *,
    title: str,
    caption: str,
) -> Table:
    table = Table(title=title, caption=caption, box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in columns:
        table.add_column(Text(_folded(name)), justify="right", no_wrap=True)
    for group, figures in report["groups"].items():
        table.add_row(Text(group, style="italic"))
        for figure in figures:
            found = [report["figures"][name][figure] for name in columns]
            table.add_row(f"  {figure}", *map(cell, found))
    return table


def _folded(name: str) -> str:
    return "\n".join(textwrap.wrap(name, HEADER_WIDTH, break_on_hyphens=True))


def _figure(cell: dict[str, Any]) -> Text:
    behind = cell.get("to_best")
    leads = behind is None or behind["high"] >= 0
    return _with_half(cell, f"{100 * cell['value']:.1f}", "bold" if leads else "")


def _gain(cell: dict[str, Any]) -> Text:
    gain = cell["to_baseline"]
    style = "dim" if gain["low"] <= 0 <= gain["high"] else "red" if gain["high"] < 0 else ""
    return _with_half(gain, f"{100 * gain['value']:+.1f}", style)


def _with_half(cell: dict[str, Any], value: str, style: str) -> Text:
    return Text(f"{value} ±{50 * (cell['high'] - cell['low']):.1f}", style=style)
