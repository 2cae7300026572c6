"""The checks that every request passes before the API sees it (key, size, time), and the headers of every answer."""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from parallelmind.server.problems import ApiError

_BODY_SECONDS = 60.0
"""Time to send a request's body."""
_LOOPBACK = re.compile(r"127(\.\d+){3}")
_OPEN_PATHS = ("/", "/health", "/docs", "/openapi.json")
_OPEN_FOLDER = "/static/"
_CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


class SecurityHeaders:
    """Nothing from elsewhere, no inline scripts, no frames around the page."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-cache" if _is_open(scope["path"]) else "no-store")
            await send(message)

        return await self._app(scope, receive, with_headers)


class RequestCount:
    """Calls `count(endpoint, status)` for every answer; the endpoint is the route, never what a client made up."""

    def __init__(self, app: ASGIApp, count: Callable[[str, int], None]):
        self._app = app
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                self._count(getattr(route, "path", "other"), message["status"])
            await send(message)

        return await self._app(scope, receive, counted)


class HostCheck:
    """Refuses calls by a name that is not this machine's.

    A page elsewhere can have its own name resolve to 127.0.0.1 (DNS rebinding), and would then be of the same origin.
    """

    def __init__(self, app: ASGIApp, allowed: Sequence[str]):
        self._app = app
        self._allowed = {name.lower() for name in allowed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/health":
            name = _host_name(Headers(scope=scope).get("host", ""))
            if name not in self._allowed and name not in ("localhost", "::1") and not _LOOPBACK.fullmatch(name):
                message = "this server is for its own machine, but was called by another name"
                remedy = "allow it with --allowed_host NAME, or set an API key"
                return await ApiError(403, f"{message}; {remedy}", code="wrong_host").response()(scope, receive, send)
        return await self._app(scope, receive, send)


class KeyCheck:
    """Asks for `Authorization: Bearer KEY` everywhere but at the page, its files, the documents and /health."""

    def __init__(self, app: ASGIApp, key: str):
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_open(scope["path"]):
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get("authorization", "")
        scheme, _, key = given.partition(" ")
        # Compared even where the scheme is wrong or no key came, so that the time tells nothing about the key.
        right = hmac.compare_digest(key.strip().encode("latin-1"), self._key)
        if scheme.lower() == "bearer" and right:
            return await self._app(scope, receive, send)
        message = "wrong API key" if given else "this server asks for an API key"
        error = ApiError(
            401,
            f"{message}; send the header Authorization: Bearer KEY",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        return await error.response()(scope, receive, send)


class BodyLimit:
    """Refuses a body as soon as it is too large, whatever its headers say, and one that takes too long to come."""

    def __init__(self, app: ASGIApp, max_bytes: int):
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdigit() or int(length) > self._max_bytes:
            return await self._error().response()(scope, receive, send)
        read, complete = 0, False
        deadline = asyncio.get_running_loop().time() + _BODY_SECONDS

        async def limited() -> Message:
            nonlocal read, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                raise HTTPException(408, "the body took too long to come", {"Connection": "close"}) from error
            read += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if read > self._max_bytes:
                # FastAPI turns other exceptions that reading raises into "400".
                raise HTTPException(413, self._error().message, {"Connection": "close"})
            return message

        return await self._app(scope, limited, send)

    def _error(self) -> ApiError:
        return ApiError(
            413,
            f"the body is larger than the {self._max_bytes} bytes this server takes",
            code="request_too_large",
            headers={"Connection": "close"},
        )


def _host_name(host: str) -> str:
    try:
        return urlsplit("//" + host).hostname or ""
    except ValueError:  # brackets without an address in them
        return ""


def _is_open(path: str) -> bool:
    return path in _OPEN_PATHS or path.startswith(_OPEN_FOLDER)
