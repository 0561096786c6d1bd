"""Who gets in: the token, the login page, other sites, other host names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from cluster.workspace import Workspace
from ui.app import build_app
from ui.config import UiConfig
from ui.gate import COOKIE

TOKEN = "a-token-of-enough-length"
BEARER = {"authorization": f"Bearer {TOKEN}"}
GRADIO = ("/", "/config", "/gradio_api/info", "/gradio_api/startup-events", "/theme.css")


@pytest.fixture(scope="module")
def guarded(built: object) -> Iterator[TestClient]:
    app = build_app(Workspace.at(str(built)), UiConfig(token=TOKEN))
    with TestClient(app, base_url="http://127.0.0.1", follow_redirects=False) as client:
        yield client


@pytest.fixture(autouse=True)
def logged_out(guarded: TestClient) -> None:
    guarded.cookies.clear()


def own_paths(client: TestClient) -> list[tuple[str, str]]:
    """Method and path of every route of ours, parameters filled in."""
    spec = client.get("/v1/openapi.json", headers=BEARER).json()
    filled = {"{index}": "x", "{picture_id}": "0", "{name}": "x"}
    found = []
    for template, methods in spec["paths"].items():
        path = template
        for name, value in filled.items():
            path = path.replace(name, value)
        found += [(method.upper(), path) for method in methods]
    return found


def test_every_route_is_closed_without_the_token(guarded: TestClient) -> None:
    paths = own_paths(guarded)
    assert len(paths) >= 16
    more = [
        ("GET", path) for path in (*GRADIO, "/parts/main.js", "/v1/openapi.json", "/favicon.ico")
    ]
    posts = [("POST", "/gradio_api/queue/join"), ("POST", "/gradio_api/run/predict")]
    for method, path in paths + more + posts:
        assert guarded.request(method, path).status_code == 401, (method, path)
        wrong = {"authorization": "Bearer a-token-of-wrong-content"}
        assert guarded.request(method, path, headers=wrong).status_code == 401, (method, path)


def test_the_bearer_token_opens_api_and_gradio(guarded: TestClient) -> None:
    for path in ("/v1/indexes", "/v1/runs", "/parts/main.js", *GRADIO):
        assert guarded.get(path, headers=BEARER).status_code == 200, path


def test_a_browser_is_led_to_the_login_page_and_back(guarded: TestClient) -> None:
    html = {"accept": "text/html"}
    led = guarded.get("/", headers=html)
    assert (led.status_code, led.headers["location"]) == (303, "/login")
    page = guarded.get("/login", headers=html)
    assert page.status_code == 200
    assert TOKEN not in page.text
    assert guarded.post("/login", data={"token": "wrong"}).status_code == 401
    right = guarded.post("/login", data={"token": TOKEN})
    assert right.headers["location"] == "/"
    cookie = right.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert TOKEN not in cookie
    assert guarded.get("/", headers=html).status_code == 200
    assert guarded.get("/v1/indexes").status_code == 200


@pytest.mark.parametrize("value", ["", "0" * 64, TOKEN, "\u00e9"])
def test_a_made_up_cookie_opens_nothing(guarded: TestClient, value: str) -> None:
    headers = {"cookie": f"{COOKIE}={value}".encode()}
    assert guarded.get("/v1/indexes", headers=headers).status_code == 401


def test_another_site_cannot_send_requests(reader: TestClient, shapes: object) -> None:
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://["},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
    ):
        assert reader.get("/v1/indexes", headers=headers).status_code == 403, headers
        body = {"index": "shapes-fresh"}
        assert reader.post("/v1/labels/undo", json=body, headers=headers).status_code == 403
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert reader.get("/", headers=link).status_code == 200
    assert reader.post("/v1/labels/undo", json={}, headers=link).status_code == 403
    assert reader.get("/v1/indexes", headers={"origin": "http://127.0.0.1"}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::1", "a@b"])
def test_a_foreign_name_for_this_machine_is_refused(reader: TestClient, host: str) -> None:
    assert reader.get("/v1/indexes", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1:1", "[::1]:7860"])
def test_our_own_names_are_answered(reader: TestClient, host: str) -> None:
    assert reader.get("/v1/indexes", headers={"host": host}).status_code == 200


def test_every_answer_carries_the_security_headers(reader: TestClient) -> None:
    for path in ("/", "/v1/indexes", "/v1/thumbs/none/0", "/parts/app.css"):
        headers = reader.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "connect-src 'self'" in headers["content-security-policy"]


def test_every_route_of_ours_is_under_v1_parts_or_login(guarded: TestClient) -> None:
    app = guarded.app
    routes = {route.path for route in app.routes if isinstance(route, APIRoute)}  # type: ignore[attr-defined]
    assert all(path.startswith(("/v1/", "/parts/", "/login")) for path in routes), routes
