"""Tables of the index's benchmarks, and whether their goals are reached.

Speed and memory are judged against the fastest peer: of our kinds that have its speed the one
with the least memory, or else the fastest.
"""

from __future__ import annotations

from typing import Any

from benchmarks.rounds import ratio, spread, values
from benchmarks.tables import judged, number, ranged, table

__all__ = ["curves_section", "filters_section"]

Result = dict[str, Any]
Rounds = list[dict[str, Any]]

OWN = "lookalike "
GRAPHS = ("hnswlib", "usearch", "voyager", "chroma", "FAISS hnsw")
MEMORY_SHARE = 0.6
JUDGED = (0.95, 0.99)


def filters_section(result: Result) -> list[str]:
    """Recall and time by what is selected."""
    settings, rounds = result["settings"], result["rounds"]
    cases = {
        f"{kind} {share:g}": f"{kind.replace('_', ' ')}, {100 * share:g} %"
        for kind in settings["kinds"]
        for share in settings["shares"]
    }

    def cells(case: str) -> list[str]:
        found = []
        for name in rounds[0]:
            recall, taken = (
                spread(values(rounds, name, f"{case} {what}")).median for what in ("recall", "ms")
            )
            found.append(f"{recall:.3f}, {number(taken)} ms")
        return found

    rows = [["everything, no filter", *cells("unfiltered")]]
    rows += [[title, *cells(case)] for case, title in cases.items()]
    own = [one["lookalike"] for one in rounds]
    lowest = spread([min(found[f"{case} recall"] for case in cases) for found in own])
    slowest = spread(
        [max(found[f"{case} ms"] for case in cases) / found["unfiltered ms"] for found in own]
    )
    return [
        f"recall@{settings['k']} and median time of a query in one thread, over "
        f"{settings['pictures']:,} x {settings['dim']} vectors in {settings['clusters']} clusters, "
        f"{settings['nlist']} lists, {settings['nprobe']} visited without a filter; "
        f"{settings['queries']} queries, seed {settings['seed']}. FAISS visits as many lists and "
        "skips what its IDSelectorBitmap does not select; its bitmap and lookalike's selection are "
        "made before the clock runs, as a server keeps them. *anew*: the filter is read and run "
        "with every query, as the databases do it, whose columns have their indexes and which "
        "search with the least effort that finds 0.95 without a filter. Selected are pictures "
        "drawn at random, of some clusters alone, or of one side of space.\n",
        table(["selected", *rounds[0]], rows),
        judged("lowest recall", lowest, 0.95),
        judged("slowest median, times unfiltered", slowest, 2.0, at_least=False),
        "",
    ]  # fmt: skip


def curves_section(result: Result) -> list[str]:
    """Speed at several recalls, memory and building, of each index."""
    settings, rounds = result["settings"], result["rounds"]
    rows = []
    for name in rounds[0]:
        cells = [spread(_speeds(rounds, name, recall)) for recall in RECALLS]
        size = spread(values(rounds, name, "disk_bytes_per_vector"))
        rows.append(
            [
                name,
                *(ranged(speeds) if speeds.low else "not reached" for speeds in cells),
                ranged(spread(values(rounds, name, "grown_mb"))),
                number(size.median),
                ranged(spread(values(rounds, name, "build_s"))),
                ranged(spread(values(rounds, name, "peak_mb"))),
            ]
        )
    return [
        f"Single queries a second on one core, at recall@{settings['k']} of at least so much: "
        f"{settings['vectors']:,} unit vectors of {_corpus(settings)}, seed {settings['seed']}. "
        "FAISS as its factory makes it, "
        "others with their own defaults for building. Memory is what a fresh process grew by, "
        "mapped pages too; bytes on disk a vector hold everything. Building uses all cores; "
        "its peak has the pages of the vectors' file in it, and lookalike's seconds the search for "
        "settings and their check. What has no range was measured in one round.\n",
        table(
            ["", *(f"at {r}" for r in RECALLS), "memory MB", "bytes on disk", "build s", "peak MB"],
            rows,
        ),
        *(line for recall in JUDGED for line in _verdicts(rounds, recall)),
        "",
    ]


RECALLS = (0.9, 0.95, 0.99)


def _corpus(settings: dict[str, Any]) -> str:
    queries = f"{settings['queries']:,}"
    if settings["source"] == "encoder":
        return (
            "128 dimensions that our own encoder (`simclr_small`, minutes of training) makes of "
            "Fashion-MNIST's training pictures, each seen several times: moved, mirrored, in other "
            f"light; {queries} test pictures as queries"
        )
    return (
        f"{settings['dim']} dimensions in {settings['clusters']:,} clusters (noise "
        f"{settings['noise']:g}), {queries} new queries from the same"
    )


def _verdicts(rounds: Rounds, recall: float) -> list[str]:
    """Goals at one recall."""
    speeds = {name: spread(_speeds(rounds, name, recall)).median for name in rounds[0]}
    peers = [name for name in speeds if not name.startswith(OWN)]
    best = max(peers, key=speeds.__getitem__, default="")
    graphs = [name for name in peers if name.startswith(GRAPHS)]
    if not speeds.get(best) or not graphs or len(peers) == len(speeds):
        return []
    ours = _judged_kind(rounds, speeds, best)
    paired = [one for one in rounds if ours in one and best in one]
    pairs = zip(_speeds(paired, ours, recall), _speeds(paired, best, recall), strict=True)
    faster = [mine / theirs for mine, theirs in pairs if theirs]
    quickest = min(graphs, key=lambda name: spread(values(rounds, name, "build_s")).median)
    at = f"at {recall:g}, {ours}"
    return [
        judged(f"{at}: queries a second, times {best}'s", spread(faster), 1.0),
        judged(
            f"{at}: memory, times {best}'s",
            ratio(rounds, ours, best, "grown_mb"),
            MEMORY_SHARE,
            at_least=False,
        ),
        judged(
            f"{at}: seconds to build, times {quickest}'s",
            ratio(rounds, ours, quickest, "build_s"),
            1.0,
            at_least=False,
        ),
    ]


def _judged_kind(rounds: Rounds, speeds: dict[str, float], best: str) -> str:
    memory = {name: spread(values(rounds, name, "grown_mb")).median for name in speeds}
    own = [name for name in speeds if name.startswith(OWN)]
    as_fast = [name for name in own if speeds[name] >= speeds[best]]
    if as_fast:
        return min(as_fast, key=memory.__getitem__)
    return max(own, key=speeds.__getitem__)


def _speeds(rounds: Rounds, name: str, recall: float) -> list[float]:
    """As `_speed_at`, of every round that a contestant was in."""
    return [_speed_at(one[name], recall) for one in rounds if name in one]


def _speed_at(measured: dict[str, Any], recall: float) -> float:
    """Queries a second of the fastest setting that reaches a recall; 0 where none does."""
    good = [point for point in measured["curve"] if point["recall"] >= recall]
    return max((float(point["queries_per_s"]) for point in good), default=0.0)
