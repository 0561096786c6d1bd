"""The HTTP API as a script meets it: answers, limits, hostile input."""

from __future__ import annotations

import csv
import io
import time
from typing import Any

import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from cluster.workspace import Workspace


def search_upload(client: TestClient, index_name: str, data: bytes, k: str = "5") -> Any:
    form = {"index": index_name, "k": k}
    return client.post("/v1/search", data=form, files={"picture": ("q.jpg", data, "image/jpeg")})


def label(client: TestClient, index_name: str, events: list[dict[str, Any]]) -> Any:
    return client.post("/v1/labels", json={"index": index_name, "events": events})


def event(picture: int, name: str | None, op_id: str = "") -> dict[str, Any]:
    op_id = op_id or f"operation-{picture}"
    return {"op_id": op_id, "id": picture, "label": name, "source": "suggest"}


def test_indexes_are_listed_with_what_they_are_made_of(reader: TestClient, shapes: Any) -> None:
    body = reader.get("/v1/indexes").json()
    assert body["default"] == shapes.index
    (only,) = body["indexes"]
    assert only["pictures"] == shapes.num_pictures
    assert len(only["encoder_id"]) == 64


def test_an_upload_and_an_id_find_neighbours(reader: TestClient, shapes: Any) -> None:
    uploaded = search_upload(reader, shapes.index, shapes.jpeg("cross", 3)).json()
    assert uploaded["hits"][0]["name"] == "cross-03.png"
    assert (uploaded["asked"], uploaded["returned"]) == (5, 5)
    first = uploaded["hits"][0]["id"]
    by_id = reader.post("/v1/search", json={"index": shapes.index, "id": first, "k": 4}).json()
    assert len(by_id["hits"]) == 4
    assert first not in {hit["id"] for hit in by_id["hits"]}


@pytest.mark.parametrize("data", [b"", b"text named .jpg", b"GIF89a", b"\x89PNG\r\n\x1a\n"])
def test_an_undecodable_upload_gets_a_sentence(
    reader: TestClient, shapes: Any, data: bytes
) -> None:
    answer = search_upload(reader, shapes.index, data)
    assert answer.status_code == 422
    assert len(answer.json()["error"]) > 30


def test_an_oversize_upload_is_refused_by_its_announced_and_by_its_real_length(
    reader: TestClient, shapes: Any
) -> None:
    announced = search_upload(reader, shapes.index, b"x" * (1 << 21))
    assert announced.status_code == 413
    assert "--max-upload-mb" in announced.json()["error"]

    def unannounced() -> Any:
        for _ in range(40):
            yield b"x" * (1 << 16)

    kind = {"content-type": "multipart/form-data; boundary=b"}
    assert reader.post("/v1/search", content=unannounced(), headers=kind).status_code == 413


@pytest.mark.parametrize("k", ["0", "-3", "201", "1e3", "ten", "", "9" * 30, "٣"])
def test_k_out_of_bounds_is_refused(reader: TestClient, shapes: Any, k: str) -> None:
    answer = search_upload(reader, shapes.index, shapes.jpeg("disc", 0), k)
    assert answer.status_code == 422
    assert "k=" in answer.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"index": "shapes-fresh"},
        {"index": "shapes-fresh", "id": -1},
        {"index": "shapes-fresh", "id": 2**60},
        {"index": "shapes-fresh", "id": "1; drop table"},
        {"index": "shapes-fresh", "id": 1, "kk": 3},
        {"index": "../shapes-fresh", "id": 1},
        [],
    ],
)
def test_a_malformed_search_is_refused_with_a_sentence(reader: TestClient, body: Any) -> None:
    answer = reader.post("/v1/search", json=body)
    assert answer.status_code == 422
    assert answer.json()["error"]


def test_broken_json_and_a_missing_picture_are_refused(reader: TestClient, shapes: Any) -> None:
    kind = {"content-type": "application/json"}
    assert reader.post("/v1/search", content=b"{", headers=kind).status_code == 422
    form = {"index": (None, shapes.index)}
    answer = reader.post("/v1/search", files=form)
    assert answer.status_code == 422
    assert "form field 'picture'" in answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/nothing"),
        ("PUT", "/v1/search"),
        ("GET", "/v1/search"),
        ("DELETE", "/v1/labels"),
    ],
)
def test_a_route_that_is_none_is_told_as_all_errors_are(
    reader: TestClient, method: str, path: str
) -> None:
    answer = reader.request(method, path)
    assert answer.status_code == 404
    assert answer.json()["error"].startswith(f"{method} {path}: there is no such route")
    assert "GET /v1/openapi.json" in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"index": "shapes-fresh"}', "application/x-www-form-urlencoded"),  # what curl -d sends
        (b'{"index": "shapes-fresh"', "application/json"),
        (b"", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"--", "multipart/form-data"),
    ],
)
def test_a_body_of_no_use_is_told_what_it_has_to_be(
    reader: TestClient, body: bytes, kind: str
) -> None:
    path = "/v1/search" if kind.startswith("multipart") else "/v1/classify"
    answer = reader.post(path, content=body, headers={"content-type": kind})
    assert answer.status_code in (400, 422)
    assert "a JSON object, sent with the header Content-Type: application/json" in answer.text


def test_unknown_things_are_404_with_a_sentence(reader: TestClient, shapes: Any) -> None:
    for path in (
        f"/v1/pictures/{shapes.index}/999",
        f"/v1/thumbs/{shapes.index}/999",
        "/v1/pictures/none/1",
        "/v1/labels?index=none",
        "/v1/runs/none/metrics",
        f"/v1/predictions/{shapes.index}",
        f"/v1/export?index={shapes.index}",
    ):
        answer = reader.get(path)
        assert answer.status_code == 404, path
        assert len(answer.json()["error"]) > 30, path


@pytest.mark.parametrize(
    "path",
    [
        "/v1/thumbs/../0",
        "/v1/thumbs/..%2f..%2fpictures/0",
        "/v1/thumbs/%2e%2e/0",
        "/v1/thumbs/shapes-fresh/..%2f..%2flabels.db",
        "/v1/pictures/shapes-fresh/%2fetc%2fpasswd",
        "/v1/runs/..%2f..%2fclasses/metrics",
        "/v1/runs/%2e%2e/metrics",
        "/parts/..%2fapp.py",
        "/parts/%2e%2e/app.py",
        "/parts/app.py",
        "/gradio_api/file=labels.db",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/file=/etc/passwd",
        "/static/..%2f..%2froutes.py",
        "/assets/..%2f..%2f..%2froutes.py",
        "/monitoring",
        "/monitoring/summary",
    ],
)
def test_no_path_leads_out(reader: TestClient, path: str) -> None:
    answer = reader.get(path)
    assert answer.status_code in {401, 403, 404, 422}, (path, answer.status_code)
    assert b"root:" not in answer.content
    assert b"SQLite" not in answer.content


@pytest.mark.parametrize("path", ["upload", "component_server", "process_recording", "vibe-edit"])
def test_gradios_own_ways_in_are_closed(reader: TestClient, path: str) -> None:
    assert reader.post(f"/gradio_api/{path}", files={"files": b"x"}).status_code == 404
    assert reader.get("/gradio_api/mcp/sse").status_code == 404


def test_thumbnails_are_cached_for_ever_only_under_their_corpus(
    reader: TestClient, shapes: Any
) -> None:
    (index,) = reader.get("/v1/indexes").json()["indexes"]
    pinned = reader.get(f"/v1/thumbs/{shapes.index}/0?v={index['thumbs_version']}")
    assert pinned.headers["content-type"] in {"image/jpeg", "image/webp"}
    assert "immutable" in pinned.headers["cache-control"]
    loose = reader.get(f"/v1/thumbs/{shapes.index}/0")
    assert "no-cache" in loose.headers["cache-control"]
    known = {"if-none-match": pinned.headers["etag"]}
    again = reader.get(f"/v1/thumbs/{shapes.index}/0", headers=known)
    assert (again.status_code, again.content) == (304, b"")


def test_hostile_names_pass_through_as_plain_json(reader: TestClient, shapes: Any) -> None:
    everything = reader.get(f"/v1/pictures/{shapes.index}?n=200").json()["pictures"]
    assert set(shapes.hostile_names) <= {item["name"] for item in everything}
    for item in everything:
        answer = reader.get(f"/v1/pictures/{shapes.index}/{item['id']}")
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["name"] == item["name"]
        assert "uri" not in answer.json()


def test_no_answer_names_a_folder_of_the_server(
    client: TestClient, shapes: Any, workspace: Workspace
) -> None:
    root = str(workspace.root)
    door = workspace.folder("corpora", "shapes").local_path("corpus.json")
    door.write_text("{}")
    answer = client.get(f"/v1/pictures/{shapes.index}/0")
    assert answer.status_code == 503
    assert root not in answer.text
    assert "corpora/shapes" in answer.json()["error"]


def test_an_unexpected_failure_says_nothing_of_the_inside(
    client: TestClient, shapes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("secret inner workings")

    monkeypatch.setattr("ui.session.Session.indexes", fail)
    answer = client.get("/v1/indexes")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "log" in answer.json()["error"]


def test_labels_are_written_once_and_taken_back(client: TestClient, shapes: Any) -> None:
    events = [event(0, "disc"), event(1, "<img src=x onerror=alert(1)> ${40+2}")]
    first = label(client, shapes.index, events).json()
    again = label(client, shapes.index, events).json()
    assert (first["written"], again["written"], again["labelled"]) == (2, 0, 2)
    undone = client.post("/v1/labels/undo", json={"index": shapes.index}).json()
    assert [item["id"] for item in undone["undone"]] == [1]
    progress = client.get(f"/v1/labels?index={shapes.index}").json()
    assert [(item["name"], item["count"]) for item in progress["classes"]] == [("disc", 1)]


@pytest.mark.parametrize(
    "broken",
    [
        {"op_id": "short"},
        {"op_id": "with space in it"},
        {"id": -1},
        {"label": ""},
        {"label": "x" * 101},
        {"source": "bulk"},
        {"user": "somebody else"},
    ],
)
def test_a_malformed_label_is_refused_with_its_batch(
    client: TestClient, shapes: Any, broken: dict[str, Any]
) -> None:
    answer = label(client, shapes.index, [event(0, "disc"), {**event(1, "disc"), **broken}])
    assert answer.status_code == 422
    assert client.get(f"/v1/labels?index={shapes.index}").json()["labelled"] == 0


def test_classes_are_made_and_renamed(client: TestClient, shapes: Any) -> None:
    for name in ("disc", "cross"):
        answer = client.post("/v1/classes", json={"index": shapes.index, "name": name})
        assert answer.status_code == 200
    twice = client.post("/v1/classes", json={"index": shapes.index, "name": "disc"})
    assert (twice.status_code, "is there already" in twice.json()["error"]) == (422, True)
    body = {"index": shapes.index, "name": "disc", "new_name": "circle"}
    renamed = client.post("/v1/classes/rename", json=body).json()
    assert [item["name"] for item in renamed["classes"]] == ["circle", "cross"]


def test_suggestions_leave_out_what_is_excluded(reader: TestClient, shapes: Any) -> None:
    first = reader.get(f"/v1/suggest?index={shapes.index}&n=8").json()["pictures"]
    exclude = ",".join(str(item["id"]) for item in first)
    second = reader.get(f"/v1/suggest?index={shapes.index}&n=8&exclude={exclude}").json()
    assert {item["id"] for item in first}.isdisjoint(item["id"] for item in second["pictures"])
    bad = reader.get(f"/v1/suggest?index={shapes.index}&exclude=1;2")
    assert bad.status_code == 422


@pytest.mark.parametrize("number", ["9007199254740992", "1" + "0" * 20, "9" * 5000])
def test_a_number_that_is_no_id_is_not_excluded_but_refused(
    reader: TestClient, shapes: Any, number: str
) -> None:
    answer = reader.get(f"/v1/suggest?index={shapes.index}&exclude=3,{number}")
    assert answer.status_code == 422
    said = answer.json()["error"]
    assert f"exclude: {number[:20]}" in said
    assert "ids go from 0 to 9007199254740991" in said
    assert len(said) < 300


def test_a_number_in_a_filter_that_is_too_long_is_refused_at_its_place(
    reader: TestClient, shapes: Any
) -> None:
    body = {"index": shapes.index, "id": 0, "k": 3, "where": f"id = {'9' * 5000}"}
    answer = reader.post("/v1/search", json=body)
    assert answer.status_code == 422
    assert "position 6" in answer.json()["error"]


def test_the_road_from_labels_to_a_file_read_again(client: TestClient, shapes: Any) -> None:
    everything = client.get(f"/v1/pictures/{shapes.index}?n=200").json()["pictures"]
    named = [item for item in everything if item["name"].startswith(shapes.names)]
    events = [event(item["id"], shapes.shape_of(item["name"])) for item in named[:24]]
    label(client, shapes.index, events)
    assert client.post("/v1/classify", json={"index": shapes.index}).status_code == 202
    for _ in range(200):
        status = client.get(f"/v1/classify?index={shapes.index}").json()
        if status["state"] != "running":
            break
        time.sleep(0.05)
    assert status["state"] == "done", status
    address = f"/v1/export?index={shapes.index}&format="
    parquet = client.get(address + "parquet")
    assert "attachment" in parquet.headers["content-disposition"]
    table = pq.read_table(io.BytesIO(parquet.content))
    rows = list(csv.DictReader(io.StringIO(client.get(address + "csv").text, newline="")))
    assert [int(row["id"]) for row in rows] == table["id"].to_pylist()
    assert [row["label"] for row in rows] == table["label"].to_pylist()
    counts = {item["name"]: item["predicted"] for item in status["classifier"]["classes"]}
    assert counts == {name: table["label"].to_pylist().count(name) for name in counts}


def test_runs_are_listed_and_drawn(client: TestClient, shapes: Any, workspace: Workspace) -> None:
    assert client.get("/v1/runs").json() == {"runs": []}
    shapes.write_run(workspace, "enc1")
    assert client.get("/v1/runs").json() == {"runs": [{"name": "enc1", "state": "done"}]}
    run = client.get("/v1/runs/enc1/metrics").json()
    assert run["series"]["knn"]["values"][0] == 0.5
