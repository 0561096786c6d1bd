"""One query from the terminal: who is found, and what is said when the files are others by now."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster.cli import main
from cluster.graph_job import GraphJobConfig, find_relations
from cluster.search_job import CHANGED, SearchConfig, search
from encoders.picture import PictureError
from index.artifact import MissingArtifactError
from index.duplicates import DuplicateConfig
from index.projection import MapConfig
from index.search import Searcher


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
    assert "short: no more pictures than these may be results" in shown


def test_a_short_answer_says_so(library: Any) -> None:
    report = find(library, query(library, 0), k=31)
    assert len(report["hits"]) == 30
    assert report["flags"] == ["short"]


def test_what_cannot_be_searched_with_is_named(library: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.png: no such file\. Give an id or"):
        find(library, str(tmp_path / "gone.png"))
    with pytest.raises(FileNotFoundError, match=r"~no-one/x\.png: no such file\. Give an id or"):
        find(library, "~no-one/x.png")
    text = tmp_path / "text.png"
    text.write_text("no picture")
    with pytest.raises(PictureError, match=r"text\.png: Not a picture"):
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


def asked(library: Any, **options: Any) -> dict[str, Any]:
    return search(SearchConfig(index=library.index, **options), library.context)


def test_a_filter_leaves_only_pictures_of_which_it_holds(library: Any) -> None:
    labels = dict(enumerate(library.catalog.labels(range(30))))
    wanted = sorted({label for label in labels.values() if label})[:2]
    report = asked(library, query=query(library, 0), where=f"label in {tuple(wanted)}", k=30)
    assert {labels[hit["id"]] for hit in report["hits"]} == set(wanted)
    assert len(report["hits"]) == sum(label in wanted for label in labels.values())
    assert report["guarantee"].startswith("exact: all")
    assert report["flags"] == ["short"]
    name = Path(query(library, 4)).name
    only = asked(library, query=query(library, 0), where=f"name = '{name}' and width > 1", k=3)
    assert [Path(hit["file"]).name for hit in only["hits"]].count(name) >= 1
    assert asked(library, query=query(library, 0), where="width > 9999")["hits"] == []


def test_a_filter_that_cannot_be_used_is_an_error_with_its_position(
    library: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["search", query(library, 0), "--index", library.index, "--where", "labelx = 'a'"]
    assert main([*arguments, "--workspace", library.location]) == 1
    said = capsys.readouterr().err
    assert "position 1 (" in said
    assert "Did you mean label" in said


def test_a_picture_of_the_corpus_can_be_named_by_its_id(library: Any, tmp_path: Path) -> None:
    by_id = asked(library, query="3", k=5)
    assert by_id["hits"] == asked(library, like=("3",), k=5)["hits"]
    assert 3 not in [hit["id"] for hit in by_id["hits"]], "it is the question"
    with pytest.raises(ValueError, match="only a file can be cropped"):
        asked(library, query="3", crop=(0, 0, 5, 5))
    with contextlib.chdir(tmp_path):
        Path("3").write_bytes(Path(query(library, 8)).read_bytes())
        assert asked(library, query="3", k=1)["hits"][0]["id"] == 8, (
            "a file of that name comes first"
        )


def test_ids_and_files_are_examples_with_weights(library: Any) -> None:
    vectors = Searcher.open(library.folder("indexes", library.index)).vectors_of(range(30))
    report = asked(library, like=("3", f"{query(library, 8)}:0.5"), unlike=("20:2",), k=26)
    merit = (vectors[3] + 0.5 * vectors[8]) / 2 - 2 * vectors[20]
    order = np.argsort(-(vectors @ merit), kind="stable")
    expected = [int(picture) for picture in order if picture not in (3, 20)][:26]
    found = [hit["id"] for hit in report["hits"]]
    assert found[:15] == expected[:15]
    assert {3, 20}.isdisjoint(found)


def test_a_lowest_score_counts_all_that_reach_it(library: Any) -> None:
    everything = asked(library, query=query(library, 2), k=30)["hits"]
    bound = everything[11]["score"] - 1e-4
    report = asked(library, query=query(library, 2), k=5, min_score=bound)
    assert report["reaching"] == sum(hit["score"] >= bound for hit in everything)
    assert [hit["id"] for hit in report["hits"]] == [hit["id"] for hit in everything[:5]]
    assert report["flags"] == []
    varied = asked(library, query=query(library, 2), k=5, min_score=bound, diversity=0.7)
    assert all(hit["score"] >= bound for hit in varied["hits"])
    assert {hit["id"] for hit in varied["hits"]} != {hit["id"] for hit in report["hits"]}


def test_a_crop_searches_with_the_pixels_inside_it(library: Any, tmp_path: Path) -> None:
    """A picture pasted into a larger one is found by the box it lies in, as if it were alone."""
    with Image.open(query(library, 6)) as small:
        alone, canvas = small.convert("RGB"), Image.new("RGB", (90, 70), (200, 30, 30))
    canvas.paste(alone, (50, 20))
    file = tmp_path / "scene.png"
    canvas.save(file)
    box = (50, 20, 50 + alone.width, 20 + alone.height)
    report = asked(library, query=str(file), crop=box, k=1)
    assert report["hits"][0]["id"] == 6
    assert report["hits"][0]["score"] == pytest.approx(1, abs=2e-3)
    for wrong in ((0, 0, 91, 10), (5, 5, 5, 9), (-1, 0, 5, 5)):
        with pytest.raises(ValueError, match="90 x 70 pixels"):
            asked(library, query=str(file), crop=wrong)
    with pytest.raises(ValueError, match="nothing to crop"):
        asked(library, like=("3",), crop=box)


def test_near_duplicates_are_collapsed_once_they_were_found(
    library: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MissingArtifactError, match="lookalike graph"):
        asked(library, query=query(library, 0), collapse_duplicates=True)
    threshold = asked(library, query=query(library, 0), k=4)["hits"][2]["score"] - 1e-3
    make = GraphJobConfig(
        index=library.index, duplicates=DuplicateConfig(threshold=threshold), map=MapConfig()
    )
    made = find_relations(make, library.context)
    report = asked(library, query=query(library, 0), k=30, collapse_duplicates=True)
    assert report["hits"][0]["id"] == 0
    assert report["hits"][0]["copies"] >= 3
    assert sum(hit["copies"] for hit in report["hits"]) == 30
    assert report["flags"] == ["short"]
    assert made["near_duplicates"]["num_groups"] >= 1
    arguments = ["search", query(library, 0), "--index", library.index, "--collapse-duplicates"]
    assert main([*arguments, "--workspace", library.location]) == 0
    assert "near-duplicates)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "no example"),
        ({"like": ("99",)}, "picture 99"),
        ({"query": "99"}, "picture 99"),
        ({"like": ("99999999999999999999999",)}, "ids go from 0"),
        ({"like": ("1",), "unlike": ("1",)}, "cancel"),
        ({"like": ("1:0",)}, "weight is 0"),
        ({"like": ("1",), "diversity": 2.0}, "diversity is 2"),
        ({"like": ("1",), "min_score": 1.5}, "from -1 to 1"),
        ({"like": ("1",), "min_score": float("nan")}, "from -1 to 1"),
        ({"like": ("1",), "k": -3}, "k is -3"),
        ({"like": ("1",), "min_score": 0.2, "k": 0}, "k is 0"),
        ({"like": ("gone.png",)}, "--like gone.png: no such file"),
    ],
)
def test_questions_without_an_answer_say_why(library: Any, options: Any, said: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        asked(library, **options)


def test_the_best_score_to_any_example_ranks_what_none_lies_between(library: Any) -> None:
    vectors = Searcher.open(library.folder("indexes", library.index)).vectors_of(range(30))
    other = query(library, 8)
    report = asked(library, like=("3", other), unlike=("20",), combine="best", k=28)
    merits = [one - vectors[20] for one in (vectors[3], vectors[8])]
    merits = [merit / np.linalg.norm(merit) for merit in merits]
    best = np.max(vectors @ np.transpose(merits), axis=1)
    expected = [int(picture) for picture in np.argsort(-best) if picture not in (3, 20)]
    assert [hit["id"] for hit in report["hits"]][:12] == expected[:12]
    bound = report["hits"][9]["score"] - 1e-4
    reaching = asked(library, like=("3", other), unlike=("20",), combine="best", min_score=bound)
    assert reaching["reaching"] == 10
    assert [hit["id"] for hit in reaching["hits"]] == [hit["id"] for hit in report["hits"][:10]]
    one = asked(library, like=("3",), unlike=("20",), combine="best")
    assert one["hits"] == asked(library, like=("3",), unlike=("20",))["hits"], "one is the mean"


def test_what_best_has_no_use_for_is_refused(library: Any) -> None:
    with pytest.raises(ValueError, match=r"weights \[2\.0\].*only 1 is allowed"):
        asked(library, like=("3:2",), combine="best")
    with pytest.raises(ValueError, match="without an example to be like"):
        asked(library, unlike=("3",), combine="best")
    with pytest.raises(ValueError, match="combine is 'most'; allowed is mean or best"):
        asked(library, like=("3",), combine="most")
