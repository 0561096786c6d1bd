"""Two scans at once into a corpus in a bucket, which has no locks."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from cluster.catalog import Catalog
from cluster.catalog_writer import CatalogWriter
from cluster.context import Context
from cluster.picture_uri import Place
from cluster.scan_job import ScanConfig, scan
from cluster.workspace import Workspace
from index import folder as folders


def test_of_two_scans_at_once_one_publishes_and_nothing_is_lost(
    bucket: Place, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace.at(bucket.uri("pictures/scans/workspace"))
    context = Context(workspace, console=Console(file=io.StringIO()))
    source = pictures(6, size=24, formats=["png"])
    first = next(source.rglob("*.png")).read_bytes()
    config = ScanConfig(source=str(source), corpus="digits")
    publish = CatalogWriter.publish

    def publish_second(writer: CatalogWriter, containers: Any) -> dict[str, Any]:
        """Another scan begins after this one, and ends before it."""
        monkeypatch.setattr(CatalogWriter, "publish", publish)
        scan(config, context)
        return publish(writer, containers)

    for num_pictures in (6, 7):
        monkeypatch.setattr(CatalogWriter, "publish", publish_second)
        with pytest.raises(ValueError, match="another scan into this corpus ended while"):
            scan(config, context)
        whole = Catalog.open(workspace.folder("corpora", "digits"))
        assert len(whole.ok) == num_pictures
        if num_pictures == 6:
            (source / "seventh.png").write_bytes(first + b"\0")
    monkeypatch.setattr(folders, "SETTLED_NS", 0)  # as if a day had passed
    again = scan(config, context)
    folder = workspace.folder("corpora", "digits")
    door = Catalog.open(folder).door
    assert again["pictures"]["total"] == 7
    assert {name for name in folder.names() if name.startswith("catalog-")} == set(door["files"])
