"""The versions of an index: listed, rolled back to, collected."""

import shutil

import pytest

from index.artifact import CorruptArtifactError, MissingArtifactError
from index.build import build_index
from index.choose import IndexConfig
from index.folder import Folder
from index.lock import sole_writer
from index.removal import remove_pictures
from index.search import Searcher
from index.versions import (
    check_version,
    collect,
    list_versions,
    open_current,
    roll_back,
    version_names,
)


@pytest.fixture
def folder(make_store, tmp_path, clustered):
    """An index whose v000001 was built before v000002, which is in service."""
    store = make_store(clustered(60, 8)[0])
    for k in (10, 5):
        build_index(store, Folder.at(tmp_path / "ix"), IndexConfig(k=k))
    return Folder.at(tmp_path / "ix")


def flip(folder, version, name="vectors.arrow"):
    path = folder.local_path(f"{version}/{name}")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def copy(folder, version):
    shutil.copytree(folder.local_path("v000001"), folder.local_path(version))


def test_versions_are_listed_with_their_cards_and_damage(folder):
    one, two = list_versions(folder)
    assert (one.name, one.in_service, one.damage) == ("v000001", False, None)
    assert (two.name, two.in_service, two.damage) == ("v000002", True, None)
    assert two.door["config"]["k"] == 5
    flip(folder, "v000002")
    assert [version.damage for version in list_versions(folder)] == [None, None]
    found = list_versions(folder, verify="full")[1]
    assert "sha256 differs" in found.damage
    assert found.in_service
    folder.remove("v000001/index.json")
    assert "not finished" in list_versions(folder)[0].damage


def test_nothing_is_in_service_when_current_is_gone_or_names_another_door(folder):
    whole = folder.read_bytes("CURRENT")
    folder.write_atomic("CURRENT", whole.replace(b"v000002", b"v000001"))
    assert not any(version.in_service for version in list_versions(folder))
    folder.remove("CURRENT")
    assert not any(version.in_service for version in list_versions(folder))


def test_rolling_back_puts_the_older_version_in_service(folder):
    roll_back(folder, "v000001")
    assert open_current(folder)[0] == "v000001"
    assert version_names(folder) == ["v000001", "v000002"]
    roll_back(folder, "v000002")
    assert Searcher.open(folder).version == "v000002"


def test_rolling_back_mends_a_lost_current(folder):
    folder.remove("CURRENT")
    roll_back(folder, "v000001")
    assert Searcher.open(folder).version == "v000001"


@pytest.mark.parametrize(
    "damage", [lambda f: flip(f, "v000001"), lambda f: f.remove("v000001/vectors.arrow")]
)
def test_a_damaged_version_is_not_put_in_service(folder, damage):
    before = folder.read_bytes("CURRENT")
    damage(folder)
    with pytest.raises(CorruptArtifactError, match=r"v000001/vectors.arrow.*Restore the file"):
        roll_back(folder, "v000001")
    assert folder.read_bytes("CURRENT") == before


def test_an_unknown_or_unfinished_version_names_those_there_are(folder):
    folder.remove("v000001/index.json")
    for name in ("v000009", "v000001"):
        with pytest.raises(MissingArtifactError, match=rf"'{name}'.*versions: v000002\. Choose"):
            roll_back(folder, name)


@pytest.mark.parametrize("name", ["", "1", "v1", "../v000001", "v0000011", "v000001\n"])
def test_what_names_no_version_is_refused(name):
    with pytest.raises(ValueError, match="v and six digits"):
        check_version(name)


def test_a_build_under_way_holds_up_changes(folder):
    with sole_writer(folder, "building this index"):
        for change in (lambda: roll_back(folder, "v000001"), lambda: collect(folder)):
            with pytest.raises(ValueError, match=r"another process is .*Wait"):
                change()


def test_collecting_keeps_what_a_build_keeps(folder):
    assert collect(folder) == []
    copy(folder, "v000003")
    assert collect(folder) == ["v000001"]
    assert version_names(folder) == ["v000002", "v000003"]


def test_collecting_never_takes_the_version_in_service(folder):
    copy(folder, "v000003")
    roll_back(folder, "v000001")
    assert collect(folder, keep=1) == ["v000002", "v000003"]
    assert Searcher.open(folder).version == "v000001"


def test_damaged_and_unfinished_versions_take_no_place_of_a_whole_one(folder):
    for name in ("v000003", "v000004"):
        copy(folder, name)
    folder.remove("v000003/vectors.arrow")
    folder.remove("v000004/index.json")
    assert collect(folder) == ["v000003", "v000004"]


def test_nothing_is_collected_while_the_version_in_service_is_damaged(folder):
    copy(folder, "v000003")
    flip(folder, "v000002")
    with pytest.raises(CorruptArtifactError):
        collect(folder, keep=1)
    assert len(version_names(folder)) == 3


def test_no_removal_deletes_the_last_version_that_is_whole(folder):
    flip(folder, "v000002")
    with pytest.raises(CorruptArtifactError, match=r"vectors\.arrow"):
        remove_pictures(folder, Searcher.open(folder, verify="sizes").ids[:1])
    roll_back(folder, "v000001")
    assert len(Searcher.open(folder)) == 60


def test_whoever_has_a_version_open_reads_on_after_it_was_collected(folder):
    searcher = Searcher.open(folder)
    query = searcher.vectors_of(searcher.ids[:1])
    before = searcher.search(query, 10).ids.tolist()
    roll_back(folder, "v000001")
    assert collect(folder, keep=1) == ["v000002"]
    assert searcher.search(query, 10).ids.tolist() == before
