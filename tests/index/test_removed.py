"""What was removed by hand stays out of what is built in place of a damaged version."""

import shutil

import numpy as np
import pytest

from index.artifact import CorruptArtifactError, NewerSchemaError
from index.build import Build
from index.choose import IndexConfig
from index.folder import Folder
from index.removal import remove_pictures
from index.search import Searcher
from index.update import Instructions, update_index
from index.versions import roll_back

CONFIG = IndexConfig(kind="ivf", num_queries=20)
REMOVED = np.array([8, 14])


@pytest.fixture
def standing(make_store, tmp_path, clustered):
    """An index without two of its pictures, and the embedding set that has them."""
    store = make_store(clustered(80, 8)[0])
    folder = Folder.at(tmp_path / "ix")
    update_index(store, folder, CONFIG)
    remove_pictures(folder, REMOVED)
    return store, folder


def flip(folder, name, place=None):
    path = folder.local_path(name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 1
    path.write_bytes(data)


def require_left_out(store, folder, **options):
    done = update_index(store, folder, CONFIG, told=Instructions(**options))
    assert (done.action, done.why) == ("built", "the version in service is damaged")
    assert done.door["removed"]["rows"] == len(REMOVED)
    assert not np.isin(REMOVED, Searcher.open(folder).ids).any()
    assert len(Searcher.open(folder)) == 78


@pytest.mark.parametrize(
    "name",
    ["CURRENT", "v000002/index.json", "v000002/dead.arrow", "v000002/vectors.arrow"],
)
def test_after_a_flipped_bit(standing, name):
    store, folder = standing
    flip(folder, name)
    require_left_out(store, folder)


def test_after_its_door_is_gone_even_if_the_build_that_follows_is_killed(standing, monkeypatch):
    store, folder = standing
    folder.remove("v000002/index.json")
    with monkeypatch.context() as patch:
        patch.setattr(Build, "_copy_vectors", None)
        with pytest.raises(TypeError):
            update_index(store, folder, CONFIG)
    require_left_out(store, folder)


def test_a_list_that_is_gone_with_its_version_is_not_taken_for_none(standing):
    store, folder = standing
    shutil.rmtree(folder.local_path("v000002"))
    with pytest.raises(CorruptArtifactError, match=r"v000002: not there, .*--rollback VERSION"):
        update_index(store, folder, CONFIG)
    roll_back(folder, "v000001")
    assert update_index(store, folder, CONFIG).action == "reused"


@pytest.mark.parametrize("place", range(25))
def test_after_any_flipped_byte_of_the_pointer(standing, place):
    store, folder = standing
    flip(folder, "CURRENT", place)
    require_left_out(store, folder)


def test_without_a_pointer(standing):
    store, folder = standing
    folder.remove("CURRENT")
    done = update_index(store, folder, CONFIG)
    assert done.door["removed"]["rows"] == 2
    assert not np.isin(REMOVED, Searcher.open(folder).ids).any()


def test_but_what_is_restored_is_back(standing):
    store, folder = standing
    flip(folder, "CURRENT")
    done = update_index(store, folder, CONFIG, told=Instructions(restored=REMOVED[:1]))
    assert (done.action, done.door["removed"]["rows"]) == ("built", 1)
    assert Searcher.open(folder).ids[:3].tolist() == [5, 8, 11]


@pytest.mark.parametrize("other", [None, "v000002/index.json"])
def test_a_damaged_list_is_not_taken_for_none(standing, other):
    store, folder = standing
    before = folder.read_bytes("CURRENT")
    path = folder.local_path("v000002/removed.arrow")
    path.write_bytes(path.read_bytes()[:-8])
    if other:
        flip(folder, other)
    with pytest.raises(
        CorruptArtifactError, match=r"removed\.arrow: damaged, .*--rollback VERSION"
    ):
        update_index(store, folder, CONFIG)
    assert folder.read_bytes("CURRENT") == before
    roll_back(folder, "v000001")
    assert update_index(store, folder, CONFIG).action == "reused"


def test_the_list_is_that_of_the_version_in_service_and_not_of_a_newer_one(standing):
    store, folder = standing
    roll_back(folder, "v000001")
    flip(folder, "v000001/vectors.arrow")  # which both share
    done = update_index(store, folder, CONFIG)
    assert (done.action, done.door.get("removed")) == ("built", None)


def test_an_index_of_a_newer_lookalike_is_not_replaced(standing, monkeypatch):
    store, folder = standing
    monkeypatch.setattr("index.artifact.NEWEST_SCHEMA", 1)
    with pytest.raises(NewerSchemaError, match="Upgrade lookalike"):
        update_index(store, folder, CONFIG)
