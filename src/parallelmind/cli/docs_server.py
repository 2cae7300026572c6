"""`parallelmind docs-server`: documentation of exact versions for coding agents, over MCP."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Literal

from annotated_types import Ge, Le

from parallelmind.cli.flags import add_settings, given
from parallelmind.errors import SettingsError
from parallelmind.retrieval.project.options import ProjectOptions
from parallelmind.retrieval.search_options import SearchOptions
from parallelmind.settings.setting import Setting, Settings

EPILOG = """\
Tools: lookup(name, version), search(query, package, version), diff(package, from, to), check_code(source,
requirements). Versions that a call does not name are those of --requirements. Without --build nothing is downloaded,
and an answer that lacks a corpus says which command builds it; what is built needs no network.

A client starts it with standard input and output: {"command": "parallelmind", "args": ["docs-server", …]}. With
--transport http it is at http://127.0.0.1:PORT/mcp, for this machine alone; everyone on this machine can ask it.
"""
_NEEDED = ("mcp", "uvicorn")


@dataclass(frozen=True, kw_only=True)
class DocsServerOptions(Settings):
    """How clients reach the server; the names are the flags."""

    transport: Annotated[
        Literal["stdio", "http"], Setting("standard input and output, or streamable HTTP on 127.0.0.1", "running")
    ] = "stdio"
    port: Annotated[int, Ge(0), Le(65535), Setting("port of --transport http", "running", note="0 is any free one")] = (
        8765
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add_settings(parser, ProjectOptions, SearchOptions, DocsServerOptions)


def run(args: argparse.Namespace) -> int:
    """Serve until the client is gone, or until interrupted."""
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise SettingsError(
            f"docs-server needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed; "
            "run: pip install 'parallelmind[agents]'"
        )
    from parallelmind.server.documentation.mcp_server import DocumentationServer, serve_http, serve_stdio

    options = ProjectOptions(**given(args, ProjectOptions))
    search = SearchOptions(**given(args, SearchOptions))
    how = DocsServerOptions(**given(args, DocsServerOptions))
    server = DocumentationServer(options.documentation(search.ranker()), may_build=options.build)
    if how.transport == "stdio":
        serve_stdio(server)
    else:
        serve_http(server, how.port)
    return 0
