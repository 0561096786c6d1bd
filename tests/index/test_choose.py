import pytest

from index.budget import FIXED_BYTES, Budget, parse_bytes
from index.build import build_index
from index.choose import IndexConfig, Recipe, candidates
from index.folder import Folder
from index.vectors import BATCH_ROWS


def kinds(num_rows, dim=128, **settings):
    return [recipe.kind for recipe in candidates(num_rows, dim, IndexConfig(**settings)).recipes]


def test_the_size_says_who_takes_part():
    assert kinds(19_999) == ["exact"]
    assert kinds(20_000) == kinds(299_999) == ["exact", "ivf", "pq", "ivf-pq"]
    assert kinds(300_000) == kinds(10**8) == ["ivf", "ivf-pq"]
    assert kinds(300_000, hnsw_build_s=60) == ["ivf", "ivf-pq", "hnsw"]
    assert kinds(50, kind="hnsw") == ["hnsw"]


def test_lists_grow_with_the_root_and_have_rows_to_train():
    for num_rows in (20_000, 10**5, 10**6, 10**8):
        for recipe in candidates(num_rows, 64, IndexConfig()).recipes:
            assert recipe.nlist * 39 <= num_rows
            assert recipe.nlist <= 65_536
    lists = [candidates(n, 64, IndexConfig(kind="ivf")).recipes[0].nlist for n in (40_000, 10**6)]
    assert lists == [625, 8000]
    assert candidates(10, 64, IndexConfig(kind="ivf")).recipes[0].nlist == 1


def test_an_odd_dimension_leaves_short_codes_out_and_says_why():
    field = candidates(50_000, 63, IndexConfig())
    assert [recipe.kind for recipe in field.recipes] == ["exact", "ivf"]
    why = "its codes take two dimensions each, and 63 is odd"
    assert [(one.kind, one.why) for one in field.left_out] == [("pq", why), ("ivf-pq", why)]
    with pytest.raises(ValueError, match=r"kind is 'pq', but its codes .* 63 is odd\. Use another"):
        candidates(50_000, 63, IndexConfig(kind="pq"))


def test_short_codes_need_vectors_to_learn_from(make_store, tmp_path, clustered):
    with pytest.raises(ValueError, match="its codes need 32 vectors to learn from, and there are"):
        candidates(31, 16, IndexConfig(kind="ivf-pq"))
    for kind in ("pq", "ivf-pq"):
        store = make_store(clustered(32, 16)[0], name=kind)
        door = build_index(store, Folder.at(tmp_path / f"ix-{kind}"), IndexConfig(kind=kind))
        assert door["rows"] == 32


def test_what_would_not_fit_the_memory_in_service_is_left_out():
    field = candidates(5_000_000, 128, IndexConfig(memory="512MB"))
    assert [recipe.kind for recipe in field.recipes] == ["ivf-pq"]
    assert [one.kind for one in field.left_out] == ["ivf"]
    assert "MB in service, more than the 512 MB allowed" in field.left_out[0].why
    # 39 training rows a list fit into a quarter of it.
    assert field.recipes[0].nlist * 39 * 512 <= 128_000_000


def test_bytes_of_a_row_are_those_of_the_files(make_store, tmp_path, clustered):
    store = make_store(clustered(6000, 16)[0])
    for kind in ("exact", "ivf", "pq", "ivf-pq", "hnsw"):
        config = IndexConfig(kind=kind, num_queries=20)
        door = build_index(store, Folder.at(tmp_path / kind), config)
        recipe = Recipe(kind=kind, nlist=door["parameters"]["nlist"], why="")
        predicted = recipe.row_bytes(16) + recipe.fixed_bytes(16) / 6000
        assert door["service_bytes_per_vector"] == pytest.approx(predicted, rel=0.35), kind


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_recall", 0),
        ("target_recall", 1.1),
        ("k", 0),
        ("num_queries", 1),
        ("kind", "lsh"),
        ("train_rows_per_list", 10),
        ("part_rows", 0),
        ("latency_ms", 0),
        ("hnsw_build_s", -1),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} is"):
        IndexConfig(**{field: value})


@pytest.mark.parametrize("text", ["", "MB", "512 megs", "-1GB", "0", "1e9", "0.0MB", "5 MB MB"])
def test_what_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r"memory .*: allowed is a number.*512MB or 2GiB"):
        IndexConfig(memory=text)


def test_sizes_are_read_as_people_write_them():
    assert parse_bytes("512MB") == parse_bytes(" 512 mb ") == parse_bytes("512000000")
    assert parse_bytes("2GiB") == 2 << 30
    assert parse_bytes("0.5TiB") == 1 << 39


def test_memory_that_cannot_do_is_refused_with_what_can(make_store, tmp_path, clustered):
    store = make_store(clustered(100, 8)[0])
    with pytest.raises(ValueError, match=r"memory 10MB: to index 100 .*--memory 25MB or more"):
        build_index(store, Folder.at(tmp_path / "ix"), IndexConfig(memory="10MB"))
    assert not (tmp_path / "ix").exists()


def test_parts_make_room_for_the_ids_of_all_rows():
    budget = Budget(limit_bytes=64_000_000, dim=32, part_rows=10**9)
    few, many, most = (budget.rows_per_part(24, 0, rows) for rows in (0, 3_000_000, 4_500_000))
    assert 2 * 24 * few <= 24_000_000
    assert 2 * 24 * many <= 64_000_000 - FIXED_BYTES - 6 * BATCH_ROWS * 32 - 8 * 3_000_000
    assert most == 64_000_000 // 16 // 48


def test_parts_shrink_with_the_budget_and_stay_below_what_was_asked():
    rows = [
        Budget(limit_bytes=limit, dim=128, part_rows=10**6).rows_per_part(264, 0)
        for limit in (None, 2**40, 512_000_000, 64_000_000)
    ]
    assert rows[0] == rows[1] == 10**6
    assert 2 * 264 * rows[2] <= 512_000_000 // 2 < 8 * 264 * rows[2]
    assert rows[3] < rows[2] / 7
