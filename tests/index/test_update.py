"""What is done to an index that is to follow its embedding set, and what its card says then."""

import dataclasses

import numpy as np
import pytest

from index import artifact, drift
from index.artifact import NewerSchemaError, open_door
from index.build import build_index
from index.choose import IndexConfig
from index.difference import Wanted
from index.embeddings import EmbeddingStore
from index.lock import in_use
from index.queries import FOREIGN, QuerySet
from index.removal import remove_pictures
from index.search import Searcher
from index.update import compact_index, update_index
from index.versions import collect, open_current, roll_back

IVF = IndexConfig(kind="ivf", num_queries=60)


def inode(folder, version, name="vectors.arrow"):
    return folder.local_path(f"{version}/{name}").stat().st_ino


def centroids(folder):
    """Of the lists of the version in service."""
    searcher = Searcher.open(folder)
    return searcher._ranker.parts[0].coarse.centroids()


def test_a_change_shares_the_base_and_writes_what_differs(folder, grow):
    assert (grow(600).action, grow(600).action) == ("built", "reused")
    done = grow(640)
    assert (done.action, done.why) == ("changed", "40 came, 0 were replaced, 0 went")
    assert inode(folder, "v000001") == inode(folder, "v000002")
    again = grow(640)
    assert (again.version, again.action) == ("v000002", "reused")
    assert (again.door["rows"], again.door["delta"]["rows"], again.door["dead"]) == (640, 40, None)
    assert Searcher.open(folder).search(grow.corpus[620:621], 1).ids[0, 0] == 620 * 3 + 5


def test_a_version_outlives_the_one_whose_files_it_shares(folder, grow):
    grow(600)
    grow(640)
    grow(650)
    collect(folder, keep=1)
    assert Searcher.open(folder).version == "v000003"
    assert [one for one in folder.names() if one.startswith("v")] == ["v000003"]
    assert len(Searcher.open(folder)) == 650


def test_what_was_removed_and_restored_leaves_no_trace(folder, grow):
    grow(600)
    before = Searcher.open(folder)
    out = before.ids[10:40]
    done = remove_pictures(folder, np.concatenate([out, [1, 10**9]]))
    assert (done.action, done.why) == ("changed", "30 removed")
    assert (len(Searcher.open(folder)), done.door["dead"]["rows"]) == (570, 30)
    assert remove_pictures(folder, out).action == "reused"
    assert grow(600).action == "reused", "what was removed by hand stays out"
    grow(605)
    back = grow(605, restored=out)
    assert (back.action, back.why) == ("changed", "30 came, 0 were replaced, 0 went")
    assert (back.door["dead"], back.door["delta"]["rows"], back.door["removed"]) == (None, 5, None)
    np.testing.assert_array_equal(Searcher.open(folder).ids[:600], before.ids)
    gone = grow(600).door
    assert (gone["dead"], gone["delta"]) == (None, None)
    np.testing.assert_allclose(Searcher.open(folder).mean, before.mean, atol=1e-6)


def test_a_rollback_undoes_a_removal(folder, grow):
    grow(600)
    remove_pictures(folder, np.array([5, 8]))
    roll_back(folder, "v000001")
    assert 5 in Searcher.open(folder).ids
    assert grow(610).door["removed"] is None


def test_what_is_gone_stays_out_of_a_build_and_comes_back(folder, grow):
    grow(600)
    gone = np.array([5, 11, 7, 10**9])
    assert grow(600, gone=gone).why == "0 came, 0 were replaced, 2 went"
    done = grow(600, gone=gone, rebuild=True)
    assert (done.action, done.why, done.door["rows"]) == ("built", "asked for", 598)
    assert grow(600, gone=gone).action == "reused"
    found = Searcher.open(folder)
    streamed = np.concatenate([rows for _, rows in found.iter_batches()])
    np.testing.assert_allclose(found.mean, streamed.mean(axis=0), atol=1e-6)
    assert grow(600).why == "v000001 was built of the same" or len(Searcher.open(folder)) == 600


def test_what_is_restored_while_its_file_is_gone_comes_back_with_it(folder, grow):
    grow(600)
    out = np.array([5, 11])
    remove_pictures(folder, out)
    assert grow(600, rebuild=True).door["removed"]["rows"] == 2
    assert grow(600, gone=out, restored=out).door["removed"] is None
    grow(600)
    assert np.isin(out, Searcher.open(folder).ids).all()


def test_what_was_removed_and_is_gone_too_is_left_out_once(make_store):
    store = make_store(np.eye(3, dtype=np.float32), ids=np.array([5, 6, 7]))
    assert Wanted.of(store, np.array([5, 7]), np.array([5])).num_rows == 1
    assert Wanted.of(store, np.array([5, 7]), np.array([5, 6, 7])).num_rows == 0


def test_what_is_removed_stays_out_though_a_version_without_its_file_is_there(folder, grow):
    out = np.array([5, 11])
    grow(600, gone=out)
    grow(600)
    with in_use(folder / "v000001"):  # as while its graph is made
        remove_pictures(folder, np.array([5, 8, 11]))
    assert grow(600, restored=np.array([8])).door["removed"]["rows"] == 2
    grow(600)
    assert not np.isin(out, Searcher.open(folder).ids).any()


def test_training_anew_of_what_is_left_is_not_taken_for_a_build_of_all(folder, grow):
    grow(600)
    gone = np.arange(5, 245, 3)
    assert grow(600, gone=gone).action == "changed"
    assert compact_index(folder, retrain=True).door["rows"] == 520
    require_true(folder)
    assert grow(600, gone=gone).action == "reused"
    back = grow(600)
    assert (back.door["rows"], len(require_true(folder)[0])) == (600, 600)


@pytest.mark.parametrize("file", ["vectors.arrow", "part-ivf-00000.faiss"])
@pytest.mark.parametrize("rows", [600, 603])
def test_a_bit_that_fell_over_in_the_base_is_no_change_and_no_reuse(folder, grow, file, rows):
    grow(600)
    path = folder.local_path(f"v000001/{file}")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = grow(rows)
    assert (done.action, done.why) == ("built", "the version in service is damaged")
    assert len(require_true(folder)[0]) == rows


def test_another_question_or_setting_is_a_build(folder, grow, make_store):
    assert grow(300).why == "it is the first version"
    other = dataclasses.replace(IVF, target_recall=0.9)
    assert grow(300, other).why == "its settings are others"
    asked = make_store(grow.corpus[1500:1600], name="asked")
    done = update_index(make_store(grow.corpus[:310], name="more"), folder, other, queries=asked)
    assert done.why == "its recall was measured on other queries"
    parents = {"encoder_id": "encoder-b", "corpus_id": "corpus-1", "corpus_uid": "uid-1"}
    store = make_store(grow.corpus[:310], name="b", parents=parents)
    assert update_index(store, folder, other).why == "the vectors are of another encoder or layer"
    parents["corpus_uid"] = "uid-2"
    store = make_store(grow.corpus[:310], name="c", parents=parents)
    assert update_index(store, folder, other).why == "the pictures are of another corpus"


def test_a_long_delta_or_many_dead_rows_are_compacted_without_training(folder, grow, monkeypatch):
    grow(600)
    monkeypatch.setattr(drift, "DELTA_ROWS", 50)
    before = centroids(folder)
    done = grow(660)
    assert (done.action, done.why) == ("compacted", "60 rows are too many for a delta")
    assert grow(670).action == "changed"
    done = grow(540)
    assert (done.action, done.why) == ("compacted", "130 of 660 rows would be dead")
    np.testing.assert_array_equal(centroids(folder), before)
    assert (len(Searcher.open(folder)), done.door["delta"], done.door["dead"]) == (540, None, None)
    assert done.door["trained"]["rows"] == 600
    assert done.door["parts"] == [{"file": "part-ivf-00000.faiss", "rows": 540}]


def test_an_index_that_outgrew_its_training_is_built_anew(folder, grow):
    grow(300)
    assert grow(590).action == "changed"
    done = grow(620)
    assert (done.action, done.why) == ("built", "it was trained for 300 rows, and there are 620")


def test_pictures_unlike_those_it_was_trained_on_are_served_at_once_and_trained_on_by_compact(
    folder, grow
):
    grow(1200)
    rng = np.random.default_rng(0)
    strange = np.concatenate([grow.corpus[:1200], rng.normal(size=(150, 8))])
    done = grow(strange)
    assert (done.action, done.drift.remedy) == ("changed", "retrain")
    assert done.drift.why.startswith("it fits what came at least")
    trained = compact_index(folder)
    assert (trained.action, trained.why, trained.drift) == ("built", done.drift.why, None)
    assert len(Searcher.open(folder)) == 1350


def test_what_has_to_be_compacted_and_fits_badly_is_trained_anew(folder, grow, monkeypatch):
    grow(1200)
    monkeypatch.setattr(drift, "DELTA_ROWS", 50)
    strange = np.random.default_rng(0).normal(size=(900, 8))
    done = grow(np.concatenate([grow.corpus[:1200], strange]))
    assert done.action == "built"
    assert done.why.startswith("v000002 is in service, and it fits what came at least")
    assert open_door(folder / "v000002", "index")["change"] == {
        "from": "v000001",
        "compacted": True,
    }


def test_copies_that_crowd_one_list_are_noticed(folder, grow):
    grow(1200)
    crowd = np.repeat(grow.corpus[7:8], 600, axis=0)
    done = grow(np.concatenate([grow.corpus[:1200], crowd]))
    assert done.drift.imbalance > 2
    assert "times as uneven" in done.drift.why


def test_removals_say_when_to_compact_and_compact_trains_where_it_should(folder, grow):
    grow(1000)
    done = remove_pictures(folder, Searcher.open(folder).ids[:200])
    assert done.drift.remedy == "compact"
    assert done.drift.why == "20% of its rows are dead"
    compacted = compact_index(folder)
    assert (compacted.action, compacted.why) == (
        "compacted",
        "0 rows of the delta folded in, 200 dead ones dropped",
    )
    assert compact_index(folder).action == "reused"
    trained = compact_index(folder, retrain=True)
    assert (trained.action, trained.drift) == ("built", None)
    assert trained.door["parameters"]["nlist"] < compacted.door["parameters"]["nlist"]
    np.testing.assert_array_equal(Searcher.open(folder).ids, np.arange(200, 1000) * 3 + 5)
    assert grow(1000).action == "reused"


def exact_answers(searcher, queries):
    """By comparing with each vector, one by one."""
    ids = searcher.ids
    vectors = searcher.vectors_of(ids)
    for own, query in zip(queries.ids, queries.vectors, strict=True):
        scores = vectors @ query
        order = [row for row in np.lexsort((ids, -scores)) if ids[row] != own][: queries.k]
        yield ids[order], scores[order]


def require_true(folder):
    version, door = open_current(folder)
    searcher = Searcher.open(folder)
    queries = QuerySet.read(folder.local_path(f"{version}/queries.arrow"))
    for row, (ids, scores) in enumerate(exact_answers(searcher, queries)):
        np.testing.assert_allclose(queries.true_scores[row], scores, atol=1e-6)
        assert np.isin(queries.true_ids[row], searcher.ids).all()
        assert len(set(queries.true_ids[row].tolist())) == len(ids)
    return searcher, queries, door


def test_queries_stay_a_sample_of_what_is_alive_with_true_answers(folder, grow):
    config = dataclasses.replace(IVF, num_queries=150)
    grow(900, config)
    _, first, _ = require_true(folder)
    assert (len(first.ids), first.judging.sum()) == (150, 75)
    shuffled = np.concatenate([grow.corpus[:300], grow.corpus[900:1200], grow.corpus[600:900]])
    grow(shuffled, config)
    searcher, queries, door = require_true(folder)
    assert np.isin(queries.ids, searcher.ids).all()
    others = np.arange(300, 600) * 3 + 5
    came = np.isin(queries.ids, others)
    assert 25 < came.sum() < 80, "about one in six, as of the first"
    kept = np.isin(first.ids, queries.ids) & ~np.isin(first.ids, others)
    assert kept.sum() == len(queries.ids) - came.sum()
    assert door["recall"]["num_queries"] == queries.judging.sum()
    remove_pictures(folder, searcher.ids[100:200])
    searcher, queries, _ = require_true(folder)
    assert np.isin(queries.ids, searcher.ids).all()
    compact_index(folder)
    assert len(require_true(folder)[1].ids) == len(queries.ids)


def test_queries_are_drawn_anew_when_too_few_are_left(folder, grow):
    grow(900)
    _, queries, _ = require_true(folder)
    remove_pictures(folder, queries.ids[:50])
    _, anew, door = require_true(folder)
    assert len(anew.ids) == 60
    assert door["recall"]["low"] >= 0.95 or door["recall"]["value"] == 1.0


@pytest.fixture
def shrunk(folder, grow):
    """Queries of an index of 1,900, and of what is left of it: the first 600."""
    config = IndexConfig(kind="exact", num_queries=150)
    grow(1900, config)
    _, first, _ = require_true(folder)
    remove_pictures(folder, Searcher.open(folder).ids[600:])
    return first, require_true(folder)[1]


def test_after_queries_were_drawn_anew_pictures_that_come_join_as_often(
    folder, grow, shrunk, make_store
):
    assert len(shrunk[1].ids) == 150, "a quarter"
    vectors = np.concatenate([grow.corpus[:600], grow.corpus[1300:1900]])
    ids = np.concatenate([np.arange(600) * 3 + 5, 10_000 + np.arange(600)])
    store = make_store(vectors, ids=ids, name="grown")
    config = IndexConfig(kind="exact", num_queries=150)
    assert update_index(store, folder, config).action == "compacted"
    searcher, queries, door = require_true(folder)
    assert (len(searcher), door["trained"]["query_rate"]) == (1200, 0.25)
    assert 110 < (queries.ids >= 10_000).sum() < 190, "a quarter of these as well"


def test_queries_that_are_drawn_anew_keep_their_roles(shrunk):
    first, anew = shrunk
    roles = dict(zip(first.ids.tolist(), first.judging.tolist(), strict=True))
    now = dict(zip(anew.ids.tolist(), anew.judging.tolist(), strict=True))
    both = roles.keys() & now.keys()
    assert len(both) > 10
    assert {own: roles[own] for own in both} == {own: now[own] for own in both}


def test_queries_from_elsewhere_stay_through_changes_and_training(folder, grow, make_store):
    asked = make_store(grow.corpus[1500:1600], name="asked")
    for rows in (500, 520):
        store = make_store(grow.corpus[:rows], name=f"rows-{rows}")
        update_index(store, folder, IVF, queries=asked)
    _, before, _ = require_true(folder)
    assert (before.ids == FOREIGN).all()
    remove_pictures(folder, np.array([5, 8, 11]))
    compact_index(folder, retrain=True)
    searcher, queries, door = require_true(folder)
    np.testing.assert_allclose(queries.vectors, before.vectors, atol=1e-6)
    assert (len(searcher), door["queries"]["embeddings_id"]) == (517, asked.id)
    done = update_index(EmbeddingStore.open(store.folder), folder, IVF, queries=asked)
    assert done.action == "reused"


def test_a_handful_of_pictures_may_grow_shrink_and_grow(folder, grow):
    config = IndexConfig(num_queries=4)
    for rows in (1, 2, 14, 9, 2, 1, 30):
        grow(rows, config)
        searcher, _, door = require_true(folder)
        assert (len(searcher), door["rows"]) == (rows, rows)


def test_the_card_of_a_change_says_if_its_queries_take_longer_than_they_may(folder, grow):
    config = dataclasses.replace(IVF, latency_ms=1e-4)
    for rows in (600, 640):
        version = grow(rows, config).version
        page = folder.read_bytes(f"{version}/card.md").decode()
        assert "- 95 % of single queries take up to" in page
        assert "ms, and 0.0001 ms may be." in page


def test_a_limit_of_memory_holds_for_changes_too(folder, grow):
    config = dataclasses.replace(IVF, memory="30MB")
    grow(600, config)
    assert grow(640, config).action == "changed"
    remove_pictures(folder, np.array([5, 8]))
    assert compact_index(folder).action == "compacted"
    require_true(folder)


def test_an_older_lookalike_refuses_a_version_in_layers(folder, grow, monkeypatch):
    grow(300)
    grow(310)
    monkeypatch.setattr(artifact, "NEWEST_SCHEMA", 1)
    with pytest.raises(NewerSchemaError, match="Upgrade lookalike"):
        Searcher.open(folder)


def test_a_version_of_before_there_were_queries_is_built_anew(folder, grow, make_store):
    door = build_index(make_store(grow.corpus[:100], name="old"), folder, IVF)
    body = {
        key: value for key, value in door.items() if key not in ("queries", "version", "reused")
    }
    for key in ("kind", "schema_version", "created_at", "door_sha256"):
        body.pop(key)
    files = body.pop("files")
    del files["queries.arrow"]
    made = artifact.publish(folder / "v000001", "index", body, files)
    folder.write_atomic("CURRENT", f"v000001 {made['door_sha256'][:16]}\n".encode())
    assert grow(110).why == "the version in service is of an older lookalike"
