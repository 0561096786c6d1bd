"""The whole application: what is documented is what is there, and it comes up and goes away."""

from __future__ import annotations

import io
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from fastapi.testclient import TestClient
from rich.console import Console

from cluster.context import Context
from cluster.workspace import Workspace
from ui.app import serve
from ui.config import UiConfig

CHECKOUT = Path(__file__).parents[2]


def test_every_route_is_documented_and_every_documented_route_is_there(reader: TestClient) -> None:
    text = (CHECKOUT / "docs" / "ui.md").read_text()
    documented = set(re.findall(r"^\| `([A-Z]+ /v1/[^`]+)` \|", text, flags=re.MULTILINE))
    paths = reader.get("/v1/openapi.json").json()["paths"]
    served = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert documented == served


def test_every_key_of_the_page_is_documented() -> None:
    script = (CHECKOUT / "ui" / "assets" / "labeller.js").read_text()
    text = (CHECKOUT / "docs" / "ui.md").read_text()
    keys = {key.upper() for key in re.findall(r'key === "(\w)"', script)}
    assert keys == {"S", "Z"}
    assert all(f"| Label | `{key}` |" in text for key in keys)


def test_the_page_holds_nothing_of_the_workspace_and_asks_nobody_else(
    reader: TestClient, shapes: Any
) -> None:
    page = reader.get("/").text
    assert shapes.index not in page
    loaded = re.findall(r'(?:src|href)="(https?://[^"]+)"', page)
    assert loaded == []


def test_browser_files_put_data_into_the_page_as_text_only() -> None:
    for path in sorted((CHECKOUT / "ui" / "assets").glob("*.js")):
        forbidden = re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|https?://(?!www\.w3\.org)",
            path.read_text(),
        )
        assert forbidden == [], path.name


def test_browser_files_are_revalidated_by_their_etag(reader: TestClient) -> None:
    first = reader.get("/parts/main.js")
    assert first.headers["content-type"].startswith("text/javascript")
    again = reader.get("/parts/main.js", headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304


def test_a_taken_port_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    context = Context(Workspace.at(tmp_path), console=Console(file=io.StringIO()))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"127\.0\.0\.1:{port} .* choose another --port"):
            serve(UiConfig(port=port), context)


def test_the_settings_and_their_help_need_no_gradio() -> None:
    script = (
        "import sys; from ui.app import UiConfig; UiConfig();"
        "assert not {'gradio', 'torch', 'ray', 'faiss'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=CHECKOUT, timeout=60)


def test_the_command_serves_until_it_is_interrupted(workspace: Workspace) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "cluster", "ui", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--workspace", workspace.location],
        cwd=CHECKOUT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert f"http://127.0.0.1:{port}" in first_line_about_ready(process)
        for _ in range(100):
            try:
                with urlopen(f"http://127.0.0.1:{port}/v1/indexes", timeout=10) as answer:
                    assert b"shapes-fresh" in answer.read()
                    break
            except OSError:
                time.sleep(0.1)
        else:
            raise AssertionError("the server never answered")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) in {0, 130}
    finally:
        process.kill()
        process.communicate()


def first_line_about_ready(process: Any) -> str:
    heard = ""
    for line in process.stderr:
        heard += line
        if "ready" in line:
            return str(line)
    raise AssertionError(f"it ended before it was ready: {heard}")
