"""Pictures of tables are read once, however many threads and tasks decode them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster import embed_decode, picture_bytes, pixels_job, read_ahead
from cluster.decode_limit import DecodeLimit
from cluster.decode_tasks import TaskDecoder
from cluster.embed_decode import DecodeForm, ThreadDecoder
from cluster.embed_work import EmbedWork
from cluster.picture_uri import place_of
from cluster.pixels_job import PixelWork
from cluster.plan import Shard, ShardRow, plan_shards
from cluster.read_ahead import in_pieces
from cluster.where import Profile
from encoders.picture import to_square
from encoders.preprocess import PreprocessConfig

ROWS = 640
SQUARE = PreprocessConfig(size=16)
FORM = DecodeForm(preprocess=SQUARE, thumbnail_edge=16)


@pytest.fixture
def shard(tmp_path: Path, scan_here: Any, make_png: Any) -> Shard:
    """Pictures of one Parquet file with a single row group, as pyarrow writes it by itself."""
    table = pa.table({"image": pa.array([make_png(seed) for seed in range(ROWS)], pa.binary())})
    pq.write_table(table, tmp_path / "x.parquet")
    _, catalog = scan_here(tmp_path / "x.parquet")
    (shard,) = plan_shards(catalog, key="k", shard_rows=1000)
    return shard


@pytest.fixture
def reading(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the file was opened since it was scanned, and rows read; decoding takes a while."""
    done: Counter[str] = Counter()
    unwatched = picture_bytes.open_parquet

    def watched(*args: Any, **options: Any) -> Iterator[Any]:
        done["opened"] += 1
        for first, batch in unwatched(*args, **options):
            done["rows"] += len(batch)
            yield first, batch

    def slow(*args: Any) -> Any:
        time.sleep(0.001)
        return to_square(*args)

    monkeypatch.setattr(picture_bytes, "open_parquet", watched)
    for module in (embed_decode, pixels_job):
        monkeypatch.setattr(module, "to_square", slow)
    return done


ONCE = {"opened": 1, "rows": ROWS}


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_that_decode_and_encode_have_each_row_read_once(
    threads: int, library: Any, shard: Shard, reading: Counter[str]
) -> None:
    work = EmbedWork(
        location=library.location,
        name="set",
        encoder="tiny",
        encoder_id=library.workspace.encoder_id("tiny"),
        profile=Profile(cpus_per_actor=threads),
        layer="backbone",
        thumbnail_edge=16,
        decode_limit_s=60.0,
    )
    assert work(shard)["ok"] == ROWS
    assert reading == ONCE


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_that_decode_for_a_gpu_have_each_row_read_once(
    threads: int, shard: Shard, reading: Counter[str]
) -> None:
    decoder = ThreadDecoder(FORM, DecodeLimit(), threads, 128)
    batches = list(decoder.batches(shard.rows, frozenset()))
    assert [len(batch) for batch in batches] == [128] * 5
    assert {item.status for batch in batches for item in batch} == {"ok"}
    assert reading == ONCE


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_that_decode_pixels_have_each_row_read_once(
    threads: int,
    library: Any,
    shard: Shard,
    reading: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(picture_bytes, "BATCH_BYTES", 1)  # as if pictures were large
    profile = Profile(cpus_per_actor=threads)
    work = PixelWork(library.location, "pixels", SQUARE.square(), profile)
    assert work(shard)["ok"] == ROWS
    assert reading == ONCE


@pytest.mark.ray
def test_tasks_that_decode_are_given_rows_that_were_read_once(
    shard: Shard, reading: Counter[str], local_ray: Any
) -> None:
    tasks = TaskDecoder(FORM, 60.0, 3, 128, None)
    found = [item for batch in tasks.batches(shard.rows, frozenset()) for item in batch]
    assert {item.status for item in found} == {"ok"}
    assert reading == ONCE


def test_what_threads_find_is_the_same_whether_a_row_lies_in_a_table_or_not(
    tmp_path: Path, shard: Shard, make_png: Any
) -> None:
    files = []
    for row in shard.rows[:40]:
        path = tmp_path / f"{row.id}.png"
        path.write_bytes(make_png(row.id))
        found = path.stat()
        files.append(ShardRow(row.id, str(path), found.st_size, found.st_mtime_ns))

    def decoded(rows: Any) -> list[Any]:
        batches = ThreadDecoder(FORM, DecodeLimit(), 2, 32).batches(rows, frozenset([3]))
        return [
            [(item.status, item.content_hash, item.thumbnail) for item in batch]
            for batch in batches
        ]

    expected = decoded(files)
    assert expected[0][3][0] == "crashed"
    assert decoded(shard.rows[:40]) == expected
    mixed = [files[i] if i % 3 else shard.rows[i] for i in range(40)]
    assert decoded(mixed) == expected


def test_pieces_of_large_rows_are_small_and_end_where_batches_do() -> None:
    table, mib = "file:///a.parquet#parquet={}&column=image", 1 << 20
    rows = [ShardRow(i, table.format(i), 3 * mib, 0) for i in range(50)]
    pieces = list(in_pieces(rows, 32))
    assert [row for piece in pieces for row in piece] == rows
    assert max(sum(row.bytes for row in piece) for piece in pieces) <= read_ahead.PIECE_BYTES
    assert 32 in [piece[0].id for piece in pieces]
    huge = [ShardRow(i, table.format(i), 100 * mib, 0) for i in range(3)]
    assert [len(piece) for piece in in_pieces(huge, 32)] == [1, 1, 1]
    # Files are read one by one as they are decoded.
    files = [ShardRow(i, f"/{i}.png", 100 * mib, 0) for i in range(50)]
    assert [len(piece) for piece in in_pieces(files, 32)] == [32, 18]


def test_no_more_bytes_lie_ready_than_a_few_pieces_for_each_thread(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many rows as pieces of 8 MiB would hold, were each of these 1 MiB."""
    largest = [ShardRow(row.id, row.uri, 1 << 20, row.mtime_ns) for row in shard.rows]
    read, decoded = [0], [0]
    most_ahead = [0]

    def reading(row: ShardRow) -> Any:
        read[0] += 1
        most_ahead[0] = max(most_ahead[0], read[0] - decoded[0])
        return read_ahead.Read("ok", b"words", 0.0)

    def decoding(*_: Any, **__: Any) -> Any:
        decoded[0] += 1
        raise embed_decode.PictureError("unreadable", "words")

    monkeypatch.setattr(read_ahead, "timed_read", reading)
    monkeypatch.setattr(embed_decode, "open_picture", decoding)
    found = ThreadDecoder(FORM, DecodeLimit(), 2, 32).batches(largest, frozenset())
    assert sum(map(len, found)) == ROWS
    assert most_ahead[0] <= 8 * (2 * 2 + 2)


def test_batches_of_large_rows_are_few_rows(tmp_path: Path) -> None:
    small, large = [b"x" * 100] * 100, [bytes(1 << 20)] * 40

    def batches(values: list[bytes]) -> list[int]:
        path = tmp_path / "x.parquet"
        pq.write_table(pa.table({"image": values}), path, use_dictionary=False)
        return [len(batch) for _, batch in picture_bytes.open_parquet(place_of(str(path)), None)]

    assert batches(small) == [32, 32, 32, 4]
    assert max(batches(large)) * (1 << 20) <= picture_bytes.BATCH_BYTES
    assert sum(batches(large)) == 40


def test_row_groups_that_others_embed_are_passed_over(
    tmp_path: Path, scan_here: Any, make_png: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [make_png(seed) for seed in range(600)]
    table = pa.table({"image": pa.array(pictures, pa.binary())})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=20)
    _, catalog = scan_here(tmp_path / "x.parquet")
    num_read, unwatched = [0], picture_bytes.open_parquet

    def watched(*args: Any, **options: Any) -> Iterator[Any]:
        for first, batch in unwatched(*args, **options):
            num_read[0] += len(batch)
            yield first, batch

    monkeypatch.setattr(picture_bytes, "open_parquet", watched)
    shards = plan_shards(catalog, key="k", shard_rows=30)
    mine = [row for shard in shards[::7] for row in shard.rows]
    assert [read_ahead.timed_read(row).data for row in mine] == [pictures[row.id] for row in mine]
    # Of each of the three shards also what is left of a row group and a batch.
    assert len(mine) == 90
    assert num_read[0] <= len(mine) + 3 * (20 + 32)
