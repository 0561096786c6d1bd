"""export: an encoder as files that other programs run without lookalike.

1. Write the files into a hidden folder beside the one asked for. 2. Run the Python of their card
there, in a process of its own, on real pictures; its vectors have to be the encoder's. 3. Only then
publish them with the card, by one rename. What a killed export leaves, the next one clears.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cluster.catalog import open_corpus
from cluster.context import Context
from cluster.shards import read_picture
from cluster.workspace import Workspace, check_name
from encoders.encoder import Encoder, Layer
from encoders.export import ExportFormat, export_files
from encoders.export_card import CARD_FILE, CardNotes, export_card, usage
from encoders.picture import to_square
from encoders.preprocess import PreprocessConfig
from index.artifact import ArtifactError, MissingArtifactError, library_versions, open_door, publish
from index.folder import Folder
from index.lock import sole_writer

__all__ = ["ExportConfig", "export"]

MIN_COSINE = 0.9999
"""Between a vector of the encoder and the export's; float32 rounding stays far above it."""
NUM_PICTURES = 30
"""Pictures of a corpus that an export is checked on, beside two photographs."""
TIMEOUT_S = 600
NEW = "export"
"""Name of the finished folder beside its check, before it gets the one asked for."""

CHECK = """
import sys
import numpy as np

asked, answered = sys.argv[1:]
pixels = np.load(asked)
# One picture and then the rest: the number must not matter.
np.save(answered, np.concatenate([embed(pixels[:1]), embed(pixels[1:])]))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """Write an encoder as files that other programs run without lookalike."""

    encoder: str
    """Name of the encoder."""
    to: ExportFormat
    """onnx and torchscript hold the whole way from pixels; safetensors and timm hold weights."""
    out: Path
    """Folder to make; if it is there, it has to be empty or hold this very export."""
    layer: Layer = "backbone"
    """Whose vectors come out: backbone for search and transfer, projector for near copies."""
    corpus: str | None = None
    """Corpus whose pictures check the export, beside two photographs; the first there is."""

    def __post_init__(self) -> None:
        """Check names."""
        check_name(self.encoder, what="encoder")
        if self.corpus is not None:
            check_name(self.corpus, what="corpus")


def export(config: ExportConfig, context: Context) -> dict[str, Any]:
    """Export, check and publish; a folder that holds this export already is left as it is.

    Raises:
        MissingArtifactError: there is no such encoder or corpus.
        FileNotFoundError: there is no folder to make ``out`` in.
        FileExistsError: ``out`` holds something else.
        ValueError: the format cannot hold this encoder or needs a package that is missing, another
            process exports to ``out``, or the export does not give the encoder's vectors; nothing
            is written then.
    """
    encoder = context.workspace.open_encoder(config.encoder)
    encoder.dim(config.layer)  # refuses a layer that it lacks, before anything is looked at
    out = config.out.expanduser().resolve()
    config = replace(config, out=out)
    known = _published(config, encoder, out)
    if known is None:
        with _beside(out) as scratch:
            door = _export(config, encoder, context, scratch)
            _move(scratch / NEW, out)
        return _report(config, door)
    if _hidden(out).exists():
        # One that was killed at its very end has left it; one that is there now clears it itself.
        with contextlib.suppress(ValueError), _beside(out):
            pass
    return _report(config, known, note="was there already, unchanged")


def _export(
    config: ExportConfig, encoder: Encoder, context: Context, scratch: Path
) -> dict[str, Any]:
    """Make and check the export as the folder `NEW` of a scratch folder; returns its door."""
    workspace = context.workspace
    source, pixels = _pictures(config, workspace, encoder.config.preprocess)
    context.say(f"export: writing {config.to}, then running it on {len(pixels)} pictures")
    files = export_files(encoder, config.to, config.layer)
    cosine = _lowest_cosine(files, encoder, pixels, config, scratch)
    checked = f"On {len(pixels)} pictures ({source}) the lowest cosine to lookalike's own vectors"
    notes = CardNotes(
        name=config.encoder,
        checked=f"{checked} was {cosine:.7f}.",
        origin=_origin(workspace, config.encoder),
    )
    files[CARD_FILE] = export_card(encoder, config.to, config.layer, notes).encode()
    folder = Folder.at(scratch / NEW)
    for name, data in files.items():
        folder.write_atomic(name, data)
    body = {
        "id": encoder.encoder_id,
        "config": {**asdict(config), "out": config.out.name},
        "to": config.to,
        "layer": config.layer,
        "parents": {"encoder_id": encoder.encoder_id, "encoder": config.encoder},
        "rows": {"checked": len(pixels)},
        "checked_on": source,
        "lowest_cosine": cosine,
        "versions": library_versions("torch", "torchvision", "onnx", "onnxruntime", "timm"),
    }
    return publish(folder, "export", body, list(files))


def _hidden(out: Path) -> Path:
    return out.with_name(f".{out.name}.export")


@contextlib.contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A hidden folder beside ``out`` for one process, empty but for its lock; gone afterwards."""
    scratch = _hidden(out)
    with sole_writer(Folder.at(scratch), f"exporting to {out.name}"):
        try:
            for left in scratch.iterdir():
                if left.is_dir():
                    shutil.rmtree(left)
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _move(folder: Path, out: Path) -> None:
    try:
        folder.rename(out)
    except OSError as error:
        if not out.exists():
            raise
        raise _occupied(out, "files that were put there in the meantime") from error


def _published(config: ExportConfig, encoder: Encoder, out: Path) -> dict[str, Any] | None:
    """The door of this export where it is done already; refuses a folder of anything else."""
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent}: no such folder. Make it, or choose another --out.")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    found = "other files"
    if out.is_dir():
        try:
            door = open_door(Folder.at(out), "export")
        except MissingArtifactError:
            door = {}
        except ArtifactError as error:
            raise _occupied(out, f"a damaged export ({error})") from error
        same = {"id": encoder.encoder_id, "to": config.to, "layer": config.layer}
        if same.items() <= door.items():
            return door
        if door:
            found = f"the {door['to']} export of encoder {door['parents']['encoder']!r} ("
            found += f"{door['layer']}, {door['id'][:12]})"
    raise _occupied(out, found)


def _occupied(out: Path, found: str) -> FileExistsError:
    return FileExistsError(
        f"{out}: holds {found}. An export makes its folder, or takes an empty one, and overwrites "
        "nothing. Choose another --out, or remove it."
    )


def _pictures(
    config: ExportConfig, workspace: Workspace, preprocess: PreprocessConfig
) -> tuple[str, NDArray[np.uint8]]:
    """What the pictures are in words, and their squares: two photographs, then the corpus's."""
    from sklearn.datasets import load_sample_images

    squares = [
        to_square(Image.fromarray(photo), preprocess) for photo in load_sample_images().images
    ]
    corpus = config.corpus or next(iter(workspace.published("corpora", "corpus.json")), None)
    if corpus is None:
        return "photographs that scikit-learn brings", np.stack(squares)
    catalog = open_corpus(workspace, corpus)
    ids = catalog.ok["id"].to_numpy()
    for row in catalog.rows(ids[:: max(1, len(ids) // NUM_PICTURES)][:NUM_PICTURES]):
        found = read_picture(row, decode_edge=preprocess.least_edge)
        if found.image is not None:
            squares.append(to_square(found.image, preprocess))
    return f"corpus {corpus}, and two photographs", np.stack(squares)


def _lowest_cosine(
    files: dict[str, bytes],
    encoder: Encoder,
    pixels: NDArray[np.uint8],
    config: ExportConfig,
    scratch: Path,
) -> float:
    """Lowest cosine between the encoder's vectors and those that the card's own lines give."""
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        folder = Path(place, "export")
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        asked, answered = Path(place, "pixels.npy"), Path(place, "vectors.npy")
        np.save(asked, pixels)
        program = usage(encoder, config.to, config.layer) + CHECK
        command = [sys.executable, "-P", "-W", "ignore", "-c", program, str(asked), str(answered)]
        ran = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        if ran.returncode:
            reason = ran.stderr.strip().splitlines()[-1:] or [f"exit status {ran.returncode}"]
            raise _refused(config, f"does not run ({reason[0]})")
        vectors: NDArray[np.float32] = np.load(answered, allow_pickle=False)
    expected = encoder.embed(pixels, config.layer)
    if vectors.shape != expected.shape:
        raise _refused(config, f"gives {list(vectors.shape)} numbers, not {list(expected.shape)}")
    lowest = float((vectors.astype(np.float64) * expected).sum(axis=1).min())
    if not lowest > MIN_COSINE:  # NaN included
        raise _refused(config, f"gives other vectors (lowest cosine {lowest:.6f})")
    return lowest


def _refused(config: ExportConfig, found: str) -> ValueError:
    return ValueError(
        f"encoder {config.encoder!r} as {config.to}: the export {found}; on every picture its "
        f"cosine to the encoder's vector has to be above {MIN_COSINE}. Nothing was written. "
        "Choose another --to, and report this."
    )


def _origin(workspace: Workspace, name: str) -> dict[str, str]:
    """Rows of the card's table on where the weights come from."""
    door = open_door(
        workspace.folder("encoders", name), "encoder", verify="sizes", door="card.json"
    )
    rows = {}
    if imported := door.get("imported"):
        rows["imported from"] = ", ".join(f"{key} {value}" for key, value in imported.items())
    if training := door.get("training"):
        method = training["recipe"]["method"].get("name", "pretraining")  # early cards lack it
        rows["trained by"] = (
            f"{method}, {training['steps']:,} steps on {training['num_pictures']:,} pictures"
        )
    return rows


def _report(config: ExportConfig, door: dict[str, Any], note: str | None = None) -> dict[str, Any]:
    return {
        "encoder": config.encoder,
        "encoder_id": door["id"],
        "to": config.to,
        "layer": config.layer,
        "out": str(config.out),
        "files": sorted(door["files"]),
        "bytes": sum(record["bytes"] for record in door["files"].values()),
        "checked_on": door["checked_on"],
        "pictures": door["rows"]["checked"],
        "lowest_cosine": door["lowest_cosine"],
        "note": note,
    }
