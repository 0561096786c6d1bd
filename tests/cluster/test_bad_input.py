"""Questions that cannot be answered, through the command line, the API's session and notebooks."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.cli import main
from cluster.collection import Collection
from cluster.query import Example, SearchQuery
from cluster.scan_job import ScanConfig, scan
from index.search import Searcher


@pytest.mark.parametrize("k", [0, -1, -(10**9)])
def test_a_k_below_one_is_refused_however_it_is_asked(library: Any, k: int) -> None:
    collection = Collection.open(library.workspace, library.index)
    for asked in (
        SearchQuery(like=(Example(id=0),), k=k),
        SearchQuery(like=(Example(id=0),), k=k, min_score=0.5),
        SearchQuery(like=(Example(id=0),), k=k, diversity=0.5),
        SearchQuery(like=(Example(id=0),), k=k, where="width > 1"),
        SearchQuery(like=(Example(id=0),), k=k, exact=True),
    ):
        with pytest.raises(ValueError, match=rf"k is {k}; ask for at least 1"):
            collection.find(asked)


def test_a_k_beyond_the_corpus_gives_all_of_it_and_says_so(library: Any) -> None:
    collection = Collection.open(library.workspace, library.index)
    for more in ({}, {"exact": True}, {"where": "width > 1"}):
        hits = collection.find(SearchQuery(like=(Example(id=0),), k=10**7, **more)).hits
        assert sorted(hits.ids[0]) == list(range(1, 30))
        assert "short" in hits.flags


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused(library: Any, bad: float) -> None:
    collection = Collection.open(library.workspace, library.index)
    with pytest.raises(ValueError, match="min_score is"):
        collection.find(SearchQuery(like=(Example(id=0),), min_score=bad))
    with pytest.raises(ValueError, match="diversity"):
        SearchQuery(like=(Example(id=0),), diversity=bad)
    with pytest.raises(ValueError, match="weight is"):
        Example(id=0, weight=bad)
    searcher = Searcher.open(library.folder("indexes", library.index))
    for query in (np.full((1, searcher.dim), bad), np.zeros((1, searcher.dim))):
        with pytest.raises(ValueError, match="finite"):
            searcher.search(query, 3)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("colour == 'red'", "colour"),
        ("width == 'wide'", "width"),
        ("label > 3", "label"),
        ("width >", "width >"),
        ("", "filter"),
    ],
)
def test_a_filter_that_cannot_be_used_is_an_error_in_a_sentence(
    library: Any, where: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(next(library.pictures.rglob("*.png")))
    options = ["--index", library.index, "--workspace", library.location, "--where", where]
    assert main(["search", picture, *options]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert "Traceback" not in said


def test_a_clock_that_jumps_changes_no_picture(library: Any, pictures: Any) -> None:
    """Times of files are compared with what they were, and never with what the clock says."""
    config = ScanConfig(source=str(library.pictures), corpus="digits", labels="folder")
    unchanged = scan(config, library.context)["since_last_scan"]["unchanged"]
    assert unchanged == 30
    files = sorted(library.pictures.rglob("*.png"))
    os.utime(files[0], ns=(2**62, 2**62))  # in the year 2116
    os.utime(files[1], ns=(0, 0))
    report = scan(config, library.context)["since_last_scan"]
    assert (report["changed"], report["unchanged"]) == (2, 28)
    assert scan(config, library.context)["since_last_scan"]["unchanged"] == 30


def test_a_source_that_is_not_there_says_what_may_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--corpus", "mine", "--workspace", str(tmp_path / "w")]
    for kind in ([], ["--source-kind", "tar"]):
        assert main(["scan", str(tmp_path / "away.tar"), *kind, *given]) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"error: {tmp_path}/away.tar: not there. Give a folder of pictures")
        assert ".parquet" in said
        assert ".csv" in said
    (tmp_path / "notes.doc").write_text("words")
    assert main(["scan", str(tmp_path / "notes.doc"), *given]) == 1
    assert "not a source" in capsys.readouterr().err


def test_an_answer_from_json_is_json_whatever_is_asked(
    library: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(next(library.pictures.rglob("*.png")))
    options = ["--index", library.index, "--workspace", library.location, "--json"]
    assert main(["search", picture, *options, "-k", "1000"]) == 0
    assert len(json.loads(capsys.readouterr().out)["hits"]) == 30
