"""The gate: one ASGI layer in front of every route, the API's, the assets' and Gradio's alike.

It checks, in this order: that the request names this server (against DNS rebinding), that no other
site sends it (against cross-site requests), that it carries the token, and that its body is not too
large. The token comes as ``Authorization: Bearer TOKEN`` or in the cookie that the login page sets.
"""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import urlsplit

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.config import UiConfig, is_loopback

__all__ = ["COOKIE", "Gate", "Guard"]

COOKIE = "lookalike_session"
OPEN_PATHS = frozenset({"/login"})
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
# Gradio's ways to files, uploads and other machines: nothing of ours needs them.
CLOSED_PREFIXES = tuple(
    f"/gradio_api/{name}"
    for name in (
        "component_server", "custom_component", "deep_link", "dev", "file", "mcp", "proxy",
        "process_recording", "stream", "undo-vibe", "upload", "vibe",
    )
)  # fmt: skip
# Multipart headers and form fields around the picture.
BODY_SLACK_BYTES = 1 << 16

# Gradio builds templates with `new Function` and styles its elements inline, hence both exceptions;
# what the policy does hold is that no page of ours can load from or send to another machine.
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """Who may pass: the rules of one `UiConfig`, without any ASGI."""

    def __init__(self, config: UiConfig) -> None:
        self._token = config.token
        self._session = _session_of(config.token) if config.token else ""
        self._hosts = LOOPBACK_NAMES | {config.host} if is_loopback(config.host) else None
        self.max_body_bytes = config.max_upload_bytes + BODY_SLACK_BYTES

    @property
    def has_token(self) -> bool:
        """Whether visitors have to log in."""
        return self._token is not None

    def accepts(self, token: str) -> bool:
        """Whether this is the token; takes the same time for every wrong one."""
        return self._token is not None and hmac.compare_digest(token.encode(), self._token.encode())

    @property
    def session(self) -> str:
        """Value of the login cookie: made from the token, so that a new token ends old logins."""
        return self._session

    def user(self, request: HTTPConnection) -> str | None:
        """Name of who asks, or None for somebody who is not logged in."""
        if self._token is None:
            return "local"
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.accepts(token.strip()):
            return "token"
        cookie = request.cookies.get(COOKIE, "")
        return "token" if hmac.compare_digest(cookie.encode(), self._session.encode()) else None

    def names_this_server(self, headers: Headers) -> bool:
        """Whether the Host header is ours; a foreign name that resolves to loopback is not."""
        if self._hosts is None or self._token is not None:
            return True
        try:
            return urlsplit(f"//{headers.get('host', '')}").hostname in self._hosts
        except ValueError:
            return False

    @staticmethod
    def comes_from_elsewhere(scope: Scope, headers: Headers) -> bool:
        """Whether another site's page sends this request; following a link to us is fine."""
        origin = headers.get("origin")
        if origin is not None:
            try:
                return urlsplit(origin).netloc != headers.get("host")
            except ValueError:  # no address, and so not ours
                return True
        is_link = headers.get("sec-fetch-mode") == "navigate" and scope.get("method") == "GET"
        return headers.get("sec-fetch-site") in {"cross-site", "same-site"} and not is_link

    def too_large(self, length: int) -> str:
        """The sentence for a body of ``length`` bytes."""
        return (
            f"Upload of {length} bytes: at most {self.max_body_bytes - BODY_SLACK_BYTES} bytes are "
            "allowed. Send a smaller picture, or start the server with a larger --max-upload-mb."
        )


class Gate:
    """ASGI middleware that lets through what the guard allows and adds the security headers."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(HTTPConnection(scope))
        if refusal is not None:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await refusal(scope, receive, _with_security_headers(send))
            return
        await self._app(scope, self._counted(receive), _with_security_headers(send))

    def _refusal(self, request: HTTPConnection) -> Response | None:
        scope, headers = request.scope, request.headers
        if not self._guard.names_this_server(headers):
            return _refuse(421, "This server does not answer to that host name. Use 127.0.0.1.")
        if self._guard.comes_from_elsewhere(scope, headers):
            return _refuse(403, "Requests from other sites are refused. Open lookalike itself.")
        if scope["path"] not in OPEN_PATHS and self._guard.user(request) is None:
            if "text/html" in headers.get("accept", "") and scope.get("method") == "GET":
                return RedirectResponse("/login", status_code=303)
            return _refuse(
                401, "This server needs its token. Log in at /login, or send it as Bearer."
            )
        if scope["path"].startswith(CLOSED_PREFIXES):
            return _refuse(404, "This route is closed. The API is under /v1.")
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._guard.max_body_bytes:
            return _refuse(413, self._guard.too_large(int(length)))
        return None

    def _counted(self, receive: Receive) -> Receive:
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._guard.max_body_bytes:
                raise HTTPException(413, self._guard.too_large(received))
            return message

        return counted


def _session_of(token: str) -> str:
    return hmac.new(token.encode(), b"lookalike session", hashlib.sha256).hexdigest()


def _refuse(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"error": sentence}, status_code=status)


def _with_security_headers(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
                headers[name] = value
        await send(message)

    return guarded
