import numpy as np
import pytest

from index import queries as queries_module
from index.build import build_index
from index.choose import IndexConfig
from index.folder import Folder
from index.measure import exact_top_k
from index.queries import QuerySet, draw_rows, draw_samples
from index.vector_writer import VectorWriter
from index.vectors import VectorFile, unit


@pytest.fixture
def write_file(tmp_path):
    def write(vectors):
        with VectorWriter(str(tmp_path / "v"), vectors.shape[1]) as writer:
            writer.add(np.arange(len(vectors), dtype=np.int64) * 2, unit(vectors).astype("f2"))
        return VectorFile(tmp_path / "v")

    return write


def test_every_row_is_drawn_alike_often(monkeypatch):
    monkeypatch.setattr(queries_module, "DRAW_BLOCK", 8)
    rng, times = np.random.default_rng(0), np.zeros(50)
    for _ in range(2000):
        rows = draw_rows(50, 10, rng)
        assert len(np.unique(rows)) == len(rows) == 10
        assert (np.diff(rows) > 0).all()
        times[rows] += 1
    assert abs(times - 400).max() < 5 * np.sqrt(2000 * 0.2 * 0.8)


def test_training_sample_and_queries_are_disjoint_also_as_pictures(write_file, clustered):
    file = write_file(np.repeat(clustered(100, 8)[0], 10, axis=0))
    samples = draw_samples(file, 40, 600, seed=0, least_train=15)
    assert len(samples.query_rows) == 40
    assert 100 < len(samples.train_rows) <= 600
    asked = {row.tobytes() for row in file.gather(samples.query_rows)}
    assert asked.isdisjoint(row.tobytes() for row in file.gather(samples.train_rows))
    assert samples.train_rows.min() < 200
    assert samples.train_rows.max() > 800


def test_where_all_pictures_are_copies_a_sample_is_left(write_file):
    file = write_file(np.ones((100, 4)))
    samples = draw_samples(file, 10, 80, seed=0, least_train=5)
    assert len(samples.train_rows) == 80


def test_queries_come_back_as_written(tmp_path):
    rng = np.random.default_rng(0)
    queries = QuerySet(
        ids=np.array([3, -1, 7]),
        vectors=rng.normal(size=(3, 4)).astype(np.float32),
        true_ids=rng.integers(0, 99, (3, 2)),
        true_scores=rng.normal(size=(3, 2)).astype(np.float32),
        judging=np.array([True, False, True]),
    )
    queries.write(str(tmp_path / "q"))
    read = QuerySet.read(tmp_path / "q")
    for name in ("ids", "vectors", "true_ids", "true_scores", "judging"):
        np.testing.assert_array_equal(getattr(read, name), getattr(queries, name))
    assert read.half(judging=True).ids.tolist() == [3, 7]
    assert read.half(judging=False).ids.tolist() == [-1]


def test_exact_answers_are_kept_beside_the_version_and_taken_over(
    make_store, tmp_path, clustered, monkeypatch
):
    store, folder = make_store(clustered(500, 8)[0]), Folder.at(tmp_path / "ix")
    config = IndexConfig(kind="ivf", num_queries=60)
    build_index(store, folder, config)
    kept = QuerySet.read(tmp_path / "ix" / "v000001" / "queries.arrow")
    file = VectorFile(tmp_path / "ix" / "v000001" / "vectors.arrow")
    ids, scores = exact_top_k(kept.vectors, 10, file.iter_batches(7), exclude_Q=kept.ids)
    np.testing.assert_allclose(kept.true_scores, scores, atol=1e-6)
    assert (kept.true_ids == ids).mean() > 0.99
    assert kept.judging.sum() == 30

    def forbidden(*args, **kwargs):
        raise AssertionError("answers were searched for again")

    monkeypatch.setattr(queries_module, "exact_top_k", forbidden)
    same = IndexConfig(kind="ivf-pq", num_queries=60, target_recall=0.8)
    assert build_index(store, folder, same)["version"] == "v000002"
    with pytest.raises(AssertionError, match="again"):
        build_index(store, folder, IndexConfig(kind="ivf", num_queries=61))
    damaged = tmp_path / "ix" / "v000002" / "queries.arrow"
    for version in ("v000001", "v000002"):
        damaged = tmp_path / "ix" / version / "queries.arrow"
        data = bytearray(damaged.read_bytes())
        data[len(data) // 2] ^= 1
        damaged.write_bytes(data)
    with pytest.raises(AssertionError, match="again"):
        build_index(store, folder, IndexConfig(kind="ivf", num_queries=60, target_recall=0.7))


def test_queries_of_another_set_are_what_the_recall_speaks_of(make_store, tmp_path, clustered):
    store = make_store(clustered(2000, 16, noise=0.3)[0])
    asked = make_store(clustered(300, 16, noise=2.0, seed=9)[0], name="asked")
    config = IndexConfig(kind="ivf", num_queries=200, target_recall=0.9)
    own = build_index(store, Folder.at(tmp_path / "own"), config)
    other = build_index(store, Folder.at(tmp_path / "other"), config, queries=asked)
    assert "held-out pictures of the corpus" in own["recall"]["population"]
    assert asked.id[:12] in other["recall"]["population"]
    assert own["id"] != other["id"]
    assert other["parameters"]["nprobe"] > own["parameters"]["nprobe"], "these are harder"
    kept = QuerySet.read(tmp_path / "other" / "v000001" / "queries.arrow")
    assert set(kept.ids.tolist()) == {-1}
    rows = {row.tobytes() for _, rows in asked.iter_batches() for row in unit(rows)}
    assert all(query.tobytes() in rows for query in kept.vectors)


def test_some_queries_are_of_all_folders(tmp_path):
    ids = np.arange(100)
    queries = QuerySet(
        ids=ids,
        vectors=np.ones((100, 2), np.float32),
        true_ids=ids[:, None],
        true_scores=np.ones((100, 1), np.float32),
        judging=ids % 2 == 0,
    )
    assert queries.some(4).ids.tolist() == [0, 25, 50, 75]
    assert queries.some(100) is queries
    assert [len(queries.some(count).ids) for count in (0, 1, 99, 101)] == [0, 1, 99, 100]


def test_codes_learn_from_copies_where_nearly_all_pictures_are(write_file):
    rows = np.ones((1000, 4))
    rows[:15] = np.random.default_rng(0).normal(size=(15, 4))
    samples = draw_samples(write_file(rows), 100, 800, seed=0, least_train=16)
    assert len(samples.train_rows) == 800
