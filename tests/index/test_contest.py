from types import SimpleNamespace

import numpy as np
import pytest

from index import choose as choose_module
from index.artifact import publish
from index.build import build_index
from index.choose import IndexConfig
from index.contest import Contest, choose
from index.folder import Folder
from index.measure import exact_top_k
from index.search import Searcher
from index.vectors import unit
from index.versions import set_current

KINDS = ["exact", "ivf", "pq", "ivf-pq", "hnsw"]


def contender(kind, p50, size, *, p95=None, exact=False):
    """What `choose` looks at."""
    return SimpleNamespace(
        recipe=SimpleNamespace(kind=kind, why="asked for"),
        tuned=SimpleNamespace(exact=exact),
        p50=p50,
        p95=p95 or 2 * p50,
        service_bytes=size,
    )


def decide(*contenders, **settings):
    config = IndexConfig(**settings)
    winner, why = choose(contenders, config, config.budget(16))
    return (winner and winner.recipe.kind), why


def test_the_fastest_wins_and_of_those_that_tie_the_smallest_and_of_those_the_simplest():
    exact, ivf = contender("exact", 9.0, 100), contender("ivf", 1.0, 104)
    assert decide(exact, ivf)[0] == "ivf"
    assert decide(exact, ivf, contender("ivf-pq", 1.19, 30))[0] == "ivf-pq"
    assert decide(exact, ivf, contender("ivf-pq", 1.21, 30))[0] == "ivf"
    assert decide(exact, ivf, contender("hnsw", 0.9, 96))[0] == "ivf", "8 % larger is a tie"
    _, why = decide(exact, ivf, contender("hnsw", 0.9, 96))
    assert why == (
        "the simplest of 2 that tie as the fastest of 3 that reach a recall@10 of 0.95 within "
        "the limits"
    )


def test_limits_of_memory_and_latency_rule_out():
    exact, ivf = contender("exact", 9.0, 100_000_000), contender("ivf", 1.0, 104_000_000)
    small = contender("ivf-pq", 3.0, 30_000_000)
    assert decide(exact, ivf, small, memory="50MB")[0] == "ivf-pq"
    slow_tail = contender("ivf", 1.0, 104_000_000, p95=20.0)
    assert decide(exact, slow_tail, small)[0] == "ivf"
    assert decide(exact, slow_tail, small, latency_ms=6.1)[0] == "ivf-pq"
    kind, why = decide(exact, small, latency_ms=0.5)
    assert kind == "ivf-pq"
    assert why == (
        "the fastest of 2 that reach a recall@10 of 0.95, none of which keeps 95 % of queries "
        "within 0.5 ms"
    )


def test_where_nobody_reaches_the_target_search_is_exact():
    late = contender("ivf", 1.0, 10, exact=True)
    kind, why = decide(contender("exact", 9.0, 10), late)
    assert kind == "exact"
    kind, why = decide(late)
    assert (kind, why) == (
        None,
        "no candidate reaches a recall@10 of 0.95 within the limits, so search is exact",
    )
    assert decide() == (None, why)


@pytest.fixture(scope="module")
def rows(clustered):
    return unit(clustered(3000, 16, classes=60)[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part_rows", [999, 10_000])
def test_every_kind_reaches_its_target_and_is_exact_on_demand(
    make_store, tmp_path, rows, kind, part_rows
):
    config = IndexConfig(kind=kind, num_queries=500, part_rows=part_rows)
    door = build_index(make_store(rows), Folder.at(tmp_path / "ix"), config)
    searcher = Searcher.open(tmp_path / "ix")
    assert door["recipe"]["kind"] == kind
    assert len(door["parts"]) == -(-3000 // part_rows)
    assert door["recall"]["low"] >= 0.95
    asked = unit(searcher.vectors_of(searcher.ids[::15]))
    ids, truth = exact_top_k(asked, 10, searcher.iter_batches())
    found = searcher.search(asked, 10)
    assert np.mean(found.scores >= np.minimum(truth[:, -1:], 1) - 1e-5) > 0.95
    exact = searcher.search(asked, 10, exact=True)
    np.testing.assert_allclose(exact.scores, np.clip(truth, -1, 1), atol=1e-5)
    excluded = searcher.search(asked[:5], 10, exclude_ids=ids[:5].ravel())
    assert not np.isin(excluded.ids, ids[:5]).any()
    assert excluded.ids.shape == (5, 10)
    # More than any number of candidates gives: all rows come, each once.
    everything = searcher.search(asked[:2], 3000)
    assert all(len(set(row.tolist())) == 3000 for row in everything.ids)


def test_the_card_says_what_was_tried_and_why_the_winner_won(
    make_store, tmp_path, rows, monkeypatch
):
    monkeypatch.setattr(choose_module, "EXACT_BELOW", 1000)
    config = IndexConfig(num_queries=400)
    door = build_index(make_store(rows), Folder.at(tmp_path / "ix"), config)
    assert [one["kind"] for one in door["candidates"]] == ["exact", "ivf", "pq", "ivf-pq"]
    assert sum(one["chosen"] for one in door["candidates"]) == 1
    for one in door["candidates"]:
        assert one["latency_ms"]["p50"] <= one["latency_ms"]["p95"] <= one["latency_ms"]["p99"]
        assert one["latency_ms"]["queries_per_s"] > 0
        assert one["service_bytes_per_vector"] > 0
    page = (tmp_path / "ix" / "v000001" / "card.md").read_text()
    for one in door["candidates"]:
        assert f"`{one['factory']}`" in page
    assert door["recipe"]["why"] in page
    assert door["recall"]["text"] in page
    kept = {path.name for path in (tmp_path / "ix" / "v000001").iterdir()}
    assert kept == {"index.json", *door["files"]}, "what lost is deleted"


def test_an_odd_dimension_still_gets_an_index(make_store, tmp_path, clustered, monkeypatch):
    monkeypatch.setattr(choose_module, "EXACT_BELOW", 100)
    store = make_store(clustered(500, 9)[0])
    door = build_index(store, Folder.at(tmp_path / "ix"), IndexConfig(num_queries=40))
    assert {one["kind"] for one in door["left_out"]} == {"pq", "ivf-pq"}
    page = (tmp_path / "ix" / "v000001" / "card.md").read_text()
    assert "pq was left out: its codes take two dimensions each, and 9 is odd" in page


def test_without_a_candidate_the_index_is_exact_and_says_so(
    make_store, tmp_path, rows, monkeypatch
):
    monkeypatch.setattr(choose_module, "EXACT_BELOW", 1000)
    monkeypatch.setattr(choose_module, "LARGE_FROM", 2000)
    config = IndexConfig(num_queries=100, target_recall=1.0)
    door = build_index(make_store(rows), Folder.at(tmp_path / "ix"), config)
    assert door["recipe"]["kind"] == "exact"
    assert door["recipe"]["why"].startswith("no candidate reaches a recall@10 of 1.0")
    assert door["recall"]["low"] == 1.0
    assert [one["kind"] for one in door["candidates"]] == ["ivf", "ivf-pq", "exact"]


def test_a_graph_is_tried_only_where_it_may_take_as_long(make_store, tmp_path, rows, monkeypatch):
    monkeypatch.setattr(choose_module, "EXACT_BELOW", 1000)
    store = make_store(rows)
    tried = {}
    for seconds in (1e-6, 600.0):
        config = IndexConfig(num_queries=60, hnsw_build_s=seconds)
        door = build_index(store, Folder.at(tmp_path / f"ix{seconds}"), config)
        tried[seconds] = door
    assert "building it would take about" in tried[1e-6]["left_out"][0]["why"]
    assert "hnsw" in [one["kind"] for one in tried[600.0]["candidates"]]


def test_a_version_of_before_the_contest_still_opens_and_answers(make_store, tmp_path, rows):
    folder = Folder.at(tmp_path / "ix")
    door = build_index(make_store(rows), folder, IndexConfig(kind="ivf", num_queries=100))
    new = ("queries", "candidates", "left_out", "service_bytes_per_vector", "files", "kind")
    body = {
        key: value
        for key, value in door.items()
        if key not in (*new, "door_sha256", "version", "reused", "schema_version", "created_at")
    }
    body["parameters"] = {key: door["parameters"][key] for key in ("nlist", "nprobe")}
    files = [name for name in door["files"] if name.endswith(("faiss", "vectors.arrow"))]
    before = Searcher.open(folder).search(rows[:20], 5)
    old = publish(folder / "v000001", "index", body, files)
    set_current(folder, "v000001", old)
    after = Searcher.open(folder).search(rows[:20], 5)
    np.testing.assert_array_equal(before.ids, after.ids)


def test_codes_of_copies_can_be_trained(make_store, tmp_path, clustered):
    rows = np.ones((1000, 8), np.float32)
    rows[:15] = clustered(15, 8)[0]
    config = IndexConfig(kind="pq", num_queries=100)
    door = build_index(make_store(rows), Folder.at(tmp_path / "ix"), config)
    assert door["recall"]["low"] >= 0.95


def test_a_version_goes_into_service_whose_first_folders_are_the_hard_ones(make_store, tmp_path):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 32))
    easy = centres[np.sort(rng.integers(0, 40, 3200))] + 0.3 * rng.normal(size=(3200, 32))
    rows = np.concatenate([rng.normal(size=(800, 32)), easy]).astype(np.float32)
    config = IndexConfig(kind="ivf", target_recall=0.8)
    door = build_index(make_store(rows), Folder.at(tmp_path / "ix"), config)
    assert door["recall"]["value"] < 0.95
    assert Searcher.open(tmp_path / "ix").version == "v000001"


@pytest.fixture
def contest_of(monkeypatch):
    """A contest whose contenders take so many milliseconds when tuned, and when judged."""

    def run(times, **settings):
        looks = []

        def judged(candidate, tuned, judging, target, *, looked=0):
            looks.append((candidate, looked))
            latency = SimpleNamespace(p95=times[candidate][1])
            return SimpleNamespace(latency=latency, looks=looked + 2)

        monkeypatch.setattr("index.contest.judge", judged)
        contenders = []
        for kind, (tuned_ms, _) in times.items():
            one = contender(kind, tuned_ms / 2, 100, p95=tuned_ms)
            one.candidate = kind
            contenders.append(one)
        config = IndexConfig(**settings)
        contest = Contest(
            folder=None,
            vectors=None,
            queries=SimpleNamespace(half=lambda **_: None),
            config=config,
            budget=config.budget(16),
            fill=None,
        )
        winner, judgement, why = contest._judged(contenders)
        return winner.recipe.kind, judgement.latency.p95, why, looks

    return run


def test_what_is_too_slow_once_it_was_judged_gives_way_to_the_next(contest_of):
    times = {"exact": (9.0, 9.0), "ivf": (2.0, 6.0), "ivf-pq": (4.0, 4.5)}
    assert contest_of(times)[:2] == ("ivf", 6.0), "nobody asked for a limit"
    kind, p95, why, looks = contest_of(times, latency_ms=5.0)
    assert (kind, p95) == ("ivf-pq", 4.5)
    assert looks == [("ivf", 0), ("ivf-pq", 2)], "both were shown to the same queries"
    assert why.endswith("within the limits")


def test_where_all_are_too_slow_the_first_is_kept_and_the_card_says_so(contest_of):
    times = {"exact": (9.0, 9.0), "ivf": (2.0, 6.0), "ivf-pq": (4.0, 7.0)}
    kind, p95, why, looks = contest_of(times, latency_ms=5.0)
    assert (kind, p95, len(looks)) == ("ivf", 6.0, 2)
    assert why.endswith("; judged, 95 % of its queries take 6 ms, 5 may be")
    kind, _, why, looks = contest_of({"ivf": (2.0, 6.0)}, kind="ivf", latency_ms=5.0)
    assert (kind, why, len(looks)) == (
        "ivf", "asked for; judged, 95 % of its queries take 6 ms, 5 may be", 1
    )  # fmt: skip
