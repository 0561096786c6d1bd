"""A bucket whose server goes away in mid-write."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import socketserver
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from cluster.catalog import Catalog
from cluster.context import Context
from cluster.pixels_job import PixelWork
from cluster.plan import plan_shards, write_plan
from cluster.scan_job import ScanConfig, scan
from cluster.shard_actor import ShardActor
from cluster.shards import committed
from cluster.where import Profile
from cluster.workspace import Workspace


class Line(socketserver.ThreadingTCPServer):
    """A line to the S3 server that breaks in the middle of whatever is put, while ``broken``."""

    daemon_threads = True
    broken = False
    server_port = 0

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class Call(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        line = self.server
        assert isinstance(line, Line)
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", line.server_port)) as server,
        ):
            back = threading.Thread(target=self._copy_back, args=(server,), daemon=True)
            back.start()
            while piece := self.request.recv(65_536):
                if line.broken and piece.startswith((b"PUT", b"POST")):
                    server.sendall(piece[: len(piece) // 2])
                    return
                server.sendall(piece)

    def _copy_back(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := server.recv(65_536):
                self.request.sendall(piece)


@pytest.fixture
def line(s3_options: str) -> Iterator[Line]:
    with Line(("127.0.0.1", 0), Call) as server:
        server.server_port = int(s3_options.split("&")[0].rpartition(":")[2])
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.slow
def test_a_store_that_fails_in_mid_write_commits_nothing_and_is_gone_on_with(
    line: Line, s3_options: str, pictures: Any
) -> None:
    from pyarrow import fs as pafs

    store, _ = pafs.FileSystem.from_uri(f"s3://faulty?{s3_options}&allow_bucket_creation=true")
    store.create_dir("faulty")
    options = f"endpoint_override=127.0.0.1:{line.port}&scheme=http&region=us-east-1"
    context = Context(Workspace.at(f"s3://faulty/w?{options}"), console=Console(file=io.StringIO()))
    scan(ScanConfig(source=str(pictures(6, size=16)), corpus="mine"), context)
    catalog = Catalog.open(context.workspace.folder("corpora", "mine"))
    folder = context.workspace.folder("pixels", "mine")
    arguments = {
        "location": context.workspace.location,
        "name": "mine",
        "preprocess": {"size": 16},
        "profile": Profile(cpus_per_actor=1),
    }
    actor = ShardActor(context.workspace.location, folder.path, PixelWork, arguments)
    (shard,) = plan_shards(catalog, key="k", shard_rows=100)
    sent = {"plan": write_plan(folder, [shard]), "position": 0, "number": 0}
    line.broken = True
    failed = json.loads(actor.do(**sent))
    assert "error" in failed
    assert committed(folder, shard) is None
    line.broken = False
    done = json.loads(actor.do(**sent))
    assert done["ok"] == 6
    assert committed(folder, shard, "full") == done
