import numpy as np
import pytest

from index.artifact import CorruptArtifactError
from index.build import build_index
from index.choose import IndexConfig
from index.folder import Folder
from index.lock import sole_writer
from index.measure import exact_top_k, recall_at_k
from index.search import Searcher
from index.vectors import unit

SMALL_IVF = IndexConfig(kind="ivf", num_queries=400)


def true_recall(searcher, num_queries=500, k=10):
    """Recall@k over random corpus vectors by brute force, each without itself."""
    rng = np.random.default_rng(99)
    ids = np.sort(rng.choice(searcher.ids, num_queries, replace=False))
    queries = unit(searcher.vectors_of(ids))
    _, truth = exact_top_k(queries, k, searcher.iter_batches(), exclude_Q=ids)
    scores = []
    for picture, query in zip(ids, queries, strict=True):
        hits = searcher.search(query[None], k, exclude_ids=[picture])
        assert picture not in hits.ids
        scores.append(hits.scores[0])
    return float(recall_at_k(np.stack(scores), np.minimum(truth, 1)).mean())


@pytest.mark.parametrize("target", [0.9, 0.98])
def test_recall_on_a_class_sorted_corpus_is_what_the_card_says(
    make_store, tmp_path, target, clustered
):
    vectors, _ = clustered(4000, 16)
    config = IndexConfig(kind="ivf", num_queries=1000, target_recall=target)
    door = build_index(make_store(vectors), Folder.at(tmp_path / "ix"), config)
    recall = door["recall"]
    assert target <= recall["low"] <= recall["value"] <= recall["high"]
    assert 1 <= door["parameters"]["nprobe"] < door["parameters"]["nlist"]
    searcher = Searcher.open(tmp_path / "ix")
    truth = true_recall(searcher)
    assert truth >= target
    assert recall["low"] - 0.01 <= truth <= recall["high"] + 0.01


def test_recall_on_a_heavily_duplicated_corpus_is_what_the_card_says(
    make_store, tmp_path, clustered
):
    distinct, _ = clustered(1500, 16, noise=1.0)
    rng = np.random.default_rng(0)
    copies = np.concatenate([np.arange(1500), np.repeat(rng.choice(1500, 50), 30)])
    vectors = distinct[np.sort(copies)]
    config = IndexConfig(kind="ivf", num_queries=700)
    door = build_index(make_store(vectors), Folder.at(tmp_path / "ix"), config)
    truth = true_recall(Searcher.open(tmp_path / "ix"))
    assert door["recall"]["low"] - 0.01 <= truth <= door["recall"]["high"] + 0.01
    assert truth >= 0.95


def test_the_order_of_the_corpus_hardly_changes_its_recall(make_store, tmp_path, clustered):
    vectors, _ = clustered(3000, 16)
    shuffled = np.random.default_rng(1).permutation(vectors)
    recalls = []
    for name, rows in (("sorted", vectors), ("shuffled", shuffled)):
        build_index(make_store(rows, name=name), Folder.at(tmp_path / f"ix-{name}"), SMALL_IVF)
        recalls.append(true_recall(Searcher.open(tmp_path / f"ix-{name}")))
    assert abs(recalls[0] - recalls[1]) < 0.03


def test_a_target_no_sample_can_prove_ends_in_exact_search(make_store, tmp_path, clustered):
    vectors, _ = clustered(1000, 8)
    config = IndexConfig(kind="ivf", num_queries=100, target_recall=1.0)
    door = build_index(make_store(vectors), Folder.at(tmp_path / "ix"), config)
    assert door["parameters"]["nprobe"] == door["parameters"]["nlist"]
    assert door["recall"]["low"] == door["recall"]["value"] == 1.0
    assert true_recall(Searcher.open(tmp_path / "ix"), 200) == 1.0


def test_parts_divide_the_corpus_and_answer_as_one(make_store, tmp_path, clustered):
    vectors, _ = clustered(1000, 8)
    store = make_store(vectors)
    config = IndexConfig(kind="ivf", num_queries=100, part_rows=300)
    door = build_index(store, Folder.at(tmp_path / "parts"), config)
    assert [part["rows"] for part in door["parts"]] == [300, 300, 300, 100]
    build_index(store, Folder.at(tmp_path / "one"), IndexConfig(kind="exact"))
    parts, one = Searcher.open(tmp_path / "parts"), Searcher.open(tmp_path / "one")
    a, b = parts.search(vectors[:20], 7, exact=True), one.search(vectors[:20], 7)
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(a.scores, b.scores)


def test_building_again_finds_the_version_and_another_setting_makes_a_new_one(
    make_store, tmp_path, clustered
):
    folder = Folder.at(tmp_path / "ix")
    store = make_store(clustered(300, 8)[0])
    first = build_index(store, folder, IndexConfig())
    stamp = (tmp_path / "ix" / "CURRENT").stat().st_mtime_ns
    again = build_index(store, folder, IndexConfig())
    assert (first["version"], first["reused"]) == ("v000001", False)
    assert (again["version"], again["reused"]) == ("v000001", True)
    assert (tmp_path / "ix" / "CURRENT").stat().st_mtime_ns == stamp
    other = build_index(store, folder, IndexConfig(k=5))
    assert (other["version"], other["reused"]) == ("v000002", False)
    back = build_index(store, folder, IndexConfig())
    assert (back["version"], back["reused"]) == ("v000001", True)
    assert Searcher.open(folder).version == "v000001"


def test_an_open_searcher_keeps_its_version(make_store, tmp_path, clustered):
    folder = Folder.at(tmp_path / "ix")
    build_index(make_store(clustered(300, 8)[0]), folder, IndexConfig())
    pinned = Searcher.open(folder)
    build_index(make_store(clustered(400, 8, seed=1)[0], name="more"), folder, IndexConfig())
    assert (len(pinned), pinned.version) == (300, "v000001")
    assert (len(Searcher.open(folder)), Searcher.open(folder).version) == (400, "v000002")


def test_the_same_build_gives_the_same_answers(make_store, tmp_path, clustered):
    vectors, _ = clustered(1500, 8)
    store = make_store(vectors)
    doors = [build_index(store, Folder.at(tmp_path / name), SMALL_IVF) for name in ("a", "b")]
    assert doors[0]["id"] == doors[1]["id"]
    assert doors[0]["parameters"] == doors[1]["parameters"]
    a, b = (Searcher.open(tmp_path / name).search(vectors[:50], 10) for name in ("a", "b"))
    np.testing.assert_array_equal(a.ids, b.ids)


def test_an_index_names_its_parents(make_store, tmp_path, clustered):
    store = make_store(clustered(50, 8)[0])
    door = build_index(store, Folder.at(tmp_path / "ix"), IndexConfig())
    assert door["parents"] == {**store.parents, "embeddings_id": store.id}


def test_a_set_without_vectors_is_refused(make_store, tmp_path):
    store = make_store(np.full((5, 4), np.nan, np.float32))
    with pytest.raises(ValueError, match="nothing to index"):
        build_index(store, Folder.at(tmp_path / "ix"), IndexConfig())


def test_one_picture_makes_an_index(make_store, tmp_path):
    build_index(make_store(np.ones((1, 4), np.float32)), Folder.at(tmp_path / "ix"), IndexConfig())
    hits = Searcher.open(tmp_path / "ix").search(np.ones((1, 4)), 3)
    assert hits.ids.tolist() == [[5]]
    assert hits.flags == {"short"}


def test_a_collapsed_encoder_still_gets_a_working_index(make_store, tmp_path):
    build_index(make_store(np.ones((500, 8), np.float32)), Folder.at(tmp_path / "ix"), SMALL_IVF)
    hits = Searcher.open(tmp_path / "ix").search(np.ones((1, 8)), 10)
    assert len(set(hits.ids[0].tolist())) == 10


def test_two_builds_at_once_are_refused(make_store, tmp_path, clustered):
    folder = Folder.at(tmp_path / "ix")
    store = make_store(clustered(50, 8)[0])
    with (
        sole_writer(folder, "building this index"),
        pytest.raises(ValueError, match="another process is building"),
    ):
        build_index(store, folder, IndexConfig())
    assert build_index(store, folder, IndexConfig())["version"] == "v000001"


def test_a_finished_version_that_was_not_put_in_service_is_taken_over(
    make_store, tmp_path, clustered
):
    folder = Folder.at(tmp_path / "ix")
    store = make_store(clustered(50, 8)[0])
    build_index(store, folder, IndexConfig())
    folder.remove("CURRENT")
    door = build_index(store, folder, IndexConfig())
    assert (door["version"], door["reused"]) == ("v000001", True)
    assert len(Searcher.open(folder)) == 50


def test_no_flipped_bit_of_current_serves_another_version(make_store, tmp_path, clustered):
    folder = Folder.at(tmp_path / "ix")
    store = make_store(clustered(30, 8)[0])
    for k in range(1, 4):
        build_index(store, folder, IndexConfig(k=k))
    whole = folder.read_bytes("CURRENT")
    for position in range(len(whole)):
        for bit in range(8):
            data = bytearray(whole)
            data[position] ^= 1 << bit
            (tmp_path / "ix" / "CURRENT").write_bytes(data)
            with pytest.raises(CorruptArtifactError):
                Searcher.open(folder, verify="sizes")


def test_a_moved_index_still_answers(make_store, tmp_path, clustered):
    vectors, _ = clustered(500, 8)
    build_index(make_store(vectors), Folder.at(tmp_path / "ix"), SMALL_IVF)
    before = Searcher.open(tmp_path / "ix").search(vectors[:5], 5)
    (tmp_path / "ix").rename(tmp_path / "elsewhere")
    after = Searcher.open(tmp_path / "elsewhere").search(vectors[:5], 5)
    np.testing.assert_array_equal(before.ids, after.ids)
