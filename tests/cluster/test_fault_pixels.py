"""The pixel cache killed at every change of the disk, on a full disk, and over damaged files."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster import pixels_job
from cluster.catalog import Catalog
from cluster.pixels_job import PixelCache, build_pixels
from cluster.scan_job import ScanConfig, scan
from cluster.workspace import Workspace
from encoders.preprocess import PreprocessConfig
from index.artifact import MissingArtifactError

pytestmark = pytest.mark.usefixtures("no_fsync")

SIZE, SHARD_ROWS = 8, 64
BUILD = f"""
    import io

    from rich.console import Console

    from cluster import pixels_job
    from cluster.catalog import Catalog
    from cluster.context import Context
    from cluster.workspace import Workspace
    from encoders.preprocess import PreprocessConfig

    pixels_job.MAX_SHARD_ROWS = {SHARD_ROWS}

    def run(home):
        context = Context(Workspace.at(home), console=Console(file=io.StringIO()))
        catalog = Catalog.open(context.workspace.folder("corpora", "mine"))
        pixels_job.build_pixels(
            catalog, PreprocessConfig(size={SIZE}), context, error_budget=0.5
        )
"""


@pytest.fixture
def build_here(shards_here: str, quiet: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Builds without Ray."""
    monkeypatch.setattr(pixels_job, "MAX_SHARD_ROWS", SHARD_ROWS)

    def build(home: Path) -> PixelCache:
        context = quiet(Workspace.at(home))
        catalog = Catalog.open(context.workspace.folder("corpora", "mine"))
        return build_pixels(catalog, PreprocessConfig(size=SIZE), context, error_budget=0.5)

    return build


@pytest.fixture
def home(tmp_path: Path, pictures: Any, quiet: Any, build_here: Any) -> Path:
    """A workspace with the pixels of 70 pictures, in two shards; and of two more, none yet."""
    folder = pictures(72, size=16, formats=("png",))
    context = quiet(Workspace.at(tmp_path / "workspace"))
    later = sorted(folder.rglob("*.png"))[70:]
    for path in later:
        path.rename(path.with_suffix(".later"))
    scan(ScanConfig(source=str(folder), corpus="mine"), context)
    build_here(tmp_path / "workspace")
    for path in later:
        path.with_suffix(".later").rename(path)
    scan(ScanConfig(source=str(folder), corpus="mine"), context)
    return tmp_path / "workspace"


def folder_of(home: Path) -> Path:
    return home / "pixels" / f"mine-{SIZE}"


def answers(home: Path, verify: Any = "full") -> list[Any]:
    """All ids and pixels, as they are read for a batch, and the counts."""
    workspace = Workspace.at(home)
    cache = PixelCache.open(workspace.folder("pixels", f"mine-{SIZE}"), verify=verify)
    pixels = cache.read(np.arange(len(cache)))
    return [cache.id, cache.ids.tolist(), hashlib.sha256(pixels.tobytes()).digest(), cache.failed]


@pytest.mark.slow
def test_whatever_is_killed_old_or_new_pixels_are_there_and_the_next_run_finishes(
    home: Path, forge: Any, build_here: Any, shards_here: str
) -> None:
    before = answers(home)
    whole = shutil.copytree(home, home.with_name("whole"))
    build_here(whole)
    after = answers(whole)
    assert (len(before[1]), len(after[1])) == (70, 72)
    files = {path.name for path in folder_of(whole).rglob("*")}

    def check(home: Path, is_done: bool) -> None:
        assert answers(home) in ([after] if is_done else [before, after])
        if is_done:
            assert {path.name for path in folder_of(home).rglob("*")} == files

    assert forge.walk(shards_here + BUILD, home, check) > 15


@pytest.mark.slow
def test_a_first_build_that_is_killed_leaves_none_or_all(
    home: Path, forge: Any, build_here: Any, shards_here: str
) -> None:
    build_here(home)
    oracle = answers(home)
    shutil.rmtree(folder_of(home))

    def check(home: Path, is_done: bool) -> None:
        try:
            assert answers(home) == oracle
        except MissingArtifactError:
            assert not is_done

    assert forge.walk(shards_here + BUILD, home, check) > 15


def test_all_damage_is_noticed_before_a_pixel_is_read(home: Path, assert_noticed: Any) -> None:
    """Commit records are read by the next build alone."""
    refused = assert_noticed(folder_of(home), lambda: answers(home))
    assert sorted(Path(name).suffix for name in refused) == [".arrow", ".arrow", ".json"]
    assert "pixels.json" in refused


def test_the_next_build_mends_all_damage_and_leaves_nothing_else(
    home: Path, every_damage: Any, build_here: Any, caplog: pytest.LogCaptureFixture
) -> None:
    build_here(home)
    oracle = answers(home)
    files = {path.name for path in folder_of(home).rglob("*")}
    copy, kinds = home.with_name("copy"), set()
    for path, damage in every_damage(folder_of(home)):
        shutil.rmtree(copy, ignore_errors=True)
        assert build_here(shutil.copytree(home, copy)).id == oracle[0]
        assert answers(copy) == oracle, f"{path}, {damage}"
        assert {path.name for path in folder_of(copy).rglob("*")} >= files - {path.name}
        kinds.add(path.suffix)
    assert kinds == {".arrow", ".json"}
