"""Everything behind the API, made once per application, and how its errors become answers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from cluster.workspace import Workspace
from index.artifact import ArtifactError, MissingArtifactError
from ui.classification import Classification
from ui.config import UiConfig
from ui.labelling import Labelling
from ui.runs import RunBoard
from ui.session import Session, UnknownPictureError
from ui.suggesting import Suggesting

__all__ = ["Services", "add_error_handlers", "add_no_route", "sentence_of"]

logger = logging.getLogger(__name__)

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
BODY = " The body has to be a JSON object, sent with the header Content-Type: application/json."
UNEXPECTED = (
    "Something failed inside the server. Nothing that was saved is lost; its log says what failed. "
    "Try again, and report it if it stays."
)


@dataclass(frozen=True, slots=True)
class Services:
    """The plain objects that do the work."""

    session: Session
    labelling: Labelling
    suggesting: Suggesting
    classification: Classification
    runs: RunBoard

    @classmethod
    def of(cls, workspace: Workspace, config: UiConfig) -> Services:
        """Wire them together over one workspace."""
        session = Session(workspace, config)
        labelling = Labelling(session)
        return cls(
            session=session,
            labelling=labelling,
            suggesting=Suggesting(session, labelling),
            classification=Classification(session, labelling),
            runs=RunBoard(workspace),
        )

    def close(self) -> None:
        """Let training end and close the label log."""
        self.classification.close()
        self.labelling.close()


def add_error_handlers(app: FastAPI, workspace: Workspace) -> None:
    """Answer every error with one sentence that names no folder of the server."""
    root = str(workspace.root)

    def answer(status: int) -> Callable[[Request, Exception], JSONResponse]:
        def handler(_: Request, error: Exception) -> JSONResponse:
            sentence = str(error).replace(root, "workspace")
            return JSONResponse({"error": sentence}, status_code=status)

        return handler

    def http_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        sentence = str(error.detail)
        if error.status_code == 400:  # the framework's alone, for bodies that it cannot read
            sentence = f"{sentence.rstrip('.')}.{BODY} A picture is sent as a form: curl -F."
        return JSONResponse({"error": sentence}, status_code=error.status_code)

    def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return JSONResponse({"error": sentence_of(error.errors())}, status_code=422)

    def unexpected(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return JSONResponse({"error": UNEXPECTED}, status_code=500)

    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(UnknownPictureError, answer(404))
    app.add_exception_handler(MissingArtifactError, answer(404))
    app.add_exception_handler(ArtifactError, answer(503))
    app.add_exception_handler(ValueError, answer(422))
    app.add_exception_handler(Exception, unexpected)


def add_no_route(app: FastAPI) -> None:
    """Answer what the API lacks, before Gradio, which takes all other paths, does in its words."""

    def no_route(request: Request) -> None:
        raise HTTPException(
            404,
            f"{request.method} {request.url.path[:80]}: there is no such route, or it takes "
            "another method. GET /v1/openapi.json lists them all.",
        )

    app.add_api_route("/v1/{rest:path}", no_route, methods=METHODS, include_in_schema=False)


def sentence_of(errors: Any) -> str:
    """One sentence for pydantic's list of errors: the value is named, what it may be, and where."""
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"]) or "body"
    given = repr(first.get("input"))
    shown = given if len(given) <= 80 else f"{given[:77]}..."
    problem = f"{first['msg']}. Correct it and send it again; see /v1/openapi.json."
    in_text = first["type"] == "json_invalid"
    about_all = first["loc"] == ("body",) or (in_text and first["loc"][:1] == ("body",))
    return f"{where}={shown}: {problem}{BODY if about_all else ''}"
