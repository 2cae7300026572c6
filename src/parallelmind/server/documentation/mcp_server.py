"""The server itself: MCP on standard input and output, or over HTTP on this machine."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import anyio
import uvicorn
from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

import parallelmind
from parallelmind.errors import DataError, ParallelMindError, SettingsError
from parallelmind.retrieval.documentation import Documentation, MissingCorpusError
from parallelmind.retrieval.on_demand import build_now
from parallelmind.server.documentation.forms import MAX_REQUIREMENTS, MAX_SOURCE
from parallelmind.server.documentation.tools import TOOLS, Tool, parse_arguments

HOST = "127.0.0.1"
PATH = "/mcp"
_MAX_BODY = 8 * (MAX_SOURCE + MAX_REQUIREMENTS)
"""In bytes: every character may be escaped."""
_MAX_BUILDS = 4
_INSTRUCTIONS = (
    "Documentation of the exact versions of packages that this project uses. Before you use an API that you are not "
    "sure of, look it up; after you wrote code, check it with check_code. An answer `unknown` means that nothing is "
    "proven either way."
)
_LOGGER = logging.getLogger(__name__)
_T = TypeVar("_T")


class DocumentationServer:
    """Answers calls of tools: the documentation is asked in a thread of its own, and corpora are built in others."""

    def __init__(self, documentation: Documentation, *, may_build: bool = False) -> None:
        self._documentation, self._may_build = documentation, may_build
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="documentation")
        self._building = anyio.Lock()
        self.mcp: Server[Any] = Server(
            "parallelmind-docs",
            version=parallelmind.__version__,
            instructions=_INSTRUCTIONS,
            on_list_tools=self._list,
            on_call_tool=self._call,
        )

    def close(self) -> None:
        self._thread.submit(self._documentation.close)
        self._thread.shutdown()

    async def _list(self, context: Any, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[_described(name, tool) for name, tool in TOOLS.items()])

    async def _call(self, context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        try:
            if (tool := TOOLS.get(params.name)) is None:
                raise DataError(f"there is no such tool; there are {', '.join(TOOLS)}.")
            given = parse_arguments(tool, params.name, params.arguments or {})
            result, text = await self._answer(tool, given)
        except ParallelMindError as error:
            return _failed(str(error))
        except Exception:
            _LOGGER.exception("the tool %s failed", params.name)
            return _failed("the server failed at this call; its log says why.")
        return types.CallToolResult(
            content=[types.TextContent(type="text", text=_plain(text))],
            structured_content=_plain_values(result.model_dump(mode="json")),
        )

    async def _answer(self, tool: Tool, given: Any) -> tuple[Any, str]:
        for _ in range(_MAX_BUILDS if self._may_build else 0):
            if requests := await self._in_thread(tool.lacking, self._documentation, given):
                await self._build(requests)
            try:
                return await self._in_thread(tool.answer, self._documentation, given)
            except MissingCorpusError as error:
                await self._build([error.request])
        return await self._in_thread(tool.answer, self._documentation, given)

    async def _build(self, requests: list[str]) -> None:
        async with self._building:
            await anyio.to_thread.run_sync(partial(build_now, requests, self._documentation.corpus_path))
            await self._in_thread(self._documentation.close)

    async def _in_thread(self, function: Callable[..., _T], *arguments: Any) -> _T:
        # One thread: an open corpus belongs to the thread that opened it.
        return await asyncio.wrap_future(self._thread.submit(function, *arguments))


def serve_stdio(server: DocumentationServer) -> None:
    """Answer the process that started this one, until it closes standard input."""

    async def run() -> None:
        async with stdio_server() as (incoming, outgoing):
            await server.mcp.run(incoming, outgoing, server.mcp.create_initialization_options())

    try:
        anyio.run(run)
    finally:
        server.close()


def serve_http(server: DocumentationServer, port: int) -> None:
    """Answer over HTTP on this machine alone, until interrupted.

    Raises:
        SettingsError: the port cannot be listened on.
    """
    app = server.mcp.streamable_http_app(
        streamable_http_path=PATH, json_response=True, stateless_http=True, max_request_body_size=_MAX_BODY, host=HOST
    )
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"--port {port} cannot be listened on ({error.strerror or error}); choose another, or 0 for any free one."
        ) from error
    _LOGGER.info("listening on http://%s:%d%s", HOST, listener.getsockname()[1], PATH)
    config = uvicorn.Config(app, log_config=None, log_level="warning")
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        server.close()


def _described(name: str, tool: Tool) -> types.Tool:
    return types.Tool(
        name=name,
        description=tool.description,
        input_schema=tool.takes.model_json_schema(by_alias=True),
        output_schema=tool.gives.model_json_schema(),
        annotations=types.ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False),
    )


def _failed(reason: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=_plain(reason))], is_error=True)


def _plain(text: str) -> str:
    """Without lone surrogates, which no encoding has."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _plain_values(value: Any) -> Any:
    if isinstance(value, str):
        return _plain(value)
    if isinstance(value, list):
        return [_plain_values(one) for one in value]
    return {_plain(name): _plain_values(one) for name, one in value.items()} if isinstance(value, dict) else value
