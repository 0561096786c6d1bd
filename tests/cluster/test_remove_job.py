"""lookalike index, remove and compact on an index that changes."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pytest

from cluster import remove_job
from cluster.cli import main
from cluster.collection import Collection
from cluster.compact_job import CompactConfig, compact
from cluster.index_job import IndexJobConfig, index_embeddings
from cluster.remove_job import RemoveConfig, remove
from encoders.encoder import embed_picture
from index.choose import IndexConfig
from index.same_encoder import EncoderMismatchError
from index.search import Searcher


def build(library: Any, **given: Any) -> dict[str, Any]:
    names = {"corpus": "digits", "encoder": "tiny", **given}
    return index_embeddings(
        IndexJobConfig(build=IndexConfig(num_queries=10), **names), library.context
    )


def take_out(library: Any, **given: Any) -> dict[str, Any]:
    return remove(RemoveConfig(index=library.index, **given), library.context)


def held(library: Any) -> list[int]:
    ids: list[int] = Searcher.open(library.folder("indexes", library.index)).ids.tolist()
    return ids


def test_pictures_that_come_change_and_vanish_are_followed(library: Any, make_vectors: Any) -> None:
    files = sorted(library.pictures.glob("*/*.png"))
    shutil.copy(files[0], library.pictures / "1" / "new.png")
    shutil.copy(files[1], files[2])
    files[3].unlink()
    before = {row.uri: row.id for row in library.catalog.by_uri()}
    library.rescan()
    gone = [before[str(files[3])], before[str(files[2])]]
    report = build(library)
    assert (report["action"], report["why"]) == ("changed", "0 came, 0 were replaced, 2 went")
    assert not set(gone) & set(held(library)), "gone by the scan, although still embedded"
    make_vectors(library.workspace, library.workspace.open_encoder("tiny"))
    report = build(library)
    assert (report["action"], report["why"]) == ("changed", "2 came, 0 were replaced, 0 went")
    assert (report["rows"], report["delta_rows"], report["dead_rows"]) == (30, 2, 2)
    now = {row.uri: row.id for row in library.catalog.by_uri()}
    assert held(library) == sorted(now.values())
    assert build(library)["action"] == "reused"
    collection = Collection.open(library.workspace, library.index)
    found = collection.search_picture(files[2].read_bytes(), 2)
    assert set(found.ids[0].tolist()) == {now[str(files[1])], now[str(files[2])]}
    assert build(library, rebuild=True)["action"] == "built"
    assert held(library) == sorted(now.values())


def test_a_vanished_picture_that_comes_back_is_there_again(library: Any) -> None:
    file = next(library.pictures.glob("*/*.png"))
    data, stamp = file.read_bytes(), file.stat()
    before = held(library)
    file.unlink()
    library.rescan()
    assert build(library)["rows"] == 29
    file.write_bytes(data)
    import os

    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    library.rescan()
    report = build(library)
    assert (report["rows"], report["delta_rows"], report["dead_rows"]) == (30, 0, 0)
    assert held(library) == before


def test_removed_pictures_stay_out_until_they_are_restored(library: Any, make_vectors: Any) -> None:
    before = held(library)
    report = take_out(library, ids=(3, 4, 999))
    assert (report["asked_for"], report["rows"], report["removed"]) == (3, 28, 2)
    file = library.catalog.rows([7])[0].uri
    assert take_out(library, files=("/".join(file.split("/")[-2:]),))["removed"] == 3
    label = library.catalog.rows([11])[0].label
    of_label = library.catalog.named.filter(library.catalog.named["label"].to_numpy() == label)
    report = take_out(library, where=f"label = '{label}'")
    out = {3, 4, 7, *of_label["id"].to_pylist()}
    assert held(library) == sorted(set(before) - out)
    assert report["removed"] == len(out)
    for again in (
        lambda: build(library),
        lambda: build(library, rebuild=True),
        lambda: compact(CompactConfig(index=library.index, retrain=True), library.context),
    ):
        again()
        assert held(library) == sorted(set(before) - out)
    assert take_out(library, ids=(3,), restore=True)["removed"] == len(out) - 1
    assert held(library) == sorted({3} | set(before) - out)
    assert take_out(library, restore=True)["removed"] == 0
    assert held(library) == before


def test_what_was_restored_is_told_though_its_version_was_deleted_meanwhile(
    library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_out(library, ids=(3, 4))
    really, folder = remove_job.update_index, library.folder("indexes", library.index)

    def update(*given: Any, **options: Any) -> Any:
        done = really(*given, **options)
        shutil.rmtree(folder.local_path("v000002"))  # as two versions one after the other do
        return done

    monkeypatch.setattr(remove_job, "update_index", update)
    report = take_out(library, ids=(3, 5), restore=True)
    assert (report["rows"], report["unknown_ids"]) == (29, [5])


def test_files_that_are_none_or_several_are_refused(library: Any) -> None:
    with pytest.raises(ValueError, match=r"'no.png': is in no row of corpus 'digits'"):
        take_out(library, files=("no.png",))
    name = next(library.pictures.glob("0/*.png")).name
    shutil.copy(next(library.pictures.glob("0/*.png")), library.pictures / "1" / name)
    library.rescan()
    with pytest.raises(ValueError, match=r"could be .* or .*Give the whole path"):
        take_out(library, files=(name,))
    with pytest.raises(ValueError, match=r"nothing to remove\. Name pictures"):
        RemoveConfig(index="x")
    with pytest.raises(ValueError, match=r"picture 9{20}: ids go from 0 to 9223372036854775806"):
        RemoveConfig(index="x", ids=(3, int("9" * 20)))


def test_what_is_not_there_changes_nothing_and_all_of_it_is_refused(library: Any) -> None:
    assert take_out(library, ids=(999,))["why"] == "none of them is in it"
    assert take_out(library, where="id = 999")["why"] == "no picture is meant"
    with pytest.raises(ValueError, match="all 30 pictures are to be removed"):
        take_out(library, where="id >= 0")
    assert len(held(library)) == 30


def test_ids_that_were_named_in_vain_are_counted_and_named(
    library: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--index", library.index, "--workspace", library.location]
    assert main(["remove", *common, "--ids", "3", "99999", "4"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "changed: 2 removed" in said
    assert "1 of 3 are not in the index: 99999" in said
    assert main(["remove", *common, "--ids", "3", *map(str, range(100, 110))]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "11 of 11 are not in the index: 3, 100, 101, 102, 103, ..." in said
    assert main(["remove", *common, "--restore", "--ids", "3", "5"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 of 2 were not removed from it: 5" in said
    assert 3 in held(library)
    assert main(["remove", *common, "--restore"]) == 0
    assert " of " not in capsys.readouterr().out.split("stay out")[-1].split("card:")[-1]


def test_people_are_told_what_was_done_and_what_is_due(
    library: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--index", library.index, "--workspace", library.location]
    assert main(["remove", *given, "--ids", "1", "2", "3", "4", "5", "6"]) == 0
    shown = capsys.readouterr().out
    assert "index digits-tiny v000002, changed: 6 removed" in shown
    assert "24 vectors; dead and passed over: 6" in shown
    assert "6 stay out, since they were removed by hand" in shown
    assert "Fold it in: lookalike compact --index digits-tiny (20% of its rows are dead)" in shown
    assert main(["compact", *given, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["action"], report["dead_rows"], report["advice"]) == ("compacted", 0, None)
    assert main(["compact", *given]) == 0
    assert "reused: it is compact already" in capsys.readouterr().out
    page = library.folder("indexes", library.index).read_bytes("v000003/card.md").decode()
    assert "Lists and codes are those of v000001, trained for 30 vectors" in page


def test_an_index_goes_over_to_another_encoder_only_when_told(
    library: Any, make_encoder: Any, make_vectors: Any
) -> None:
    big = make_encoder(library.workspace, "big", seed=1)
    make_vectors(library.workspace, big, encoder_name="big")
    with pytest.raises(ValueError, match="give --new-encoder"):
        build(library, encoder="big", name=library.index)
    report = build(library, encoder="big", name=library.index, new_encoder=True)
    assert (report["action"], report["version"]) == ("built", "v000002")
    assert report["why"] == "the vectors are of another encoder or layer"
    collection = Collection.open(library.workspace, library.index)
    data = next(library.pictures.glob("*/*.png")).read_bytes()
    assert collection.encoder_id == big.encoder_id
    query = embed_picture(big, data, layer="backbone")
    np.testing.assert_allclose(
        collection.search_picture(data, 1).scores[0, 0],
        (collection.vectors(collection.ids()) @ query).max(),
        atol=1e-3,
    )


def test_vectors_of_an_encoder_that_was_trained_anew_since_are_not_indexed(
    library: Any, make_encoder: Any
) -> None:
    make_encoder(library.workspace, seed=1)
    with pytest.raises(EncoderMismatchError, match="was trained anew since; embed again first"):
        build(library)
