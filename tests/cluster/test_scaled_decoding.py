"""JPEGs decoded at a fraction of their size: the corpus, its pixels and a query the same way."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster.catalog import Catalog
from cluster.decode_limit import DecodeLimit
from cluster.embed_decode import Decoded, DecodeForm, decode_rows
from cluster.pixels_job import build_pixels
from cluster.plan import ShardRow
from cluster.scan_job import ScanConfig, scan
from cluster.workspace import Workspace
from encoders.backbone import BackboneConfig
from encoders.encoder import Encoder, EncoderConfig, embed_picture
from encoders.heads import ProjectorConfig
from encoders.preprocess import PreprocessConfig

QUICK = PreprocessConfig(size=32, decode_edge=0)
SLOW = PreprocessConfig(size=32)


def photograph(path: Path, size: tuple[int, int] = (500, 375)) -> bytes:
    """A JPEG with something to see at every scale."""
    rng = np.random.default_rng(size[0])
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def decoded(path: Path, preprocess: PreprocessConfig, thumbnail_edge: int = 256) -> Decoded:
    """What an embedding job makes of one file."""
    found = path.stat()
    row = ShardRow(0, str(path), found.st_size, found.st_mtime_ns)
    form = DecodeForm(preprocess=preprocess, thumbnail_edge=thumbnail_edge)
    (one,) = decode_rows(form, DecodeLimit(), frozenset(), [row])
    return one


def test_a_query_is_decoded_as_its_corpus_was(tmp_path: Path) -> None:
    data = photograph(tmp_path / "a.jpg")
    config = EncoderConfig(
        backbone=BackboneConfig(widths=(4, 8)),
        projector=ProjectorConfig(hidden_dim=8, output_dim=4),
        preprocess=QUICK,
    )
    encoder = Encoder.initialise(config, seed=0)
    square = decoded(tmp_path / "a.jpg", QUICK).square
    assert square is not None
    np.testing.assert_array_equal(embed_picture(encoder, data), encoder.embed(square[None])[0])
    whole = decoded(tmp_path / "a.jpg", SLOW).square
    assert whole is not None
    assert not np.array_equal(square, whole), "this picture tells one way from the other"
    assert np.abs(square.astype(int) - whole).mean() < 2
    other = Encoder.initialise(replace(config, preprocess=SLOW), seed=0)
    assert encoder.encoder_id != other.encoder_id


@pytest.mark.parametrize(
    ("size", "thumbnail_edge", "expected"),
    [
        ((500, 375), 256, (250, 188)),
        ((376, 375), 256, (256, 255)),
        ((375, 374), 256, (256, 255)),
        ((500, 375), 512, (500, 375)),
        ((100, 90), 256, (100, 90)),
    ],
)
def test_a_thumbnail_is_no_smaller_for_it(
    tmp_path: Path, size: tuple[int, int], thumbnail_edge: int, expected: tuple[int, int]
) -> None:
    photograph(tmp_path / "a.jpg", size)
    small = decoded(tmp_path / "a.jpg", QUICK, thumbnail_edge).thumbnail
    before = decoded(tmp_path / "a.jpg", SLOW, thumbnail_edge).thumbnail
    assert small is not None
    assert before is not None
    shown = Image.open(io.BytesIO(small)).size
    assert shown == Image.open(io.BytesIO(before)).size == expected


@pytest.mark.usefixtures("shards_here")
def test_pixels_of_another_edge_are_another_cache(tmp_path: Path, quiet: Any) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    photograph(folder / "a.jpg")
    context = quiet(Workspace.at(tmp_path / "workspace"))
    scan(ScanConfig(source=str(folder), corpus="mine"), context)
    catalog = Catalog.open(context.workspace.folder("corpora", "mine"))
    for preprocess in (SLOW, QUICK):
        cache = build_pixels(catalog, preprocess, context, error_budget=0.0)
        expected = decoded(folder / "a.jpg", preprocess).square
        np.testing.assert_array_equal(cache.read(np.array([0]))[0], expected)
    assert context.workspace.names("pixels") == ["mine-32", "mine-32-from187"]
