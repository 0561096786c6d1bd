"""The search that docs/formats.md shows finds in every kind of index what its card says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.choose import IndexConfig
from index.folder import Folder
from index.measure import exact_top_k, recall_at_k
from index.removal import remove_pictures
from index.search import Searcher
from index.update import Instructions, update_index
from index.vectors import unit

ROWS, CAME, DIM = 4000, 100, 16


@pytest.fixture(scope="module")
def documented() -> Any:
    """The function of the page, as it stands there."""
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    (snippet,) = (part for part in page.split("```") if "def search(" in part)
    shown: dict[str, Any] = {}
    exec(snippet.removeprefix("python"), shown)
    return shown["search"]


KINDS = {
    "exact": IndexConfig(kind="exact", num_queries=200),
    "tuned lists": IndexConfig(kind="ivf", num_queries=200),
    "short codes": IndexConfig(kind="ivf-pq", num_queries=200),
    "short codes in one list": IndexConfig(kind="pq", num_queries=200),
    "a graph": IndexConfig(kind="hnsw", num_queries=200),
    "lists in parts": IndexConfig(kind="ivf", num_queries=200, part_rows=1500),
    "short codes in parts": IndexConfig(kind="ivf-pq", num_queries=200, part_rows=1500),
}


def recall_of(documented: Any, searcher: Searcher) -> float:
    """Share of the true k nearest others, by brute force over the vectors that are alive."""
    k = searcher.door["recall"]["k"]
    asked = np.random.default_rng(1).choice(searcher.ids, 400, replace=False)
    queries = unit(searcher.vectors_of(asked))
    _, truth = exact_top_k(queries, k, searcher.iter_batches(), exclude_Q=asked)
    scores, ids = documented(searcher.folder.local_path(), queries, k + 1)
    assert ids.shape == (400, k + 1)
    assert np.isin(ids, searcher.ids).all()
    assert all(len(set(row)) == k + 1 for row in ids.tolist())
    own = ids == asked[:, None]
    assert own.any(axis=1).mean() > 0.99
    own[~own.any(axis=1), -1] = True
    stored = searcher.vectors_of(ids.ravel()).reshape(*ids.shape, -1)
    np.testing.assert_allclose(scores, np.einsum("qkd,qd->qk", stored, queries), atol=1e-3)
    return float(recall_at_k(scores[~own].reshape(400, k), truth).mean())


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_the_documented_search_has_the_recall_of_the_card(
    documented: Any, config: IndexConfig, make_store: Any, tmp_path: Path, clustered: Any
) -> None:
    """As built, with dead rows, with a delta, and with both."""
    vectors = np.random.default_rng(0).permutation(clustered(ROWS + CAME, DIM)[0])
    for changes in ([], ["gone"], ["came"], ["came", "gone"]):
        name = "-".join(["ix", *changes])
        folder = Folder.at(tmp_path / name)
        update_index(make_store(vectors[:ROWS], name=f"{name}-1"), folder, config)
        if "came" in changes:
            store = make_store(vectors, name=f"{name}-2")
            update_index(store, folder, config, told=Instructions())
        if "gone" in changes:
            remove_pictures(folder, np.arange(0, 300, 3) * 3 + 5)
        searcher = Searcher.open(folder)
        card = searcher.door
        assert card["recipe"]["kind"] == config.kind
        assert (len(card["parts"]) > 1) == (config.part_rows < ROWS)
        assert (bool(card.get("dead")), bool(card.get("delta"))) == (
            "gone" in changes,
            "came" in changes,
        )
        assert recall_of(documented, searcher) >= card["recall"]["value"] - 0.01
