"""export: an encoder as files that other programs run without lookalike.

1. Write the files, and a card with the Python that uses them, into a scratch folder. 2. Run that
Python there, in a process of its own, on real pictures; its vectors have to be the encoder's.
3. Only then publish the folder, by one rename.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import uuid
from dataclasses import asdict, dataclass
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
from encoders.picture import PreprocessConfig, to_square
from index.artifact import (
    ArtifactError,
    Folder,
    MissingArtifactError,
    library_versions,
    open_door,
    publish,
)

__all__ = ["ExportConfig", "export"]

MIN_COSINE = 0.9999
"""Between a vector of the encoder and the export's; float32 rounding stays far above it."""
NUM_PICTURES = 30
"""Pictures of a corpus that an export is checked on, beside two photographs."""
TIMEOUT_S = 600

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
        ValueError: the format cannot hold this encoder or needs a package that is missing, or the
            export does not give the encoder's vectors; nothing is written then.
    """
    workspace = context.workspace
    encoder = workspace.open_encoder(config.encoder)
    encoder.dim(config.layer)  # refuses a layer that it lacks, before anything is looked at
    out = config.out.expanduser().resolve()
    known = _published(config, encoder, out)
    if known is not None:
        return _report(config, out, known, note="was there already, unchanged")
    source, pixels = _pictures(config, workspace, encoder.config.preprocess)
    context.say(f"export: writing {config.to}, then running it on {len(pixels)} pictures")
    files = export_files(encoder, config.to, config.layer)
    cosine = _lowest_cosine(files, encoder, pixels, config)
    checked = f"On {len(pixels)} pictures ({source}) the lowest cosine to lookalike's own vectors"
    notes = CardNotes(
        name=config.encoder,
        checked=f"{checked} was {cosine:.7f}.",
        origin=_origin(workspace, config.encoder),
    )
    files[CARD_FILE] = export_card(encoder, config.to, config.layer, notes).encode()
    body = {
        "id": encoder.encoder_id,
        "config": {**asdict(config), "out": out.name},
        "to": config.to,
        "layer": config.layer,
        "parents": {"encoder_id": encoder.encoder_id, "encoder": config.encoder},
        "rows": {"checked": len(pixels)},
        "checked_on": source,
        "lowest_cosine": cosine,
        "versions": library_versions("torch", "torchvision", "onnx", "onnxruntime", "timm"),
    }
    return _report(config, out, _publish(out, files, body))


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
        found = read_picture(row)
        if found.image is not None:
            squares.append(to_square(found.image, preprocess))
    return f"corpus {corpus}, and two photographs", np.stack(squares)


def _lowest_cosine(
    files: dict[str, bytes], encoder: Encoder, pixels: NDArray[np.uint8], config: ExportConfig
) -> float:
    """Lowest cosine between the encoder's vectors and those that the card's own lines give."""
    with tempfile.TemporaryDirectory(prefix="lookalike-export-") as scratch:
        folder = Path(scratch, "export")
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        asked, answered = Path(scratch, "pixels.npy"), Path(scratch, "vectors.npy")
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


def _publish(out: Path, files: dict[str, bytes], body: dict[str, Any]) -> dict[str, Any]:
    """Write beside ``out``, then rename; whatever fails before leaves nothing."""
    staging = out.with_name(f".{out.name}-{uuid.uuid4().hex}")
    folder = Folder.at(staging)
    try:
        for name, data in files.items():
            folder.write_atomic(name, data)
        door = publish(folder, "export", body, list(files))
        try:
            staging.rename(out)
        except OSError as error:
            if not out.exists():
                raise
            raise _occupied(out, "files that were put there in the meantime") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return door


def _report(
    config: ExportConfig, out: Path, door: dict[str, Any], note: str | None = None
) -> dict[str, Any]:
    return {
        "encoder": config.encoder,
        "encoder_id": door["id"],
        "to": config.to,
        "layer": config.layer,
        "out": str(out),
        "files": sorted(door["files"]),
        "bytes": sum(record["bytes"] for record in door["files"].values()),
        "checked_on": door["checked_on"],
        "pictures": door["rows"]["checked"],
        "lowest_cosine": door["lowest_cosine"],
        "note": note,
    }
