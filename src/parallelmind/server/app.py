"""The web application: `create_app`, and `app` for `uvicorn parallelmind.server.app:app`."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response

import parallelmind
from parallelmind.server import branches_api, info_api, openai_api
from parallelmind.server.api_page import api_page
from parallelmind.server.clients import ClientGoneError
from parallelmind.server.guards import BodyLimit, HostCheck, KeyCheck, RequestCount, SecurityHeaders
from parallelmind.server.loading import Served, load_served
from parallelmind.server.options import ServeOptions
from parallelmind.server.problems import ApiError, ErrorBody, add_error_handlers
from parallelmind.server.service import Service

_LOGGER = logging.getLogger(__name__)
_STATIC = Path(__file__).parent / "static"
_DESCRIPTION = "Parallel branches over one shared text, and OpenAI's endpoints for the clients you have."
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "Something in the request is wrong; `error.param` names the field"},
    401: {"model": ErrorBody, "description": "No API key, or a wrong one"},
    403: {"model": ErrorBody, "description": "Called by a name that is not this machine's"},
    404: {"model": ErrorBody, "description": "No such model, adapter or request"},
    408: {"model": ErrorBody, "description": "The body took too long to come"},
    413: {"model": ErrorBody, "description": "The body is too large"},
    415: {"model": ErrorBody, "description": "The body is compressed"},
    429: {"model": ErrorBody, "description": "The queue is full; see the header Retry-After"},
    500: {"model": ErrorBody, "description": "The model failed on this request"},
    503: {"model": ErrorBody, "description": "The model is being loaded, or the server is shutting down"},
}


def create_app(
    options: ServeOptions | None = None,
    *,
    load: Callable[[ServeOptions], Served] = load_served,
    on_failure: Callable[[], None] | None = None,
) -> FastAPI:
    """The application that serves one model.

    Args:
        options: None takes them from the environment, see `ServeOptions.from_environment`.
        load: makes the engine.
        on_failure: called when the model does not load; the application starts at once then, and answers 503 until
            the model is there. None: it starts when the model is there, and does not start without.
    Raises:
        SettingsError: an option is wrong.
    """
    service = Service(ServeOptions.from_environment() if options is None else options, load)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if on_failure is None:
            await asyncio.to_thread(service.start)
        else:
            threading.Thread(target=_start, args=(service, on_failure), name="parallelmind-loader", daemon=True).start()
        yield
        await asyncio.to_thread(service.stop)

    app = FastAPI(
        title="ParallelMind",
        version=parallelmind.__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        middleware=_middleware(service),
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    add_error_handlers(app)
    app.add_exception_handler(ClientGoneError, _nobody)
    for module in (openai_api, branches_api, info_api):
        app.include_router(module.router, responses=_PROBLEMS)
    app.add_api_route("/", _page, include_in_schema=False)
    app.mount("/static", StaticFiles(directory=_STATIC, check_dir=False))
    _describe(app)
    return app


def _middleware(service: Service) -> list[Middleware]:
    options = service.options

    def count(endpoint: str, status: int) -> None:
        service.metrics.requests.labels(endpoint, str(status)).inc()

    guards = [Middleware(RequestCount, count=count), Middleware(SecurityHeaders)]
    if options.loopback and options.api_key is None:
        guards.append(Middleware(HostCheck, allowed=[options.host, *options.allowed_host]))
    if options.cors_origin:
        guards.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(options.cors_origin),
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["Authorization", "Content-Type"],
                expose_headers=["Retry-After"],
            )
        )
    if options.api_key is not None:
        guards.append(Middleware(KeyCheck, key=options.api_key))
    guards.append(Middleware(BodyLimit, max_bytes=options.max_request_bytes))
    return guards


def _start(service: Service, on_failure: Callable[[], None]) -> None:
    try:
        service.start()
    except Exception:
        on_failure()


async def _page() -> Response:
    page = _STATIC / "index.html"
    if not page.is_file():
        raise ApiError(404, "this installation has no page; the API is described at /docs")
    return FileResponse(page)


async def _nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=400)


def _describe(app: FastAPI) -> None:
    """Add the description of the API, which takes a second to make: when it is first asked for, beside the event loop.

    Wrong fields are answered with 400, not with FastAPI's own 422.
    """
    describe, making = app.openapi, threading.Lock()

    @cache
    def made() -> tuple[dict[str, Any], str]:
        schema = describe()
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
        return schema, api_page(schema)

    def described() -> dict[str, Any]:
        with making:
            return made()[0]

    def page() -> HTMLResponse:
        with making:
            return HTMLResponse(made()[1])

    app.openapi = described  # type: ignore[method-assign]
    # These are no coroutines: FastAPI calls them in threads.
    app.add_api_route("/openapi.json", lambda: JSONResponse(app.openapi()), include_in_schema=False)
    app.add_api_route("/docs", page, include_in_schema=False)


def __getattr__(name: str) -> Any:
    # Made on first use, so that importing `create_app` does not need the environment of `app`.
    if name == "app":
        globals()["app"] = made = create_app()
        return made
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
