"""One query from the terminal: who is found, and what is said when the files are others by now."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster.cli import main
from cluster.search_job import CHANGED, SearchConfig, search
from encoders.picture import PictureError
from index.artifact import MissingArtifactError


def query(library: Any, number: int) -> str:
    return str(library.catalog.rows([number])[0].uri)


def find(library: Any, file: str, k: int = 5) -> dict[str, Any]:
    return search(SearchConfig(query=file, index=library.index, k=k), library.context)


def test_a_picture_of_the_corpus_finds_itself_first(library: Any) -> None:
    for number in (0, 7, 29):
        report = find(library, query(library, number))
        assert report["hits"][0]["id"] == number
        assert report["hits"][0]["score"] == pytest.approx(1, abs=2e-3)
        assert [hit["rank"] for hit in report["hits"]] == [1, 2, 3, 4, 5]
        assert {hit["status"] for hit in report["hits"]} == {"ok"}
        assert report["flags"] == []


def test_a_changed_and_a_vanished_picture_are_flagged(
    library: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = tmp_path / "asked.png"
    changed, gone = Path(query(library, 0)), Path(query(library, 1))
    shutil.copy(changed, asked)
    shutil.copy(query(library, 2), changed)
    gone.unlink()
    library.rescan()
    report = find(library, str(asked), k=30)
    status = {hit["id"]: hit["status"] for hit in report["hits"]}
    assert (status[0], status[1], status[2]) == ("replaced", "vanished", "ok")
    assert report["hits"][0]["id"] == 0, "the index still knows what was there"
    assert report["flags"] == [CHANGED]
    assert find(library, query(library, 5), k=1)["flags"] == [], "not among these results"
    arguments = ["search", str(asked), "--index", library.index, "-k", "31"]
    assert main([*arguments, "--workspace", library.location]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "(replaced)" in shown
    assert "(vanished)" in shown
    assert "changed_since_index: files in brackets are not those that were indexed" in shown
    assert "short: the index holds no more pictures than these" in shown


def test_a_short_answer_says_so(library: Any) -> None:
    report = find(library, query(library, 0), k=31)
    assert len(report["hits"]) == 30
    assert report["flags"] == ["short"]


def test_what_cannot_be_searched_with_is_named(library: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.png: no such file\. Give a picture file"):
        find(library, str(tmp_path / "gone.png"))
    text = tmp_path / "text.png"
    text.write_text("no picture")
    with pytest.raises(PictureError):
        find(library, str(text))
    with pytest.raises(ValueError, match="k is 0"):
        find(library, query(library, 0), k=0)


def test_an_unknown_index_names_those_that_exist(library: Any) -> None:
    config = SearchConfig(query=query(library, 0), index="other")
    with pytest.raises(MissingArtifactError, match=f"Existing: {library.index}"):
        search(config, library.context)


def test_json_holds_the_status_of_each_hit(
    library: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["search", query(library, 3), "--index", library.index, "-k", "2", "--json"]
    assert main([*arguments, "--workspace", library.location]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [sorted(hit) for hit in report["hits"]] == [
        ["file", "id", "rank", "score", "status"]
    ] * 2
