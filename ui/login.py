"""The login page and our own browser files: the routes that are not part of the API."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Form, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from ui.gate import COOKIE, Guard

__all__ = ["asset_router", "login_router"]

MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
SESSION_S = 30 * 24 * 3600

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>lookalike: log in</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<style>
body {{ display: grid; place-items: center; min-height: 90vh; margin: 0 }}
body {{ font: 16px/1.5 system-ui, sans-serif }}
form {{ width: min(20rem, 86vw); display: grid; gap: .8rem }}
h1 {{ font-size: 1.4rem; margin: 0 }} p {{ margin: 0; opacity: .75 }}
input, button {{ font: inherit; padding: .6rem .8rem }}
input, button {{ border-radius: .5rem; border: 1px solid #8886 }}
button {{ background: #0f827a; color: #fff; border: 0; cursor: pointer }}
</style></head><body>
<form method="post" action="/login"><h1>lookalike</h1>
<p>{message}</p>
<input name="token" type="password" aria-label="Token" autocomplete="current-password"
 required autofocus>
<button>Log in</button></form>
</body></html>
"""
WELCOME = "This server is protected. Enter the token that it was started with."
WRONG = "That is not the token. It was given to the server with --token; ask whoever started it."


def login_router(guard: Guard) -> APIRouter:
    """The login page; without a token it leads straight to the application."""
    router = APIRouter(include_in_schema=False)

    @router.get("/login")
    def page() -> Response:
        if not guard.has_token:
            return RedirectResponse("/", status_code=303)
        return HTMLResponse(PAGE.format(message=WELCOME))

    @router.post("/login")
    def log_in(request: Request, token: Annotated[str, Form(max_length=1000)]) -> Response:
        if not guard.accepts(token):
            return HTMLResponse(PAGE.format(message=WRONG), status_code=401)
        response = RedirectResponse("/", status_code=303)
        response.set_cookie(
            COOKIE,
            guard.session,
            max_age=SESSION_S,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    return router


def asset_router(folder: Path) -> APIRouter:
    """Scripts and styles of ours, by name from a list: no path is ever built from a request."""
    router = APIRouter(include_in_schema=False)
    files = {path.name: path for path in sorted(folder.iterdir()) if path.suffix in MEDIA_TYPES}

    @router.get("/parts/{name}")
    def part(name: str, request: Request) -> Response:
        if name not in files:
            raise HTTPException(404, f"{name!r}: there is no such file. Reload the page.")
        content = files[name].read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()[:20]}"'
        headers = {"etag": etag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=MEDIA_TYPES[files[name].suffix], headers=headers)

    return router
