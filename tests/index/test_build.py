import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from index import build
from index.artifact import CorruptArtifactError, Folder, MissingArtifactError
from index.build import build_index
from index.choose import IndexConfig, choose_recipe
from index.lock import sole_writer
from index.measure import exact_top_k, recall_at_k
from index.part import train_template
from index.search import Searcher
from index.tune import draw_samples
from index.vectors import VectorFile, unit
from index.versions import version_names

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


def test_small_corpora_get_an_exact_scan_and_large_ones_lists():
    assert choose_recipe(19_999, IndexConfig()).kind == "exact"
    assert choose_recipe(20_000, IndexConfig()).kind == "ivf"
    for num_rows in (20_000, 10**5, 10**6, 10**8):
        nlist = choose_recipe(num_rows, IndexConfig()).nlist
        assert nlist <= 4096
        assert nlist * 39 <= num_rows
    assert choose_recipe(10, SMALL_IVF).nlist == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_recall", 0),
        ("target_recall", 1.1),
        ("k", 0),
        ("num_queries", 1),
        ("kind", "hnsw"),
        ("train_rows_per_list", 10),
        ("part_rows", 0),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} is"):
        IndexConfig(**{field: value})


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


def test_stated_intervals_cover_the_true_recall(make_store, tmp_path, clustered):
    vectors, _ = clustered(1500, 8, noise=1.0)
    store = make_store(vectors)
    covered = []
    for seed in range(12):
        folder = Folder.at(tmp_path / f"ix{seed}")
        config = IndexConfig(kind="ivf", num_queries=300, target_recall=0.85, seed=seed)
        recall = build_index(store, folder, config)["recall"]
        truth = true_recall(Searcher.open(folder), num_queries=1500)
        covered.append(recall["low"] <= truth <= recall["high"])
    assert sum(covered) >= 11


def test_a_target_no_sample_can_prove_ends_in_exact_search(make_store, tmp_path, clustered):
    vectors, _ = clustered(1000, 8)
    config = IndexConfig(kind="ivf", num_queries=100, target_recall=1.0)
    door = build_index(make_store(vectors), Folder.at(tmp_path / "ix"), config)
    assert door["parameters"]["nprobe"] == door["parameters"]["nlist"]
    assert door["recall"]["low"] == door["recall"]["value"] == 1.0
    assert true_recall(Searcher.open(tmp_path / "ix"), 200) == 1.0


def test_training_sample_and_queries_are_disjoint_also_as_pictures(make_store, tmp_path, clustered):
    distinct, _ = clustered(100, 8)
    store = make_store(np.repeat(distinct, 10, axis=0))
    build_index(store, Folder.at(tmp_path / "ix"), IndexConfig(kind="exact"))
    file = VectorFile(tmp_path / "ix" / "v000001" / "vectors.arrow")
    recipe = choose_recipe(1000, SMALL_IVF)
    query_ids, train_rows = draw_samples(file, recipe, IndexConfig(num_queries=40))
    assert len(query_ids) == 40
    assert len(train_rows) > 100
    queries = {row.tobytes() for row in file.gather(file.rows_of(query_ids))}
    assert queries.isdisjoint(row.tobytes() for row in file.gather(train_rows))
    assert train_rows.min() < 200
    assert train_rows.max() > 800


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


def test_half_a_version_is_ignored_and_cleared_by_the_next_build(
    make_store, tmp_path, monkeypatch, clustered
):
    folder = Folder.at(tmp_path / "ix")
    store = make_store(clustered(50, 8)[0])

    def fail(*args, **kwargs):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(build, "tune", fail)
        with pytest.raises(OSError, match="disk full"):
            build_index(store, folder, IndexConfig())
    assert version_names(folder) == ["v000001"]
    with pytest.raises(MissingArtifactError, match="lookalike index"):
        Searcher.open(folder)
    build_index(store, folder, IndexConfig())
    assert Searcher.open(folder).search(np.ones((1, 8)), 1).ids.shape == (1, 1)
    assert len(version_names(folder)) == 1 or version_names(folder) == ["v000002"]


KILLED_BUILD = """
    import os, signal, sys
    from pathlib import Path
    from index.artifact import Folder
    from index.build import build_index
    from index.choose import IndexConfig
    from index.embeddings import EmbeddingStore

    remaining = int(sys.argv[3])
    replace = Path.replace

    def dies_in_time(*args):
        global remaining
        remaining -= 1
        if remaining < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(*args)

    Path.replace = dies_in_time
    store = EmbeddingStore.open(Folder.at(sys.argv[1]))
    build_index(store, Folder.at(sys.argv[2]), IndexConfig(part_rows=40))
"""


def test_a_build_killed_before_any_of_its_renames_leaves_the_old_version_serving(
    make_store, tmp_path, clustered
):
    folder = Folder.at(tmp_path / "ix")
    old, new = clustered(60, 8)[0], clustered(80, 8, seed=1)[0]
    build_index(make_store(old, name="old"), folder, IndexConfig())
    store = make_store(new, name="new")
    served = []
    for step in range(9):
        code = [sys.executable, "-c", textwrap.dedent(KILLED_BUILD), str(store.folder)]
        arguments = [str(folder), str(step)]
        environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*code, *arguments], check=False, env=environment)
        served.append(len(Searcher.open(folder)))
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        assert served[-1] == 60
    assert done.returncode == 0
    assert len(served) > 2
    assert served[-1] == 80
    assert len(version_names(folder)) == 2


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


@pytest.mark.parametrize("name", ["vectors.arrow", "part-00000.faiss", "index.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_noticed_and_a_new_build_repairs_it(
    make_store, tmp_path, name, damage, clustered
):
    folder = Folder.at(tmp_path / "ix")
    store = make_store(clustered(50, 8)[0])
    build_index(store, folder, IndexConfig())
    path = tmp_path / "ix" / "v000001" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    if damage != "remove":
        path.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    with pytest.raises(CorruptArtifactError):
        Searcher.open(folder)
    assert build_index(store, folder, IndexConfig())["reused"] is False
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


def test_faiss_training_is_seeded(clustered):
    sample = clustered(500, 8)[0]
    recipe = choose_recipe(500, SMALL_IVF)
    templates = [train_template(recipe, 8, sample, seed=seed) for seed in (0, 0, 1)]
    centroids = [template.quantizer.reconstruct_n(0, recipe.nlist) for template in templates]
    np.testing.assert_array_equal(centroids[0], centroids[1])
    assert not np.array_equal(centroids[0], centroids[2])
