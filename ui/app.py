"""The application: gate, API, assets and Gradio put together, and the server that runs them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.requests import Request

from cluster.workspace import Workspace
from ui.config import UiConfig
from ui.gate import Gate, Guard

if TYPE_CHECKING:
    from cluster.context import Context

__all__ = ["UiConfig", "build_app", "serve"]

ASSETS = Path(__file__).parent / "assets"


def build_app(workspace: Workspace, config: UiConfig) -> FastAPI:
    """The whole application over one workspace, ready for any ASGI server.

    Args:
        workspace: what it shows; it may still be empty.
        config: whom it lets in and how large uploads may be.
    """
    # Gradio reads it when imported: no telemetry and no question for newer versions.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from ui.api import api_router
    from ui.login import asset_router, login_router
    from ui.services import Services, add_error_handlers, add_no_route

    guard = Guard(config)
    services = Services.of(workspace, config)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        services.close()

    app = FastAPI(
        title="lookalike",
        version="1",
        docs_url=None,
        redoc_url=None,
        openapi_url="/v1/openapi.json",
        lifespan=lifespan,
    )
    app.add_middleware(Gate, guard=guard)
    add_error_handlers(app, workspace)
    app.include_router(login_router(guard))
    app.include_router(asset_router(ASSETS))
    app.include_router(api_router(services))
    add_no_route(app)

    _inside_a_loop(lambda: _mount_gradio(app, guard, config))
    return app


def _mount_gradio(app: FastAPI, guard: Guard, config: UiConfig) -> None:
    import gradio as gr

    from ui.layout import HEAD, build_blocks
    from ui.theme import make_theme

    def user_of(request: Request) -> str | None:
        return guard.user(request)

    gr.mount_gradio_app(
        app,
        build_blocks(),
        path="/",
        auth_dependency=user_of,
        allowed_paths=[],
        favicon_path=str(ASSETS / "icon.svg"),
        show_error=False,
        max_file_size=config.max_upload_bytes,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        run_history=False,
        footer_links=[],
        pwa=False,
        theme=make_theme(),
        head=HEAD,
    )


def _inside_a_loop(work: Callable[[], None]) -> None:
    """Where no event loop is running, Gradio makes some that it never closes: lend it one."""

    async def main() -> None:
        work()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(main())
    else:
        work()


def serve(config: UiConfig, context: Context) -> dict[str, Any]:
    """Run the application until it is interrupted.

    Raises:
        OSError: the port is taken.
    """
    import uvicorn

    with _listen(config) as listener, tempfile.TemporaryDirectory(prefix="lookalike-") as scratch:
        # Gradio reads it when imported, which `build_app` does.
        os.environ["GRADIO_TEMP_DIR"] = scratch
        app = build_app(context.workspace, config)
        url = f"http://{config.host}:{listener.getsockname()[1]}"
        context.say(f"lookalike is ready: {url}  (Ctrl+C stops it)")
        settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
        uvicorn.Server(settings).run(sockets=[listener])
    return {"url": url, "workspace": str(context.workspace.root)}


def _listen(config: UiConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family)
    except OSError as error:
        raise OSError(
            f"ui cannot listen on {config.host}:{config.port} ({error.strerror}). Allowed is a "
            "free port. Stop what uses it, or choose another --port; 0 takes a free one."
        ) from error
