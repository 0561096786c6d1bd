"""How figures are written on the page: numbers, tables, goals, and where they were measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.rounds import Spread

__all__ = ["judged", "measured_on", "not_measured", "number", "ranged", "table"]


def number(value: float) -> str:
    """Three digits that count, thousands apart.

    >>> number(12345.6), number(0.98765), number(3.0)
    ('12,346', '0.988', '3')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ranged(found: Spread) -> str:
    """The median, and the range of the rounds if there were several."""
    if found.n == 1:
        return number(found.median)
    return f"{number(found.median)} ({number(found.low)} to {number(found.high)})"


def judged(what: str, found: Spread, goal: float, *, at_least: bool = True) -> str:
    """A goal, and whether the median reached it; and whether every round did.

    >>> judged("x", Spread(median=3.0, low=2.0, high=4.0, n=3), 3.5)
    '- x: 3 (2 to 4), n = 3; goal at least 3.5: **missed**.'
    >>> judged("x", Spread(median=3.0, low=2.0, high=4.0, n=3), 2.5)
    '- x: 3 (2 to 4), n = 3; goal at least 2.5: reached by the median, not by every round.'
    """
    worst = found.low if at_least else found.high
    sign = 1 if at_least else -1
    reached, always = (sign * (value - goal) >= 0 for value in (found.median, worst))
    word, verdict = "least" if at_least else "most", "reached" if reached else "**missed**"
    if reached and not always:
        verdict += " by the median, not by every round"
    return f"- {what}: {ranged(found)}, n = {found.n}; goal at {word} {goal:,g}: {verdict}."


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def measured_on(result: Mapping[str, Any]) -> str:
    """Where, when and how, in one paragraph."""
    machine = result["machine"]
    gpu = f"{machine['gpu']}; " if "gpu" in machine else ""
    earlier: dict[str, list[str]] = {}
    for name, date in result.get("earlier", {}).items():
        earlier.setdefault(date, []).append(name)
    others = "; ".join(f"{', '.join(earlier[date])}: {date}" for date in sorted(earlier))
    return (
        f"{gpu}{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, load "
        f"{machine['load']}; torch {machine['torch']}, Python {machine['python']}; "
        f"{result['date']} UTC{f' ({others})' if others else ''}; `{result['command']}`.\n"
    )


def not_measured(command: str) -> str:
    """Said in place of a table."""
    return f"Not measured yet: `{command}`.\n"
