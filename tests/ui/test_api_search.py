"""Searching over HTTP: filters, several examples, lowest scores, crops, and what is refused."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image


def ask(client: TestClient, index_name: str, **options: Any) -> Any:
    return client.post("/v1/search", json={"index": index_name, **options})


def send(client: TestClient, index_name: str, data: bytes, **options: Any) -> Any:
    form = {"index": index_name, "k": "5", "options": json.dumps(options)}
    return client.post("/v1/search", data=form, files={"picture": ("q.png", data, "image/png")})


def test_a_filter_and_examples_go_with_an_id_or_an_upload(reader: TestClient, shapes: Any) -> None:
    found = ask(reader, shapes.index, id=0, k=40, where="name like 'disc%' and width = 64").json()
    names = [hit["name"] for hit in found["hits"]]
    assert names
    assert all(name.startswith("disc") for name in names)
    assert (found["exact"], found["searched"]) == (True, len(names))
    assert found["flags"] == ["short"]
    mixed = ask(
        reader, shapes.index, like=[{"id": 1}, {"id": 2, "weight": 2}], unlike=[{"id": 40}], k=3
    ).json()
    assert {1, 2, 40}.isdisjoint(hit["id"] for hit in mixed["hits"])
    likes = {"like": [{"id": 1}, {"id": 40}], "combine": "best", "k": 60}
    scores = {hit["id"]: hit["score"] for hit in ask(reader, shapes.index, **likes).json()["hits"]}
    for example in (1, 40):
        for hit in ask(reader, shapes.index, id=example, k=60).json()["hits"]:
            assert scores.get(hit["id"], 1) >= hit["score"] - 1e-6, "the best of both"
    uploaded = send(reader, shapes.index, shapes.jpeg("cross", 3), where="name like 'cross%'")
    assert uploaded.json()["hits"][0]["name"] == "cross-03.png"


def test_a_lowest_score_is_exact_and_counted(reader: TestClient, shapes: Any) -> None:
    everything = ask(reader, shapes.index, id=3, k=60).json()["hits"]
    bound = everything[9]["score"] - 1e-6
    found = ask(reader, shapes.index, id=3, k=4, min_score=bound).json()
    assert found["reaching"] == sum(hit["score"] >= bound for hit in everything)
    assert [hit["id"] for hit in found["hits"]] == [hit["id"] for hit in everything[:4]]
    assert found["guarantee"].startswith("exact")
    varied = ask(reader, shapes.index, id=3, k=10, diversity=0.8, exact=True).json()
    assert {hit["id"] for hit in varied["hits"]} != {hit["id"] for hit in everything[:10]}


def test_a_crop_of_an_upload_finds_what_lies_in_it(reader: TestClient, shapes: Any) -> None:
    canvas = Image.new("RGB", (200, 150), (90, 90, 90))
    canvas.paste(Image.open(io.BytesIO(shapes.jpeg("frame", 2))), (100, 40))
    stream = io.BytesIO()
    canvas.save(stream, "PNG")
    found = send(reader, shapes.index, stream.getvalue(), crop=[100, 40, 164, 104]).json()
    assert found["hits"][0]["name"] == "frame-02.png"


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        ({"id": 1, "where": "widthx > 3"}, 422, "Did you mean width"),
        ({"id": 1, "where": "width > 'a'"}, 422, "position 9"),
        ({"id": 1, "where": "uri like '/home/%'"}, 422, "no such column"),
        ({"id": 1, "where": "error is null"}, 422, "no such column"),
        ({"id": 1, "min_score": 2}, 422, "min_score=2"),
        ({"id": 1, "diversity": -1}, 422, "diversity=-1"),
        ({"id": 1, "k": -1}, 422, "k=-1"),
        ({"id": 1, "crop": [0, 0, 5, 5]}, 422, "Send the file"),
        ({"id": 1, "unlike": [{"id": 1}]}, 422, "cancel each other out"),
        ({"id": 1, "like": [{"id": 2, "weight": 0}]}, 422, "weight=0"),
        ({"id": 1, "like": [{"id": 9999}]}, 404, "picture 9999"),
        ({"like": []}, 422, "no example"),
        ({"id": 1, "collapse_duplicates": True}, 404, "lookalike graph"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_a_sentence(
    reader: TestClient, shapes: Any, options: Any, status: int, said: str
) -> None:
    answer = ask(reader, shapes.index, **options)
    assert answer.status_code == status
    assert said in answer.json()["error"]


@pytest.mark.parametrize("options", ["{", "[]", '{"kk": 1}', '{"crop": [0, 0, 9999, 5]}'])
def test_options_of_an_upload_are_checked_as_well(
    reader: TestClient, shapes: Any, options: str
) -> None:
    form = {"index": shapes.index, "options": options}
    files = {"picture": ("q.png", shapes.jpeg("disc", 0), "image/png")}
    answer = reader.post("/v1/search", data=form, files=files)
    assert answer.status_code == 422
    assert answer.json()["error"]
    assert "uri" not in ask(reader, shapes.index, id=1, where="x = 1").json()["error"]


def test_a_form_may_name_its_type_in_capitals(reader: TestClient, shapes: Any) -> None:
    form = {"index": shapes.index, "k": "5"}
    files = {"picture": ("q.png", shapes.jpeg("cross", 3), "image/png")}
    request = reader.build_request("POST", "/v1/search", data=form, files=files)
    request.headers["content-type"] = request.headers["content-type"].replace(
        "multipart/form-data", "Multipart/Form-Data"
    )
    assert reader.send(request).json()["returned"] == 5
