"""A pixel cache of very many parts: their order is that of ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cluster.catalog import Catalog
from cluster.context import Context
from cluster.pixels_job import PixelCache, PixelWork
from cluster.plan import Shard, ShardRow
from cluster.where import Profile
from index.artifact import CorruptArtifactError, publish
from index.folder import Folder

SIZE = 16


def pixels_of(folder: Folder, context: Context, catalog: Catalog, numbers: list[int]) -> None:
    """A published cache of the first pictures, each alone in the shard of this number."""
    arguments = (context.workspace.location, folder.path.rpartition("/")[2], {"size": SIZE})
    work = PixelWork(*arguments, Profile(cpus_per_actor=1))
    rows = catalog.rows(range(len(numbers)))
    files: dict[str, Any] = {}
    for number, row in zip(numbers, rows, strict=True):
        shard = Shard.of(number, "k", [ShardRow(row.id, row.uri, row.bytes, row.mtime_ns)])
        files |= work(shard)["files"]
    body = {"id": "i", "plan": "p", "config": {"size": SIZE}, "rows": {"ok": len(numbers)}}
    publish(folder, "pixels", body, files)


def test_pixels_of_more_than_a_hundred_thousand_shards_are_in_the_order_of_their_ids(
    context: Context, catalog: Catalog
) -> None:
    few, many = (context.workspace.folder("pixels", name) for name in ("few", "many"))
    pixels_of(few, context, catalog, [0, 1, 2])
    pixels_of(many, context, catalog, [10_000, 10_001, 100_000])
    expected, found = PixelCache.open(few), PixelCache.open(many)
    assert found.ids.tolist() == [0, 1, 2]
    places = np.arange(3)
    np.testing.assert_array_equal(found.read(places), expected.read(places))


@pytest.mark.parametrize("numbers", [[1, 0], [3, 3]])
def test_pixels_whose_ids_do_not_rise_are_damaged(
    context: Context, catalog: Catalog, numbers: list[int]
) -> None:
    folder = context.workspace.folder("pixels", "mixed")
    pixels_of(folder, context, catalog, numbers)
    if numbers == [3, 3]:  # the same picture twice
        (file, *_) = [name for name in (folder / "shards").names() if name.endswith(".arrow")]
        folder.write_atomic(f"shards/00004-{file}", folder.read_bytes(f"shards/{file}"))
        body = {"id": "i", "plan": "p", "config": {"size": SIZE}, "rows": {"ok": 2}}
        publish(folder, "pixels", body, [f"shards/{file}", f"shards/00004-{file}"])
    with pytest.raises(CorruptArtifactError, match="its ids do not rise"):
        PixelCache.open(folder)
