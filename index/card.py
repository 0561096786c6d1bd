"""What an index's card says: what was tried, what each costs, and why the winner won.

The door ``index.json`` has it for programs, ``card.md`` beside it for people.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss

from index.choose import IndexConfig
from index.contest import Contender, Outcome
from index.judge import Judgement
from index.latency import Latency

__all__ = ["PAGE", "card", "card_page", "measured", "write_page"]

PAGE = "card.md"
"""What the card says, for people."""


def card(
    outcome: Outcome, config: IndexConfig, *, dim: int, rows: int, population: str
) -> dict[str, Any]:
    """The contest as JSON values for the index's door.

    Args:
        outcome: of the contest.
        config: what was to be achieved.
        dim: of the vectors.
        rows: vectors in the index.
        population: what the queries are a sample of.
    """
    winner, judged = outcome.winner, outcome.judgement
    recipe = winner.recipe
    return {
        "recipe": {
            "factory": recipe.factory(dim),
            "kind": recipe.kind,
            "why": outcome.why,
        },
        "parameters": {
            "nlist": recipe.nlist,
            **settings_of(judged),
        },
        **measured(judged, config, population=population),
        "service_bytes_per_vector": round(winner.service_bytes / rows, 1),
        "tried": winner.tuned.tried,
        "candidates": [_candidate(one, outcome, dim=dim, rows=rows) for one in outcome.contenders],
        "left_out": [{"kind": one.kind, "why": one.why} for one in outcome.left_out],
    }


def settings_of(judged: Judgement) -> dict[str, Any]:
    """With which a version is searched, for its door's ``parameters``."""
    return {"nprobe": judged.nprobe, "refine": judged.refine, "together": True}


def measured(judged: Judgement, config: IndexConfig, *, population: str) -> dict[str, Any]:
    """Recall and latency as JSON values for a door.

    Args:
        judged: what the judging half says.
        config: what was to be achieved.
        population: what the queries are a sample of.
    """
    recall = judged.recall
    return {
        "recall": {
            "k": config.k,
            "value": recall.value,
            "low": recall.low,
            "high": recall.high,
            "num_queries": recall.n,
            "target": config.target_recall,
            "population": population,
            "looks": judged.looks,
            "usual": judged.usual,
            "text": f"recall@{config.k} {recall}, against exact search on held-out queries",
        },
        "latency_ms": {**_latency(judged.latency), "threads": 1, "simd": _simd_level()},
    }


def write_page(path: str, text: str) -> None:
    """Write a page of `card_page`."""
    Path(path).write_text(text, encoding="utf-8")


def _candidate(one: Contender, outcome: Outcome, *, dim: int, rows: int) -> dict[str, Any]:
    recall = one.tuned.recall
    return {
        "kind": one.recipe.kind,
        "factory": one.recipe.factory(dim),
        "chosen": one is outcome.winner,
        "nprobe": one.tuned.nprobe,
        "refine": one.tuned.refine,
        "exact_search": one.tuned.exact,
        "recall_choosing": {"value": recall.value, "low": recall.low, "high": recall.high},
        "latency_ms": _latency(one.tuned.latency),
        "build_s": round(one.build_s, 3),
        "service_bytes_per_vector": round(one.service_bytes / rows, 1),
        "parts": len(one.files),
    }


def _latency(latency: Latency | None) -> dict[str, float]:
    if latency is None:
        return {}
    return {
        "p50": latency.p50,
        "p95": latency.p95,
        "p99": latency.p99,
        "queries_per_s": latency.queries_per_s,
        "num_queries": latency.n,
    }


def _simd_level() -> str:
    return str(faiss.SIMDConfig.get_level_name())


def card_page(name: str, body: dict[str, Any]) -> str:
    """The card as Markdown.

    Args:
        name: of the index's version.
        body: the door's content.
    """
    recall = body["recall"]
    lines = [
        f"# Index {name}",
        "",
        f"{body['rows']} vectors of {body['dim']} dimensions, `{body['recipe']['factory']}`: "
        f"{body['recipe']['why']}.",
        "",
        f"- {recall['text']}; the target is {recall['target']}.",
        f"- The queries are {recall['population']}. {_looks(recall['looks'])}",
        f"- {body['service_bytes_per_vector']} bytes a vector in service, "
        f"{body['bytes_per_vector']} on disk.",
        *_too_slow(body),
        f"- Built in {body['build_s']} s, tuned and measured in {body['tune_s']} s.",
        *_changes(body),
        "",
        "| candidate | recall by the choosing half | p50 ms | p95 ms | p99 ms | queries/s "
        "| bytes a vector | build s | |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(one) for one in body["candidates"]),
        "",
        *(f"- {one['kind']} was left out: {one['why']}." for one in body["left_out"]),
    ]
    timing = body["latency_ms"]
    lines += [
        "",
        "Times are of single queries on one thread "
        f"({timing['simd']}); bytes are of the index files, and of re-ranking's stored vectors "
        "only the rows that are read come into memory.",
    ]
    if body["config"]["memory"]:
        lines[-1] += (
            " Those were read from the file, as the limit of memory asks; a server maps the file, "
            "which is faster."
        )
    return "\n".join(lines) + "\n"


def _too_slow(body: dict[str, Any]) -> list[str]:
    """What was asked for and is not kept: a change may take more effort than the build did."""
    limit_ms, p95 = body["config"].get("latency_ms"), body["latency_ms"].get("p95", 0.0)
    if limit_ms is None or p95 <= limit_ms:
        return []
    return [f"- 95 % of single queries take up to {p95:g} ms, and {limit_ms:g} ms may be."]


def _changes(body: dict[str, Any]) -> list[str]:
    """What became of it since it was trained."""
    if "trained" not in body:
        return []
    delta, dead = (body.get(layer) for layer in ("delta", "dead"))
    drift, trained = body["drift"], body["trained"]
    lines = [
        f"- Lists and codes are those of {trained['version']}, trained for {trained['rows']} "
        f"vectors. Since then {delta['rows'] if delta else 0} vectors in the delta came, and "
        f"{dead['rows'] if dead else 0} are dead. Recall and times were measured on what is alive "
        "now; the candidates below, when it was built."
    ]
    if drift["remedy"]:
        lines.append(f"- Time to {drift['remedy']}: {drift['why']}.")
    return lines


def _row(one: dict[str, Any]) -> str:
    recall, timing = one["recall_choosing"], one["latency_ms"]
    times = [str(timing.get(key, "")) for key in ("p50", "p95", "p99", "queries_per_s")]
    effort = "exact search" if one["exact_search"] else f"{recall['value']:.4f}"
    setting = f"nprobe {one['nprobe']}, refine {one['refine']}"
    cells = [
        f"`{one['factory']}` ({setting})",
        effort if one["exact_search"] else f"{effort} ({recall['low']:.4f}-{recall['high']:.4f})",
        *times,
        str(one["service_bytes_per_vector"]),
        str(one["build_s"]),
        "chosen" if one["chosen"] else "",
    ]
    return "| " + " | ".join(cells) + " |"


def _looks(count: int) -> str:
    if count <= 1:
        return "They took no part in the choice."
    return (
        f"They took no part in the choice; {count} settings were shown to them, each at its own "
        "share of the interval's 5 %."
    )
