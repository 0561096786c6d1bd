"""Maps: PCA by hand, the same for the same seed, and UMAP where it is installed."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from index.artifact import MissingArtifactError
from index.build import build_index
from index.choose import IndexConfig
from index.folder import Folder
from index.projection import MapConfig, build_map, open_map
from index.search import Searcher


@pytest.fixture
def searcher(make_store: Any, clustered: Any, tmp_path: Any) -> Searcher:
    build_index(make_store(clustered(500, 10)[0]), Folder.at(tmp_path / "ix"), IndexConfig())
    return Searcher.open(tmp_path / "ix")


def test_pca_places_pictures_as_an_svd_by_hand(searcher: Searcher) -> None:
    with pytest.raises(MissingArtifactError, match="no map yet"):
        open_map(searcher)
    door = build_map(searcher, MapConfig(method="pca"))
    assert door is not None
    table = open_map(searcher)
    vectors = searcher.vectors_of(searcher.ids).astype(np.float64)
    centred = vectors - vectors.mean(axis=0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    places = np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1)
    expected = centred @ axes[:2].T
    for axis in range(2):
        turned = np.sign(places[:, axis] @ expected[:, axis])
        np.testing.assert_allclose(places[:, axis], turned * expected[:, axis], atol=1e-3)
    shares = singular**2 / (singular**2).sum()
    np.testing.assert_allclose(door["explained"], shares[:2], atol=1e-3)
    np.testing.assert_array_equal(table["id"].to_numpy(), searcher.ids)


def test_the_same_map_is_found_again_and_another_takes_its_place(searcher: Searcher) -> None:
    first = build_map(searcher, MapConfig(method="pca"))
    assert build_map(searcher, MapConfig(method="pca")) == first
    other = build_map(searcher, MapConfig(method="pca", seed=1))
    assert other is not None
    assert first is not None
    assert other["id"] != first["id"]
    assert list(other["files"]) == list(first["files"]), "PCA knows no seed: the same bytes"
    assert build_map(searcher, MapConfig(method="none")) is None


def test_one_and_two_dimensions_are_placed_too(make_store: Any, tmp_path: Any) -> None:
    for dim in (1, 2):
        vectors = np.random.default_rng(0).normal(size=(20, dim)) + 0.1
        folder = Folder.at(tmp_path / f"ix{dim}")
        build_index(make_store(vectors, name=f"e{dim}"), folder, IndexConfig())
        searcher = Searcher.open(folder)
        build_map(searcher, MapConfig(method="pca"))
        assert np.isfinite(open_map(searcher)["y"].to_numpy()).all()


def test_umap_learns_on_a_sample_and_places_every_picture(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in that takes the first two components, and keeps what it was given."""
    calls: dict[str, Any] = {}

    class Umap:
        def __init__(self, **settings: Any) -> None:
            calls["settings"] = settings

        def fit(self, sample: np.ndarray) -> None:
            calls["sample"] = sample

        def transform(self, vectors: np.ndarray) -> np.ndarray:
            return vectors[:, :2]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Umap, __spec__=object()))
    door = build_map(searcher, MapConfig(sample=64, seed=3))
    assert door is not None
    assert (door["method"], door["sampled"], door["rows"]) == ("umap", 64, 500)
    assert calls["settings"]["random_state"] == 3
    assert len(calls["sample"]) == 64
    np.testing.assert_allclose(
        open_map(searcher)["x"].to_numpy(), searcher.vectors_of(searcher.ids)[:, 0]
    )


def test_the_real_umap_gives_the_same_map_for_the_same_seed(searcher: Searcher) -> None:
    pytest.importorskip("umap", reason="the extra map is large, and not among the dev tools")
    places = []
    for _ in range(2):
        build_map(searcher, MapConfig(method="umap", sample=200))
        table = open_map(searcher)
        places.append(np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1))
        build_map(searcher, MapConfig(method="pca"))
    np.testing.assert_array_equal(places[0], places[1])
    assert np.ptp(places[0], axis=0).min() > 1


def test_what_cannot_be_laid_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="allowed is auto, pca, umap or none"):
        MapConfig(method="tsne")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 16"):
        MapConfig(sample=3)
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ValueError, match=r"lookalike\[map\]"):
        MapConfig(method="umap")
