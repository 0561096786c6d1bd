"""A graph and a map that go on from another version's, beside a graph from scratch."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest

from index import carry
from index import graph as graph_module
from index.build import build_index
from index.carry import carry_graph, carry_map, find_earlier
from index.choose import IndexConfig
from index.embeddings import EmbeddingStore
from index.folder import Folder
from index.graph import GraphConfig, NeighbourGraph, build_graph
from index.projection import MapConfig, build_map, open_map
from index.removal import remove_pictures
from index.search import Searcher
from index.update import Instructions, update_index

K = GraphConfig(k=6)
CONFIG = IndexConfig(num_queries=40)


class Corpus:
    """An index of some rows that come, go and are replaced."""

    def __init__(self, root: Any, publish: Any, vectors: np.ndarray) -> None:
        self.folder = Folder.at(root / "ix")
        self.root, self.publish = root, publish
        self.vectors = dict(enumerate(vectors))
        self.sets = 0
        build_index(self.store(), self.folder, CONFIG)

    def store(self) -> EmbeddingStore:
        self.sets += 1
        ids = np.array(sorted(self.vectors))
        rows = np.stack([self.vectors[number] for number in ids.tolist()])
        found: EmbeddingStore = self.publish(self.folder_of(self.sets), rows, ids=ids)
        return found

    def folder_of(self, number: int) -> Folder:
        return Folder.at(self.root / f"set{number}")

    def update(self, **told: Any) -> str:
        return update_index(self.store(), self.folder, CONFIG, told=Instructions(**told)).action

    def open(self) -> Searcher:
        return Searcher.open(self.folder.local_path())


@pytest.fixture
def corpus(publish_store: Any, clustered: Any, tmp_path: Any) -> Corpus:
    return Corpus(tmp_path, publish_store, clustered(400, 12)[0])


@pytest.fixture(autouse=True)
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some pieces and blocks."""
    monkeypatch.setattr(graph_module, "PIECE_ROWS", 128)
    monkeypatch.setattr(graph_module, "SEARCH_ROWS", 50)
    monkeypatch.setattr(carry, "COMPARED_ROWS", 70)
    monkeypatch.setattr(carry, "BLOCK_SCORES", 100)


def columns(searcher: Searcher) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = zip(*NeighbourGraph.open(searcher).iter_pieces(), strict=True)
    return tuple(np.concatenate(column) for column in found)  # type: ignore[return-value]


def test_a_carried_graph_is_the_graph_made_from_scratch(corpus: Corpus) -> None:
    """After pictures came, one was replaced by a copy of another, some were removed by hand."""
    build_graph(corpus.open(), K)
    before = columns(corpus.open())
    rng = np.random.default_rng(2)
    for number in range(400, 420):
        corpus.vectors[number] = corpus.vectors[number - 395] + 0.05 * rng.normal(size=12)
    corpus.vectors[30] = corpus.vectors[200]
    del corpus.vectors[17]
    assert corpus.update() == "changed"
    searcher = corpus.open()
    earlier = find_earlier(searcher, K)
    assert earlier is not None
    assert earlier.lost.tolist() == [17, 30]
    assert earlier.came.tolist() == [30, *range(400, 420)]
    assert carry_graph(searcher, K, earlier)["carried_from"] == "v000001"
    stayed = ~np.isin(before[0], earlier.lost)
    robbed = np.isin(before[1][stayed], earlier.lost).any(axis=1)
    assert earlier.num_searched == len(earlier.came) + robbed.sum(), "each once, if it changed"
    remove_pictures(corpus.folder, np.array([50, 51, 402]))
    searcher = corpus.open()
    earlier = find_earlier(searcher, K)
    assert earlier is not None
    assert (earlier.lost.tolist(), len(earlier.came)) == ([50, 51, 402], 0)
    door = carry_graph(searcher, K, earlier)
    carried = columns(searcher)
    assert (door["carried_from"], door["rows"], door["k"]) == ("v000002", len(searcher), 6)
    assert door["recall"]["value"] == 1.0
    searcher.folder.remove("graph/graph.json")
    for name in door["pieces"]:
        searcher.folder.remove(f"graph/{name}")
    assert build_graph(searcher, K)["carried_from"] is None
    ids, neighbours, scores = columns(searcher)
    np.testing.assert_array_equal(carried[0], ids)
    np.testing.assert_allclose(carried[2], scores, atol=1e-6)
    same = carried[1] == neighbours
    assert same.mean() > 0.99, "but for equal scores, whose order is chance"
    assert not (carried[1] == ids[:, None]).any()
    assert np.isin(carried[1], searcher.ids).all()


def test_versions_of_one_base_are_compared_by_their_deltas(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_graph(corpus.open(), K)
    corpus.vectors[30], corpus.vectors[400] = corpus.vectors[200], corpus.vectors[7] * 1.0
    del corpus.vectors[50]
    assert corpus.update() == "changed"
    searcher, asked = corpus.open(), []
    assert searcher.delta_ids.tolist() == [30, 400]
    gather = Searcher.vectors_of

    def counted(self: Searcher, ids: Any) -> Any:
        asked.extend(np.asarray(ids).tolist())
        return gather(self, ids)

    monkeypatch.setattr(Searcher, "vectors_of", counted)
    earlier = find_earlier(searcher, K)
    assert earlier is not None
    assert (earlier.lost.tolist(), earlier.came.tolist()) == ([30, 50], [30, 400])
    assert sorted({*asked}) == [30, 400], "the other 398 have the vectors of the same file"


def test_nothing_is_carried_where_too_much_differs(corpus: Corpus) -> None:
    assert find_earlier(corpus.open(), K) is None, "no other version"
    build_graph(corpus.open(), K)
    for number in range(150):
        del corpus.vectors[number]
    corpus.update()
    searcher = corpus.open()
    assert find_earlier(searcher, K) is None
    assert carry_graph(searcher, K, None)["carried_from"] is None


def test_a_graph_of_other_neighbours_or_a_damaged_one_is_not_gone_on_from(corpus: Corpus) -> None:
    first = corpus.open()
    door = build_graph(first, K)
    remove_pictures(corpus.folder, np.array([3]))
    searcher = corpus.open()
    assert find_earlier(searcher, GraphConfig(k=7)) is None
    assert find_earlier(searcher, K) is not None
    path = first.folder.local_path(f"graph/{door['pieces'][0]}")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert find_earlier(searcher, K) is None


@pytest.mark.parametrize("kind", ["delta", "vectors", "part"])
def test_a_version_whose_files_cannot_be_read_is_not_gone_on_from(
    corpus: Corpus, clustered: Any, kind: str
) -> None:
    corpus.vectors[1000] = clustered(1, 12, seed=9)[0][0]
    corpus.update()
    second = corpus.open()
    build_graph(second, K)
    remove_pictures(corpus.folder, np.array([3]))
    searcher = corpus.open()
    assert find_earlier(searcher, K) is not None
    name = next(name for name in sorted(second.door["files"]) if name.startswith(kind))
    path = second.folder.local_path(name)
    noise = np.random.default_rng(0).bytes(path.stat().st_size)
    path.unlink()  # of the other version it stays whole
    path.write_bytes(noise)
    assert find_earlier(searcher, K) is None


@pytest.mark.parametrize("method", ["pca", "umap"])
def test_a_carried_map_keeps_places_and_puts_what_came_amid_its_neighbours(
    corpus: Corpus, method: Literal["pca", "umap"]
) -> None:
    if method == "umap":
        pytest.importorskip("umap", reason="the extra map is large, and not among the dev tools")
    first = corpus.open()
    build_graph(first, K)
    build_map(first, MapConfig(method=method))
    before = open_map(first)
    corpus.vectors[400] = corpus.vectors[5]
    del corpus.vectors[17]
    corpus.update()
    searcher = corpus.open()
    earlier = find_earlier(searcher, K)
    assert earlier is not None
    carry_graph(searcher, K, earlier)
    graph = NeighbourGraph.open(searcher)
    door = carry_map(searcher, graph, earlier)
    assert door["carried"] == {"from": "v000001", "placed": 1}
    after = open_map(searcher)
    assert after["id"].to_pylist() == searcher.ids.tolist()
    places = {row["id"]: (row["x"], row["y"]) for row in before.to_pylist()}
    found = {row["id"]: (row["x"], row["y"]) for row in after.to_pylist()}
    assert all(found[number] == places[number] for number in searcher.ids.tolist()[:-1])
    ids, neighbours, scores = columns(searcher)
    row = int(np.flatnonzero(ids == 400)[0])
    expected = np.average(
        [places[n] for n in neighbours[row].tolist()], axis=0, weights=scores[row]
    )
    np.testing.assert_allclose(found[400], expected, atol=1e-5)
