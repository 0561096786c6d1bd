"""Decoding as a stage of its own: when it is, and that it changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.decode_limit import DecodeLimit
from cluster.decode_tasks import TaskDecoder, decode_tasks
from cluster.embed_decode import Decoded, DecodeForm, ThreadDecoder, in_batches
from cluster.embed_job import EmbedConfig, embed
from cluster.embed_work import EmbedWork, pass_rows
from cluster.plan import ShardRow, plan_shards
from cluster.read_ahead import in_order
from cluster.where import Profile, Where, load_profile
from encoders.preprocess import PreprocessConfig

FORM = DecodeForm(preprocess=PreprocessConfig(size=16), thumbnail_edge=16)


@pytest.mark.parametrize(
    ("profile", "cpus", "tasks"),
    [
        (Profile(gpus_per_actor=1, cpus_per_actor=2), 64, 16),
        (Profile(gpus_per_actor=1, cpus_per_actor=2), 8, 6),
        (Profile(gpus_per_actor=1, cpus_per_actor=2, embed_actors=3), 16, 3),
        (Profile(gpus_per_actor=0.5, cpus_per_actor=2), 64, 8),
        (Profile(gpus_per_actor=1, cpus_per_actor=2, data_pool="a", decode_pool="b"), 6, 6),
        (Profile(gpus_per_actor=1, cpus_per_actor=2, decode_pool="b"), 6, 4),
        # Enough beside the GPU; too few elsewhere to be worth the way; no GPU; as it was asked for.
        (Profile(gpus_per_actor=1, cpus_per_actor=16), 64, 0),
        (Profile(gpus_per_actor=0.25, cpus_per_actor=4), 64, 0),
        (Profile(gpus_per_actor=1, cpus_per_actor=4), 8, 0),
        (Profile(cpus_per_actor=2), 64, 0),
        (Profile(cpus_per_actor=2, decode_tasks=5), 4, 5),
        (Profile(gpus_per_actor=1, cpus_per_actor=2, decode_tasks=0), 64, 0),
    ],
)
def test_decoding_is_a_stage_of_its_own_where_a_gpu_would_wait(
    profile: Profile, cpus: float, tasks: int
) -> None:
    assert decode_tasks(profile, cpus) == tasks


def test_a_profile_says_how_many_tasks_decode_or_leaves_it_open(tmp_path: Path) -> None:
    file = tmp_path / "where.yaml"
    for text, expected in (("3", 3), ("null", None), ("0", 0)):
        file.write_text(f"metadata: {{lookalike: {{profiles: {{p: {{decode_tasks: {text}}}}}}}}}")
        assert load_profile("p", file).decode_tasks == expected
    file.write_text("metadata: {lookalike: {profiles: {p: {decode_tasks: some}}}}")
    with pytest.raises(ValueError, match="decode_tasks 'some': has to be a whole number"):
        load_profile("p", file)
    with pytest.raises(ValueError, match="decode_tasks -1: at least 0"):
        Profile(decode_tasks=-1)


def test_things_under_way_come_out_in_order_and_no_more_than_allowed_are_begun() -> None:
    begun: list[int] = []

    def begin(piece: int) -> int:
        begun.append(piece)
        return -piece

    found = in_order(begin, lambda piece, result: (piece, result), iter(range(6)), 2)
    assert next(found) == (0, 0)
    assert begun == [0, 1, 2]
    assert list(found) == [(n, -n) for n in range(1, 6)]
    items = [Decoded(str(n)) for n in range(7)]
    batches = in_batches([items[0:2], items[2:4], items[4:6], items[6:]], 4)
    assert [[item.status for item in batch] for batch in batches] == [list("0123"), list("456")]


@pytest.mark.parametrize("size", [8, 16, 32, 48, 96, 224, 512])
def test_a_pass_of_the_network_divides_into_whole_batches(size: int) -> None:
    rows = pass_rows(size, on_gpu=False)
    assert 8 <= rows <= 128
    assert max(32, rows) % rows == 0
    assert pass_rows(size, on_gpu=True) == 128


def rows_of(folder: Path, make_png: Any, num: int) -> list[ShardRow]:
    folder.mkdir()
    rows = []
    for number in range(num):
        path = folder / f"{number}.png"
        path.write_bytes(make_png(number) if number % 5 else b"words")
        found = path.stat()
        rows.append(ShardRow(number, str(path), found.st_size, found.st_mtime_ns))
    return rows


def without_times(batches: Iterator[list[Decoded]]) -> list[list[Any]]:
    return [
        [
            (
                item.status,
                item.content_hash,
                item.thumbnail,
                None if item.square is None else item.square.tobytes(),
            )
            for item in batch
        ]
        for batch in batches
    ]


@pytest.mark.ray
def test_tasks_and_threads_decode_the_same_in_the_same_batches(
    tmp_path: Path, make_png: Any, local_ray: Any
) -> None:
    rows = rows_of(tmp_path / "in", make_png, 150)
    threads = ThreadDecoder(FORM, DecodeLimit(), 2, 64)
    tasks = TaskDecoder(FORM, 60.0, 2, 64, None)
    expected = without_times(threads.batches(rows, frozenset([7])))
    assert [len(batch) for batch in expected] == [64, 64, 22]
    assert expected[0][7][0] == "crashed"
    assert without_times(tasks.batches(rows, frozenset([7]))) == expected


@pytest.mark.ray
def test_a_task_that_never_ends_costs_its_own_picture_alone(
    tmp_path: Path, make_png: Any, endless_jpeg: bytes, local_ray: Any
) -> None:
    rows = rows_of(tmp_path / "in", make_png, 70)
    path = Path(rows[66].uri)
    path.write_bytes(endless_jpeg)
    found = path.stat()
    rows[66] = ShardRow(66, str(path), found.st_size, found.st_mtime_ns)
    ended = without_times(TaskDecoder(FORM, 3.0, 2, 256, None).batches(rows, frozenset()))
    expected = ThreadDecoder(FORM, DecodeLimit(), 2, 256).batches(rows, frozenset([66]))
    assert ended == without_times(expected)
    assert ended[0][66][0] == "crashed"


@pytest.mark.ray
@pytest.mark.parametrize("width", [1, 2])
def test_vectors_are_the_same_bit_for_bit_whoever_decodes(
    library: Any, local_ray: Any, width: int
) -> None:
    shards = plan_shards(library.catalog, key="k", shard_rows=1000)

    def vectors(**fields: Any) -> dict[str, Any]:
        work = EmbedWork(
            location=library.location,
            name="set",
            encoder="tiny",
            encoder_id=library.workspace.encoder_id("tiny"),
            profile=Profile(**fields),
            layer="backbone",
            thumbnail_edge=64,
            decode_limit_s=60.0,
        )
        return work(shards[0])["files"]

    alone = vectors(cpus_per_actor=1)
    assert vectors(cpus_per_actor=2) == alone
    assert vectors(cpus_per_actor=width, decode_tasks=width) == alone


@pytest.mark.ray
def test_the_verb_decodes_in_tasks_where_its_profile_says_so(
    library: Any, tmp_path: Path, local_ray: Any
) -> None:
    from dataclasses import replace

    file = tmp_path / "where.yaml"
    file.write_text("metadata: {lookalike: {profiles: {p: {cpus_per_actor: 1, decode_tasks: 1}}}}")
    asked = replace(library.context, where=Where(profile="p", ray_config=file))
    apart = embed(EmbedConfig(corpus="digits", encoder="tiny", name="apart"), asked)
    here = embed(EmbedConfig(corpus="digits", encoder="tiny", name="here"), library.context)
    assert apart["embeddings_id"] == here["embeddings_id"]
    assert apart["pictures"] == {"ok": 30}
