"""Exports killed at every change of the disk, on a full disk, and damaged afterwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster import export_job
from cluster.export_job import ExportConfig, export
from cluster.import_job import ImportConfig, import_encoder
from cluster.workspace import Workspace
from encoders.preprocess import PreprocessConfig
from index.artifact import CorruptArtifactError, open_door
from index.folder import Folder

pytestmark = pytest.mark.usefixtures("no_fsync")

EXPORT = """
    import io
    from pathlib import Path

    import torch
    from rich.console import Console

    from cluster import export_job
    from cluster.context import Context
    from cluster.workspace import Workspace

    torch.set_num_threads(1)

    def run(home):
        # What it has to answer lies there: torch would take seconds to start, at each of the steps.
        program = f"import numpy as np\\nvectors = iter(np.load('{home}/vectors.npy'))\\n"
        program += "def embed(pixels): return np.stack([next(vectors) for _ in pixels])\\n"
        export_job.usage = lambda *_: program
        context = Context(Workspace.at(f"{home}/workspace"), console=Console(file=io.StringIO()))
        out = Path(home, "exported")
        config = export_job.ExportConfig(encoder="tiny", to="safetensors", out=out)
        export_job.export(config, context)
"""
FILES = ["README.md", "export.json", "model.safetensors"]


@pytest.fixture
def home(tmp_path: Path, make_encoder: Any) -> Path:
    """A workspace with an encoder, and its vectors of the pictures that an export is checked on."""
    home = tmp_path / "home"
    encoder = make_encoder(Workspace.at(home / "workspace"))
    config = ExportConfig(encoder="tiny", to="safetensors", out=home / "exported")
    workspace = Workspace.at(home / "workspace")
    _, pixels = export_job._pictures(config, workspace, PreprocessConfig(size=16))
    np.save(home / "vectors.npy", encoder.embed(pixels))
    return home


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_a_killed_export_is_there_or_not_and_the_next_one_clears_what_it_left(
    home: Path, forge: Any
) -> None:
    before = names(home)
    left = set()

    def check(home: Path, is_done: bool) -> None:
        found = names(home)
        left.update(set(found) - {"exported", *before})
        if is_done:
            assert found == sorted(["exported", *before])
        if "exported" in found:
            door = open_door(Folder.at(home / "exported"), "export")
            assert names(home / "exported") == FILES
            assert door["lowest_cosine"] > 0.9999
        else:
            assert not is_done

    assert forge.walk(EXPORT, home, check) > 15
    assert left == {".exported.export"}


@pytest.fixture
def exported(home: Path, quiet: Any, monkeypatch: pytest.MonkeyPatch) -> ExportConfig:
    """An export that is there; others are not run again to check them."""
    monkeypatch.setattr(export_job, "_lowest_cosine", lambda *_: 1.0)
    config = ExportConfig(encoder="tiny", to="safetensors", out=home / "exported")
    export(config, quiet(Workspace.at(home / "workspace")))
    return config


def test_all_damage_to_an_export_is_noticed_by_the_next_one(
    home: Path, exported: ExportConfig, quiet: Any, assert_noticed: Any
) -> None:
    context = quiet(Workspace.at(home / "workspace"))
    assert assert_noticed(home / "exported", lambda: export(exported, context)) == set(FILES)


def test_weights_that_were_damaged_since_their_export_are_not_imported(
    home: Path, exported: ExportConfig, quiet: Any, every_damage: Any
) -> None:
    """Alone, without the door beside them, they are a file like any other."""
    context = quiet(Workspace.at(home / "workspace"))
    source = home / "exported" / "model.safetensors"
    config = ImportConfig(source=str(source), name="back")
    for path, damage in every_damage(home / "exported", removed=False):
        if path.name == "README.md":
            continue
        with pytest.raises(CorruptArtifactError):
            import_encoder(config, context)
        assert context.workspace.names("encoders") == ["tiny"], damage
    import_encoder(config, context)
    (home / "exported" / "export.json").unlink()
    again = import_encoder(config, context)
    assert again["note"] == "was there already, unchanged"


@pytest.mark.parametrize("to", ["exported", "other"])
def test_what_a_killed_export_left_is_cleared_by_the_next_one_of_that_name(
    home: Path, exported: ExportConfig, quiet: Any, to: str
) -> None:
    left = home / f".{to}.export" / "export" / "model.safetensors"
    left.parent.mkdir(parents=True)
    left.touch()
    export(replace(exported, out=home / to), quiet(Workspace.at(home / "workspace")))
    assert names(home) == sorted({"exported", to, "vectors.npy", "workspace"})


def test_two_exports_to_one_place_at_once_are_refused_and_the_first_goes_on(
    home: Path, exported: ExportConfig, quiet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = quiet(Workspace.at(home / "workspace"))
    config = replace(exported, out=home / "other")

    def meanwhile(*_: Any) -> float:
        with pytest.raises(ValueError, match=r"\.other\.export: another process is exporting"):
            export(config, context)
        return 1.0

    monkeypatch.setattr(export_job, "_lowest_cosine", meanwhile)
    export(config, context)
    assert names(home / "other") == FILES
