"""Reports for a person: what each verb prints without ``--json``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.evaluate_table import figure_tables

__all__ = ["show"]


FLAGS = {
    "changed_since_index": "files in brackets are not those that were indexed. Embed and index "
    "again to search what is there now.",
    "limited": "more pictures reach that score than can be ranked; those shown are the nearest.",
    "short": "no more pictures than these may be results.",
}


def show(verb: str, report: dict[str, Any], console: Console) -> None:
    """Print a verb's report; file names are shown as they are, never read as markup."""
    SHOWN.get(verb, _show_fields)(report, console)


def _show_fields(report: dict[str, Any], console: Console) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(overflow="fold")  # a file's name is of no use when it is cut
    for name, value in report.items():
        if value is not None:
            table.add_row(name.replace("_", " "), Text(_words(value)))
    console.print(table)


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list):
        between = "\n" if value and isinstance(value[0], dict) else ", "
        return between.join(map(_words, value)) or "none"
    return (
        f"{value:.4g}"
        if isinstance(value, float)
        else f"{value:,}"
        if type(value) is int
        else str(value)
    )


def _show_search(report: dict[str, Any], console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for title, justify in (
        ("rank", "right"),
        ("score", "right"),
        ("id", "right"),
        ("file", "left"),
    ):
        table.add_column(title, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for hit in report["hits"]:
        file = Text(hit["file"])
        if hit.get("copies", 1) > 1:
            file.append(f"  (+{hit['copies'] - 1} near-duplicates)", style="dim")
        if hit["status"] != "ok":
            file.append(f"  ({hit['status']})", style="yellow")
        table.add_row(str(hit["rank"]), f"{hit['score']:.3f}", str(hit["id"]), file)
    console.print(table)
    notes = f"{len(report['hits'])} pictures in {report['took_ms']:.0f} ms, {report['version']}"
    console.print(Text(notes, style="dim"))
    if report["reaching"] is not None:
        console.print(Text(f"{report['reaching']:,} pictures reach that score", style="dim"))
    console.print(Text(report["guarantee"], style="dim"), soft_wrap=True)
    for flag in report["flags"]:
        console.print(Text(f"{flag}: {FLAGS[flag]}", style="yellow"), soft_wrap=True)


def _show_index(report: dict[str, Any], console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("candidate", "p50 ms", "p95 ms", "bytes a vector", "build s", ""):
        table.add_column(title, justify="left" if title in ("candidate", "") else "right")
    for one in report["candidates"]:
        timing = one["latency_ms"]
        table.add_row(
            Text(one["factory"]),
            *(f"{timing[key]:.3g}" if timing else "" for key in ("p50", "p95")),
            f"{one['service_bytes_per_vector']:g}",
            f"{one['build_s']:.3g}",
            "chosen" if one["chosen"] else "exact search only" if one["exact_search"] else "",
        )
    console.print(table)
    for one in report["left_out"]:
        console.print(Text(f"{one['kind']} was left out: {one['why']}."), soft_wrap=True)
    console.print(Text(f"{report['recipe']['factory']}: {report['recipe']['why']}"), soft_wrap=True)
    _show_changed(report, console)


def _show_changed(report: dict[str, Any], console: Console) -> None:
    recall = report["recall"]
    layers = f", {report['delta_rows']:,} of them in the delta" if report["delta_rows"] else ""
    if report["dead_rows"]:
        layers += f"; dead and passed over: {report['dead_rows']:,}"
    lines = [
        f"index {report['index']} {report['version']}, {report['action']}: {report['why']}",
        f"{report['rows']:,} vectors{layers}",
        f"{recall['text']}. The queries are {recall['population']}.",
        f"card: {report['card']}",
    ]
    if report["removed"]:
        lines.insert(2, f"{report['removed']:,} stay out, since they were removed by hand")
    if report["relations"]:
        lines.append(f"neighbours, near-duplicates, map: {report['relations']}")
    if report["advice"]:
        lines.append(report["advice"])
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _show_remove(report: dict[str, Any], console: Console) -> None:
    _show_changed(report, console)
    if not report["unknown"]:
        return
    named = ", ".join(map(str, report["unknown_ids"]))
    more = ", ..." if report["unknown"] > len(report["unknown_ids"]) else ""
    what = "were not removed from it" if report["restored"] else "are not in the index"
    line = f"{report['unknown']:,} of {report['asked_for']:,} {what}: {named}{more}"
    console.print(Text(line, style="yellow"), soft_wrap=True)


def _show_versions(report: dict[str, Any], console: Console) -> None:
    lines = [_version_line(one) for one in report["versions"]]
    if report["in_service"] is None:
        lines.append("No version is in service: CURRENT is missing or damaged.")
    if report["removed"]:
        lines.append(f"deleted: {', '.join(report['removed'])}")
    for line in (*lines, f"checked: {report['checked']}"):
        console.print(Text(line), soft_wrap=True)


def _version_line(one: dict[str, Any]) -> str:
    start = f"{one['name']} in service" if one["in_service"] else one["name"]
    if one["damage"]:
        return f"{start}, cannot be used: {one['damage']}"
    recall = one["recall"]
    shared = f" ({one['shared_bytes']:,} shared)" if one["shared_bytes"] else ""
    interval = f"{recall['value']:.3f} ({recall['low']:.3f} to {recall['high']:.3f})"
    return (
        f"{start}: {one['rows']:,} vectors, {one['recipe']}, recall@{recall['k']} {interval}, "
        f"{one['bytes']:,} bytes{shared}, encoder {one['encoder']}, built {one['created_at']}"
    )


def _show_evaluate(report: dict[str, Any], console: Console) -> None:
    for table in figure_tables(report, console.width):
        console.print(table)
        console.print()
    for note in report["notes"]:
        console.print(Text(f"- {note}"))
    console.print(Text(f"report: {report['path']}/evaluation.json\nplot: {report['plot']}"))


def _show_verify(report: dict[str, Any], console: Console) -> None:
    table = Table(title=f"relative difference of weights after {report['steps']} steps", box=None)
    last = report["workers"][-1]
    table.add_column("")
    for number in report["workers"]:
        table.add_column(f"{number} workers", justify="right")
    table.add_column(f"{last} again", justify="right")
    for method, found in report["differences"].items():
        table.add_row(method, *(f"{value:.1e}" if value else "0" for value in found.values()))
    console.print(table)
    limit = f"{report['tolerance']:g}"
    verdict = (
        f"exact: all below {limit}, and the repeated run the same to the bit"
        if report["ok"]
        else f"NOT exact: {limit} was exceeded, or the repeated run differs. Compare versions of "
        "torch, and the processors, of the nodes."
    )
    console.print(Text(verdict, style="green" if report["ok"] else "bold red"))


def _show_doctor(report: dict[str, Any], console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("check", "result", "what was found"):
        table.add_column(title, overflow="fold")
    for check in report["checks"]:
        style = {"ok": "green", "warn": "yellow", "fail": "bold red"}[check["level"]]
        table.add_row(check["name"], Text(check["level"], style=style), Text(check["detail"]))
    console.print(table)


def _show_demo(report: dict[str, Any], console: Console) -> None:
    table = Table(title="what was built", box=None, pad_edge=False)
    for title in ("step", "result", "where", "time"):
        table.add_column(title, overflow="fold")
    for step in report["steps"]:
        took = f"{step['seconds']:.1f} s"
        table.add_row(step["step"], Text(step["result"]), Text(step["path"]), took)
    console.print(table)
    console.print()
    _show_evaluate(report["evaluation"], console)
    console.print()
    console.print(Text(f"index: {report['index_recall']}"))
    console.print(Text(report["attribution"], style="dim"))


SHOWN: dict[str, Callable[[dict[str, Any], Console], None]] = {
    "compact": _show_changed,
    "demo": _show_demo,
    "doctor": _show_doctor,
    "evaluate": _show_evaluate,
    "index": _show_index,
    "remove": _show_remove,
    "search": _show_search,
    "verify": _show_verify,
    "versions": _show_versions,
}
