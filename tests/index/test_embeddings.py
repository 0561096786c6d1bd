import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow import fs as pafs

from index.artifact import CorruptArtifactError, MissingArtifactError
from index.embeddings import EmbeddingStore, ShardBatch, publish_embeddings, write_shard
from index.folder import Folder

BODY = {"parents": {"encoder_id": "e", "corpus_id": "c"}, "config": {"layer": "backbone"}}


def batch_of(vectors, *, first_id=0, statuses=None, hashes=None):
    n = len(vectors)
    return ShardBatch(
        ids=np.arange(first_id, first_id + n, dtype=np.int64),
        statuses=statuses or ["ok"] * n,
        content_hashes=hashes or [bytes([i % 256]) * 32 for i in range(n)],
        vectors=np.asarray(vectors, np.float32),
    )


def write(folder, vectors, name="00000-aa", *, first_id=0, thumbnails=None, **columns):
    batch = batch_of(vectors, first_id=first_id, **columns)
    return write_shard(folder, name, batch, thumbnails=thumbnails or [None] * len(batch.ids))


def everything(store):
    batches = [*store.iter_batches(), (np.empty(0, np.int64), np.empty((0, store.dim)))]
    return tuple(np.concatenate(column) for column in zip(*batches, strict=True))


def normal(rows, dim=16, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, dim))


@pytest.fixture(params=["local", "object store"])
def folder(request, tmp_path):
    if request.param == "local":
        return Folder.at(tmp_path / "set")
    store = Folder(pafs._MockFileSystem(), "bucket")
    return store.make() / "set"


def test_vectors_come_back_normalised_with_their_ids(folder):
    rows = 100 * normal(30)
    records = [write(folder, rows[:20]), write(folder, rows[20:], "00001-bb", first_id=50)]
    door = publish_embeddings(folder, reversed(records), BODY)
    store = EmbeddingStore.open(folder)
    ids, vectors = everything(store)
    np.testing.assert_array_equal(ids, [*range(20), *range(50, 60)])
    expected = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, expected, atol=1e-3)
    np.testing.assert_allclose(store.mean, vectors.mean(axis=0), atol=1e-6)
    assert (store.dim, store.num_rows, store.encoder_id) == (16, 30, "e")
    assert (store.layer, store.id, store.parents) == ("backbone", door["id"], BODY["parents"])


def test_batches_are_never_larger_than_asked(folder):
    publish_embeddings(folder, [write(folder, normal(25))], BODY)
    sizes = [len(ids) for ids, _ in EmbeddingStore.open(folder).iter_batches(10)]
    assert sizes == [10, 10, 5]


def test_rows_without_a_usable_vector_get_a_status_and_no_vector(folder):
    rows = normal(6)
    rows[1] = np.nan
    rows[2] = 0
    rows[3, 0] = np.inf
    statuses = ["ok"] * 5 + ["unreadable"]
    record = write(folder, rows, statuses=statuses)
    assert record["ok"] == 2
    assert record["failed"] == {"non_finite": 3, "unreadable": 1}
    door = publish_embeddings(folder, [record], BODY)
    assert door["rows"] == {"ok": 2, "non_finite": 3, "unreadable": 1}
    store = EmbeddingStore.open(folder)
    np.testing.assert_array_equal(everything(store)[0], [0, 4])
    bad = [(1, "non_finite"), (2, "non_finite"), (3, "non_finite"), (5, "unreadable")]
    assert store.bad_rows(10) == bad
    assert store.bad_rows(2) == bad[:2]


def test_vectors_beyond_the_range_of_float16_survive(folder):
    rows = normal(4) * np.array([[1e30], [1e-30], [7e4], [1]])
    publish_embeddings(folder, [write(folder, rows)], BODY)
    vectors = everything(EmbeddingStore.open(folder))[1]
    cosines = (vectors * rows).sum(axis=1) / np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(cosines, 1, atol=1e-3)


def test_a_set_in_which_everything_failed_opens_and_is_empty(folder):
    record = write(folder, np.zeros((3, 8)), statuses=["missing"] * 3)
    publish_embeddings(folder, [record], BODY)
    ids, vectors = everything(EmbeddingStore.open(folder))
    assert len(ids) == 0
    assert vectors.shape == (0, 8)


def test_writing_a_shard_again_gives_the_same_bytes(folder):
    first = write(folder, normal(10), thumbnails=[b"t"] * 10)
    assert write(folder, normal(10), thumbnails=[b"t"] * 10) == first


def test_a_shard_done_again_with_other_content_leaves_the_published_files_alone(folder):
    publish_embeddings(folder, [write(folder, normal(10))], BODY)
    again = write(folder, normal(10, seed=1))
    store = EmbeddingStore.open(folder)
    publish_embeddings(folder, [again], BODY)
    assert len(everything(store)[0]) == 10
    assert not np.array_equal(everything(store)[1], everything(EmbeddingStore.open(folder))[1])


def test_the_identity_follows_the_content(folder):
    a = publish_embeddings(folder, [write(folder, normal(5))], BODY)["id"]
    assert publish_embeddings(folder, [write(folder, normal(5))], BODY)["id"] == a
    assert publish_embeddings(folder, [write(folder, normal(5, seed=1))], BODY)["id"] != a
    other = {**BODY, "config": {"layer": "projector"}}
    assert publish_embeddings(folder, [write(folder, normal(5))], other)["id"] != a


def test_thumbnails_are_found_by_id_from_many_threads(folder):
    thumbnails = [b"t%d" % i if i % 7 else None for i in range(600)]
    records = [
        write(folder, normal(600), thumbnails=thumbnails),
        write(folder, normal(3), "00001-bb", first_id=1000, thumbnails=[b"x", b"y", b"z"]),
    ]
    publish_embeddings(folder, records, BODY)
    store = EmbeddingStore.open(folder)
    wrong = []

    def check(start):
        mine = range(start, 600, 8)
        wrong.extend(i for i in mine if store.thumbnail(i) != thumbnails[i])
        wrong.extend(i for i in mine if store.thumbnail(1001) != b"y")

    threads = [threading.Thread(target=check, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert [store.thumbnail(i) for i in (-1, 600, 999, 1003, 2**62)] == [None] * 5


def test_parquet_is_readable_without_us(tmp_path):
    record = write(Folder.at(tmp_path), normal(4))
    table = pq.read_table(tmp_path / record["vectors"])
    assert table.column_names == ["id", "status", "content_hash", "vector"]
    assert len(table["vector"][0].as_py()) == 16


def test_shards_of_two_dimensions_are_refused(folder):
    records = [write(folder, normal(4)), write(folder, normal(4, 8), "00001-bb", first_id=9)]
    with pytest.raises(ValueError, match=r"\[8, 16\] dimensions"):
        publish_embeddings(folder, records, BODY)


def test_shards_with_overlapping_ids_are_refused(folder):
    records = [write(folder, normal(4)), write(folder, normal(4), "00001-bb", first_id=3)]
    with pytest.raises(ValueError, match="unique, rising"):
        publish_embeddings(folder, records, BODY)


def test_no_shards_are_refused(folder):
    with pytest.raises(ValueError, match="exactly one"):
        publish_embeddings(folder, [], BODY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"statuses": ["fine"] * 2}, "row status"),
        ({"statuses": ["ok"]}, "as many rows"),
        ({"ids": np.array([3, 3], np.int64)}, "unique, rising"),
        ({"ids": np.array([1, 2], np.uint64)}, "uint64"),
        ({"vectors": np.zeros(2, np.float32)}, "as many rows"),
    ],
)
def test_a_malformed_batch_is_refused(change, message):
    columns = {
        "ids": np.arange(2, dtype=np.int64),
        "statuses": ["ok", "ok"],
        "content_hashes": [None, None],
        "vectors": np.ones((2, 3), np.float32),
    }
    with pytest.raises(ValueError, match=message):
        ShardBatch(**{**columns, **change})


def test_nothing_published_means_missing(folder):
    write(folder.make(), normal(3))
    with pytest.raises(MissingArtifactError):
        EmbeddingStore.open(folder)


@pytest.mark.parametrize("part", ["vectors", "thumbnails"])
def test_a_flipped_bit_in_a_shard_is_noticed(folder, part):
    record = write(folder, normal(5), thumbnails=[b"t"] * 5)
    publish_embeddings(folder, [record], BODY)
    name = record[part]
    data = bytearray(folder.read_bytes(name))
    data[len(data) // 2] ^= 4
    folder.write_atomic(name, bytes(data))
    with pytest.raises(CorruptArtifactError, match=name):
        EmbeddingStore.open(folder)
