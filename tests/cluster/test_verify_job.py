"""What the number of workers changes: nothing but rounding."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.context import Context
from cluster.verify_job import RECIPES, VerifyConfig, verify
from cluster.workspace import Workspace


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_one_and_two_workers_train_the_same_weights_for_every_method(
    tmp_path: Path, local_ray: Any
) -> None:
    context = Context(Workspace.at(tmp_path), console=Console(file=io.StringIO()))
    report = verify(VerifyConfig(workers=(1, 2), steps=8, seed=3), context)
    assert report["ok"]
    assert set(report["differences"]) == set(RECIPES)
    for found in report["differences"].values():
        assert found["again"] == 0
        assert 0 < found["2"] < report["tolerance"]


@pytest.mark.ray
def test_more_workers_than_this_machine_has_room_for_are_refused_and_not_waited_for(
    tmp_path: Path, local_ray: Any
) -> None:
    context = Context(Workspace.at(tmp_path), console=Console(file=io.StringIO()))
    with pytest.raises(ValueError, match=r"16 workers: they need 8 CPUs .* has 4 .*Ask for fewer"):
        verify(VerifyConfig(workers=(1, 16), batch_size=64), context)


@pytest.mark.parametrize(
    "setting", [{"workers": (1,)}, {"workers": (1, 3)}, {"workers": (0, 1)}, {"steps": 0}]
)
def test_settings_that_cannot_be_compared_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"workers|steps"):
        VerifyConfig(**setting)
