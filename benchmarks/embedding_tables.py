"""The page's sections on embedding: speed beside loops and idioms, scaled decoding, growth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.rounds import ratio, spread, values
from benchmarks.tables import judged, measured_on, not_measured, number, ranged, table

__all__ = ["embedding_section", "growth_section", "scaled_decoding_section"]

Result = dict[str, Any]
OURS, IDIOM = "lookalike", "ray.data.read_images"
STEADY, WHOLE = "pictures_per_s", "whole_per_s"
HOW = {STEADY: "steady", WHOLE: "whole"}
COLUMNS = (
    (OURS, STEADY),
    ("bare loop", STEADY),
    ("DataLoader", STEADY),
    (OURS, WHOLE),
    (IDIOM, WHOLE),
)


def embedding_section(results: Path) -> list[str]:
    """A table over all cases that were measured, one file each."""
    found = [json.loads(path.read_text("utf-8")) for path in sorted(results.glob("embedding/*"))]
    if not found:
        return [not_measured("python -m benchmarks.embedding")]
    found.sort(key=lambda result: result["settings"]["size"])
    rows, lines = [], []
    for result in found:
        settings, rounds = result["settings"], result["rounds"]
        title = settings["title"]
        cells = [ranged(spread(values(rounds, name, key))) for name, key in COLUMNS]
        rows.append([f"{title} ({settings['pictures']:,})", *cells])
        of_bare = ratio(rounds, OURS, "bare loop", STEADY)
        of_loader = ratio(rounds, OURS, "DataLoader", STEADY)
        of_idiom = ratio(rounds, OURS, IDIOM, WHOLE)
        lines += [
            judged(f"{title}, of the bare loop", of_bare, 0.9),
            judged(f"{title}, times read_images", of_idiom, settings["goal"]),
            f"- {title}, times the DataLoader: {ranged(of_loader)}, n = {of_loader.n}.",
        ]
    seeds = {result["settings"]["seed"] for result in found}
    return [
        "Pictures a second with all cores; the narrow ResNet of the `-small` recipes with fresh "
        "weights. `embed` to its end, with thumbnails, hashes and commit records; a bare loop of "
        "the same decoding in threads and the same encoder in turn, which writes nothing; a "
        "DataLoader with a process a core, torchvision's transforms and one file at the end, as "
        "clip-retrieval works; Ray Data's reader, which decodes and resizes, in front of an actor "
        "with the encoder, on the same Ray. Steady: once a quarter is done. Whole: from the start "
        "of actors to the end, Ray being up; the reader decodes all it has room for while an actor "
        "loads its model, so that its steady state is never seen. Fashion-MNIST; enlarged parts of "
        "two photographs, with noise. "
        f"Seed {', '.join(map(str, sorted(seeds)))}.\n",
        table(["", *(f"{name}, {HOW[key]}" for name, key in COLUMNS)], rows),
        *lines,
        "",
        *(measured_on(result) for result in found),
    ]


def scaled_decoding_section(result: Result) -> list[str]:
    """What it saves, and what it moves."""
    settings = result["settings"]
    rows = [
        [
            f"{_size(case['photograph'])}, {network['network']}",
            _size(network["decoded"]),
            f"{number(network['scaled_ms'])} ms, in full {number(case['full_ms'])} ms",
            number(network["pixels"]),
            f"{network['moved_median']:.1e} (at most {network['moved_most']:.1e})",
            f"{network['nearest_other_median']:.1e}",
            f"{100 * network['finds_itself']:.0f} %",
        ]
        for case in result["cases"]
        for network in case["networks"]
    ]
    return [
        f"{settings['photographs']} photographs a size, decoded as `embed` does it for an encoder "
        "of an automatic recipe, and in full: CPU time of decoding; mean difference of the "
        "squares, of 255; 1 - cosine of the two vectors, and of the nearest other photograph; how "
        "often the vector of one way finds its own picture among those of the other. Networks "
        f"with fresh weights, seed {settings['seed']}.\n",
        table(
            [
                "photograph, network",
                "decoded to",
                "decoding",
                "pixels",
                "moved",
                "nearest other",
                "finds itself",
            ],
            rows,
        ),
    ]


def _size(edges: list[int]) -> str:
    return " x ".join(map(str, edges))


def growth_section(result: Result) -> list[str]:
    """Time and memory by size."""
    cases, rows = result["cases"], []
    for step in cases[0]["rounds"][0]:
        cells = []
        for case in cases:
            rounds = case["rounds"]
            seconds = spread(values(rounds, step, "seconds"))
            memory = spread(values(rounds, step, "peak_mb"))
            cell = f"{number(seconds.median)} s, {number(memory.median)} MB"
            if "actor_peak_mb" in rounds[0][step]:
                actor = spread(values(rounds, step, "actor_peak_mb"))
                cell += f", actor {number(actor.median)} MB"
            cells.append(cell)
        rows.append([step, *cells])
    settings = result["settings"]
    return [
        f"PNGs of {settings['edge']} px, seen at {settings['size']} px by the narrow ResNet, seed "
        f"{settings['seed']}, n = {len(cases[0]['rounds'])}: seconds, and peak memory of the "
        "process above what it had before the step; an embedding actor's is all that it holds, "
        "torch and Ray included. `index` holds a contest of indexes; its larger ones have larger "
        "candidates.\n",
        table(["", *(f"{case['pictures']:,} pictures" for case in cases)], rows),
    ]
