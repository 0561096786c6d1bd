import os

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index import vectors as vectors_module
from index.vector_writer import VectorWriter
from index.vectors import VectorFile, locate, require_ids, unit, widen


def write(path, ids, rows, piece, *, mapped=True):
    with VectorWriter(str(path), rows.shape[1]) as writer:
        for start in range(0, len(ids), piece):
            writer.add(ids[start : start + piece], rows[start : start + piece])
    return VectorFile(path, mapped=mapped)


@settings(max_examples=40, deadline=None)
@given(
    num_rows=st.integers(1, 40),
    piece=st.integers(1, 17),
    batch_rows=st.integers(1, 9),
    mapped=st.booleans(),
)
def test_rows_come_back_whatever_the_pieces_were(
    tmp_path_factory, num_rows, piece, batch_rows, mapped
):
    path = tmp_path_factory.mktemp("vectors") / "v.arrow"
    rng = np.random.default_rng(num_rows)
    ids = np.sort(rng.choice(1000, num_rows, replace=False)).astype(np.int64)
    rows = rng.normal(size=(num_rows, 3)).astype(np.float16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors_module, "BATCH_ROWS", 8)
        patch.setattr("index.vector_writer.BATCH_ROWS", 8)
        patch.setattr(vectors_module, "GATHER_ROWS", 5)
        file = write(path, ids, rows, piece, mapped=mapped)
        assert len(file) == num_rows
        np.testing.assert_array_equal(file.ids, ids)
        order = rng.permutation(num_rows)
        found = file.gather(file.rows_of(ids[order]))
        np.testing.assert_array_equal(found, rows[order].astype(np.float32))
        streamed = list(file.iter_batches(batch_rows))
        assert max(len(part) for part, _ in streamed) <= batch_rows
        np.testing.assert_array_equal(np.concatenate([part for part, _ in streamed]), ids)
        np.testing.assert_array_equal(np.concatenate([part for _, part in streamed]), rows)
        start, stop = num_rows // 3, num_rows // 3 + num_rows // 2
        some = [part for part, _ in file.iter_batches(batch_rows, start=start, stop=stop)]
        assert [int(picture) for part in some for picture in part] == ids[start:stop].tolist()


def test_any_arrow_reader_opens_the_file(tmp_path):
    rows = np.eye(4, dtype=np.float16)
    write(tmp_path / "v.arrow", np.arange(4, dtype=np.int64), rows, 4)
    table = pa.ipc.open_file(str(tmp_path / "v.arrow")).read_all()
    assert table.column_names == ["id", "vector"]
    assert table["vector"].to_pylist()[2] == [0, 0, 1, 0]


def test_an_unknown_id_is_named(tmp_path):
    file = write(tmp_path / "v", np.array([2, 4], np.int64), np.eye(2, dtype=np.float16), 2)
    for unknown in (1, 3, 5, -1):
        with pytest.raises(KeyError, match=f"picture {unknown} "):
            file.rows_of(np.array([2, unknown]))


@pytest.mark.parametrize("ids", [[1, 1], [2, 1], [-1, 0], [2**63 - 1]])
def test_ids_that_repeat_fall_or_wrap_are_refused(ids):
    with pytest.raises(ValueError, match="unique, rising"):
        require_ids(np.array(ids, np.int64))


def test_ids_of_another_type_are_refused():
    with pytest.raises(ValueError, match="uint64"):
        require_ids(np.array([1], np.uint64))


def test_ids_that_repeat_across_batches_are_refused(tmp_path):
    rows = np.eye(2, dtype=np.float16)
    with VectorWriter(str(tmp_path / "v"), 2) as writer:
        writer.add(np.array([1, 2], np.int64), rows)
        with pytest.raises(ValueError, match="after 2"):
            writer.add(np.array([2, 3], np.int64), rows)


def test_unit_rows_have_norm_one_and_keep_their_direction():
    rows = np.array([[3, 4], [-1e-3, 0], [1e30, 1e30]], np.float64)
    np.testing.assert_allclose(unit(rows[:2]), [[0.6, 0.8], [-1, 0]], rtol=1e-6)


def test_a_file_that_was_cut_while_it_is_open_is_an_error_and_no_answer(tmp_path):
    rows = np.eye(64, dtype=np.float16)
    file = write(tmp_path / "v", np.arange(64, dtype=np.int64), rows, 64, mapped=False)
    os.truncate(tmp_path / "v", 2000)
    with pytest.raises(OSError, match=r"vectors\.arrow ends before its rows do\. Build the index"):
        file.gather(np.arange(64))


@pytest.mark.parametrize("dim", [1, 8, 12, 64])
def test_every_float16_widens_to_the_same_number(dim):
    everything = np.arange(2**16, dtype=np.uint16).view(np.float16)
    rows = np.resize(everything[np.isfinite(everything)], (1024, dim))
    found = widen(rows)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), rows.astype(np.float32).view(np.uint32))
    into = np.full((3, dim), np.nan, np.float32)
    assert widen(rows[6:0:-2], out=into) is into  # rows that do not lie side by side
    np.testing.assert_array_equal(into, rows[6:0:-2])
    assert widen(rows[:0]).shape == (0, dim)


@pytest.mark.parametrize("first", [0, 7])
def test_ids_without_gaps_are_found_as_others_are(tmp_path, first):
    ids = np.arange(first, first + 50)
    file = write(tmp_path / "v.arrow", ids, np.zeros((50, 2), np.float16), 50)
    asked = np.array([first, first + 49, first + 50, first - 1, -(2**63), 2**63 - 1])
    assert file.contains(asked).tolist() == [True, True, False, False, False, False]
    assert file.rows_of(ids[::-1]).tolist() == list(range(49, -1, -1))
    with pytest.raises(KeyError, match=f"picture {first + 50} "):
        file.rows_of(asked[:3])


@given(
    first=st.integers(0, 9),
    sizes=st.lists(st.booleans(), max_size=12),
    wanted=st.lists(st.integers(-3, 30), max_size=9),
)
def test_places_are_those_of_a_search_by_halves(first, sizes, wanted):
    rising = first + np.cumsum([1 + is_gap for is_gap in sizes], dtype=np.int64)
    places, found = locate(rising, np.array(wanted, np.int64))
    assert places.tolist() == np.searchsorted(rising, wanted).tolist()
    assert found.tolist() == np.isin(wanted, rising).tolist()
