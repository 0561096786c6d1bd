"""The HTTP API, version 1: what the page uses and what scripts may use, one contract for both.

Pictures are named by id, never by path. Errors are ``{"error": SENTENCE}``; the sentence says what
was given, where, what is allowed and what to do next.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile

from cluster.query import Example, SearchQuery
from index.examples import Combine
from index.label_name import MAX_LABEL_LENGTH
from ui.services import Services, sentence_of
from ui.session import SearchAnswer

__all__ = ["api_router"]

Model = TypeVar("Model", bound=BaseModel)

DEFAULT_K = 24
OPTIONS = {each.name for each in fields(SearchQuery)} - {"like", "unlike", "k"}
IMMUTABLE = "private, max-age=31536000, immutable"
# JavaScript numbers are exact up to here; SQLite and Arrow take no more than 2**63 - 1.
MAX_ID = 2**53 - 1

PictureId = Annotated[int, Field(ge=0, le=MAX_ID)]
ClassName = Annotated[str, Field(min_length=1, max_length=MAX_LABEL_LENGTH)]
OperationId = Annotated[str, Field(min_length=8, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
IndexName = Annotated[str, Field(min_length=1, max_length=100)]
IndexQuery = Annotated[str, Query(min_length=1, max_length=100)]
PageSize = Annotated[int, Query(ge=1, le=200)]


class Body(BaseModel):
    """A request body: unknown fields are refused, so that a misspelt one is not ignored."""

    model_config = ConfigDict(extra="forbid")
    index: IndexName


class ExampleBody(BaseModel):
    """A picture of the index that results should be like, or unlike."""

    model_config = ConfigDict(extra="forbid")
    id: PictureId
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0

    def example(self) -> Example:
        """The same for `Session.search`."""
        return Example(id=self.id, weight=self.weight)


class SearchOptions(BaseModel):
    """What may be asked of a search beside its picture; see ``lookalike search --help``."""

    model_config = ConfigDict(extra="forbid")
    like: Annotated[list[ExampleBody], Field(max_length=100)] = []
    unlike: Annotated[list[ExampleBody], Field(max_length=100)] = []
    combine: Combine = "mean"
    where: Annotated[str, Field(max_length=10_000)] | None = None
    min_score: Annotated[float, Field(ge=-1, le=1)] | None = None
    diversity: Annotated[float, Field(ge=0, le=1)] = 0.0
    exact: bool = False
    collapse_duplicates: bool = False
    crop: tuple[int, int, int, int] | None = None

    def query(self, k: int, *first: Example) -> SearchQuery:
        """The search for ``first`` and the examples in here."""
        return SearchQuery(
            like=(*first, *(example.example() for example in self.like)),
            unlike=tuple(example.example() for example in self.unlike),
            k=k,
            **self.model_dump(include=OPTIONS),
        )


class SearchById(Body, SearchOptions):
    """Search with pictures of the corpus."""

    id: PictureId | None = None
    k: int = DEFAULT_K

    def asked(self) -> SearchQuery:
        """The search for all examples in here; ``ValueError`` for a crop, which needs a file."""
        if self.crop is not None:
            raise ValueError(
                f"crop={list(self.crop)}: only a picture that is sent can be cropped. Send the "
                "file in the form field 'picture'."
            )
        return self.query(self.k, *([] if self.id is None else [Example(id=self.id)]))


class LabelEvent(BaseModel):
    """One answer: the class of one picture, or None to say that it has none after all."""

    model_config = ConfigDict(extra="forbid")
    op_id: OperationId
    id: PictureId
    label: ClassName | None
    source: Literal["suggest", "audit", "search", "import"] = "suggest"


class LabelBatch(Body):
    """Up to 1000 answers; sending a batch again changes nothing."""

    events: Annotated[list[LabelEvent], Field(min_length=1, max_length=1000)]


class Undo(Body):
    """Take back the newest answer."""


class NewClass(Body):
    """A class to label with."""

    name: ClassName


class RenamedClass(NewClass):
    """A class and the name that it gets."""

    new_name: ClassName


class Training(Body):
    """Train on the labels of this index' corpus and predict all of it."""


def api_router(services: Services) -> APIRouter:
    """All routes of version 1."""
    router = APIRouter(prefix="/v1")
    _add_pictures(router, services)
    _add_search(router, services)
    _add_labels(router, services)
    _add_classifier(router, services)
    _add_runs(router, services)
    return router


def _add_pictures(router: APIRouter, services: Services) -> None:
    session = services.session

    @router.get("/indexes")
    def indexes() -> dict[str, Any]:
        return {"indexes": session.indexes(), "default": session.default_index()}

    @router.get("/pictures/{index}")
    def browse(
        index: str, n: PageSize = DEFAULT_K, seed: Annotated[int, Query(ge=0, le=MAX_ID)] = 1
    ) -> dict[str, Any]:
        return {"pictures": session.browse(index, n, seed)}

    @router.get("/pictures/{index}/{picture_id}")
    def picture(index: str, picture_id: PictureId) -> dict[str, Any]:
        return session.describe(index, picture_id)

    @router.get("/thumbs/{index}/{picture_id}")
    def thumbnail(index: str, picture_id: PictureId, request: Request, v: str = "") -> Response:
        data, thumbs_version = session.thumbnail(index, picture_id)
        etag = f'"{hashlib.sha256(data).hexdigest()[:20]}"'
        is_pinned = v == thumbs_version
        headers = {
            "etag": etag,
            "cache-control": IMMUTABLE if is_pinned else "private, no-cache",
        }
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type=_media_type(data), headers=headers)


def _add_search(router: APIRouter, services: Services) -> None:
    session = services.session

    @router.post("/search")
    async def search(request: Request) -> SearchAnswer:
        if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            async with request.form(max_files=1, max_fields=8) as form:
                upload = form.get("picture")
                if not isinstance(upload, UploadFile):
                    raise HTTPException(
                        422, "search without a picture: send the file in the form field 'picture'."
                    )
                data = await upload.read()
                name, k = str(form.get("index", "")), _whole_number(str(form.get("k", DEFAULT_K)))
                options = _read(SearchOptions, str(form.get("options", "{}")))
            query = options.query(k, Example(picture=data, box=options.crop))
            return await run_in_threadpool(session.search, name, query)
        body = _read(SearchById, await request.body())
        return await run_in_threadpool(session.search, body.index, body.asked())


def _add_labels(router: APIRouter, services: Services) -> None:
    labelling = services.labelling

    @router.get("/labels")
    def labels(index: IndexQuery) -> dict[str, Any]:
        return labelling.progress(index)

    @router.post("/labels")
    def add_labels(batch: LabelBatch) -> dict[str, Any]:
        return labelling.write(batch.index, [event.model_dump() for event in batch.events])

    @router.post("/labels/undo")
    def undo(body: Undo) -> dict[str, Any]:
        return labelling.undo(body.index)

    @router.post("/classes")
    def create_class(body: NewClass) -> dict[str, Any]:
        return labelling.create_class(body.index, body.name)

    @router.post("/classes/rename")
    def rename_class(body: RenamedClass) -> dict[str, Any]:
        return labelling.rename_class(body.index, body.name, body.new_name)

    @router.get("/suggest")
    def suggest(
        index: IndexQuery,
        n: PageSize = DEFAULT_K,
        exclude: Annotated[str, Query(max_length=20_000, pattern=r"^[0-9,]*$")] = "",
    ) -> dict[str, Any]:
        return services.suggesting.suggest(index, n, _ids(exclude))


def _add_classifier(router: APIRouter, services: Services) -> None:
    classification = services.classification

    @router.get("/classify")
    def status(index: IndexQuery) -> dict[str, Any]:
        return classification.status(index)

    @router.post("/classify", status_code=202)
    def train(body: Training) -> dict[str, Any]:
        return classification.start(body.index)

    @router.get("/predictions/{index}")
    def predictions(
        index: str,
        label: Annotated[str | None, Query(max_length=100)] = None,
        offset: Annotated[int, Query(ge=0, le=MAX_ID)] = 0,
        n: PageSize = 48,
    ) -> dict[str, Any]:
        return classification.page(index, label=label, offset=offset, count=n)

    @router.get("/export", response_class=StreamingResponse)
    def export(index: IndexQuery, format: Literal["csv", "parquet"] = "csv") -> StreamingResponse:
        download = classification.export(index, format)
        return StreamingResponse(
            download.pieces,
            media_type=download.media_type,
            headers={"content-disposition": f'attachment; filename="{download.file_name}"'},
        )


def _add_runs(router: APIRouter, services: Services) -> None:
    @router.get("/runs")
    def runs() -> dict[str, Any]:
        return {"runs": services.runs.runs()}

    @router.get("/runs/{name}/metrics")
    def metrics(name: str) -> dict[str, Any]:
        return services.runs.metrics(name)


def _read(kind: type[Model], text: str | bytes) -> Model:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise HTTPException(422, sentence_of(error.errors())) from error


def _whole_number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise ValueError(f"k={text[:80]!r}: a whole number is needed. Send for example k=24.")
    return int(text)


def _ids(text: str) -> list[int]:
    """The ids in a list of digits and commas."""
    numbers = [number for number in text.split(",") if number]
    for number in numbers:
        # Python refuses to read some thousands of digits.
        if len(number) > len(str(MAX_ID)) or int(number) > MAX_ID:
            raise ValueError(
                f"exclude: {number[:80]} is no picture; ids go from 0 to {MAX_ID}. Send those that "
                "a suggestion gave."
            )
    return [int(number) for number in numbers]


def _media_type(data: bytes) -> str:
    return "image/webp" if data[8:12] == b"WEBP" else "image/jpeg"
