"""An index with everything behind it, and refusals where it no longer fits together."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.collection import Collection
from cluster.context import Context
from cluster.embed_job import EmbedConfig, embed
from cluster.index_job import IndexJobConfig, index_embeddings
from cluster.scan_job import ScanConfig, scan
from index.artifact import ArtifactError, MissingArtifactError
from index.embeddings import EmbeddingStore


def test_a_picture_of_the_corpus_finds_itself_first(library: Any) -> None:
    collection = Collection.open(library.workspace, library.index)
    row = collection.picture(7)
    hits = collection.search_picture(Path(row.uri).read_bytes(), 3)
    assert hits.ids[0, 0] == 7
    others = collection.search_ids([7], 3)
    assert 7 not in others.ids[0]
    np.testing.assert_array_equal(collection.ids(), np.arange(30))


def test_pictures_asked_for_together_are_each_other_s_results(library: Any) -> None:
    collection = Collection.open(library.workspace, library.index)
    ids = collection.ids()
    together = collection.search_ids(ids, 4)
    for row, picture in enumerate(ids.tolist()):
        alone = collection.searcher.search(
            collection.vectors(ids[row : row + 1]), 4, exclude_ids=[picture]
        )
        assert together.ids[row].tolist() == alone.ids[0].tolist()
        np.testing.assert_array_equal(together.scores[row], alone.scores[0])
    assert (together.num_searched, together.flags) == (29, frozenset())
    everything = collection.search_ids([3, 3, 17], 30)
    assert (everything.ids.shape, everything.flags) == ((3, 29), frozenset({"short"}))
    assert set(everything.ids[0].tolist()) == set(ids.tolist()) - {3}
    with pytest.raises(ValueError, match="k is 0; ask for at least 1 result"):
        collection.search_ids([3], 0)


def test_a_filter_on_a_column_of_times_takes_days_times_and_offsets(listed: Any) -> None:
    collection = Collection.open(listed.workspace, listed.index)
    assert str(collection.catalog.table.schema.field("taken").type) == "timestamp[us, tz=UTC]"
    for where, expected in (
        ("taken > '2026-01-08'", [8, 9]),
        ("taken >= '2026-01-09 00:00' or taken = '2026-01-01T00:00:00Z'", [0, 8, 9]),
        ("taken in ('2026-01-03', '2026-01-04T01:00:00+01:00')", [2, 3]),
    ):
        assert collection.select(where).ids.tolist() == expected, where


def test_a_corpus_made_anew_under_the_same_name_is_refused(library: Any) -> None:
    shutil.rmtree(library.folder("corpora", "digits").local_path())
    next(library.pictures.rglob("*.png")).unlink()
    library.rescan()
    collection = Collection.open(library.workspace, library.index)
    with pytest.raises(
        ArtifactError, match=r"made anew since index 'digits-tiny' was built.*embed"
    ):
        collection.picture(7)


def test_embeddings_of_another_corpus_do_not_lend_their_thumbnails(
    library: Any, make_encoder: Any, make_vectors: Any
) -> None:
    collection = Collection.open(library.workspace, library.index)
    shutil.rmtree(library.folder("corpora", "digits").local_path())
    library.rescan()
    make_vectors(library.workspace, make_encoder(library.workspace))
    with pytest.raises(ArtifactError, match="made anew"):
        collection.thumbnail(7)


@pytest.mark.usefixtures("shards_here")
def test_thumbnails_stay_though_the_set_is_embedded_anew_again_and_again(
    context: Context, pictures: Any, make_encoder: Any
) -> None:
    folder = pictures(6, size=16, formats=("png",))
    late = sorted(folder.rglob("*.png"))[4:]
    for path in late:
        path.rename(path.with_suffix(".later"))
    make_encoder(context.workspace)

    def embedded() -> None:
        scan(ScanConfig(source=str(folder), corpus="mine"), context)
        embed(EmbedConfig(corpus="mine", encoder="tiny"), context)

    embedded()
    index_embeddings(IndexJobConfig(corpus="mine", encoder="tiny"), context)
    collection = Collection.open(context.workspace, "mine-tiny")
    collection.prepare()
    thumbnails = [EmbeddingStore.thumbnail(collection.embeddings, i) for i in range(4)]
    collection = Collection.open(context.workspace, "mine-tiny")
    collection.prepare()
    for path in late:
        path.with_suffix(".later").rename(path)
        embedded()
    assert [collection.thumbnail(i) for i in range(4)] == thumbnails


def test_a_missing_index_says_how_to_make_one(library: Any) -> None:
    with pytest.raises(MissingArtifactError, match=r"Existing: digits-tiny.*lookalike index"):
        Collection.open(library.workspace, "nothing")
