"""`parallelmind docs-server`, asked with the client of the MCP SDK."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from mcp import Client, StdioServerParameters

from parallelmind.errors import DataError
from parallelmind.retrieval.documentation import Documentation
from parallelmind.retrieval.project.requirements import parse_requirements
from parallelmind.server.documentation import mcp_server
from parallelmind.server.documentation.mcp_server import DocumentationServer
from tests.retrieval.check.library import write_library

Calls = Callable[[Client], Awaitable[None]]


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    return write_library(tmp_path / "corpora")


@asynccontextmanager
async def connected(server: DocumentationServer) -> AsyncIterator[Client]:
    try:
        async with Client(server.mcp) as client:
            yield client
    finally:
        server.close()


def served(corpora: Path, calls: Calls, *, requirements: str = "kiln==2.0.0", may_build: bool = False) -> None:
    async def run() -> None:
        project = parse_requirements(requirements, "requirements.txt") if requirements else None
        async with connected(DocumentationServer(Documentation(corpora, project), may_build=may_build)) as client:
            await calls(client)

    asyncio.run(run())


async def answer(client: Client, name: str, /, **arguments: Any) -> tuple[dict[str, Any], str]:
    """The structured answer, which fits the tool's schema, and the text."""
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    result = await client.call_tool(name, arguments)
    text = result.content[0].text  # type: ignore[union-attr]
    assert not result.is_error, text
    assert tools[name].output_schema is not None
    jsonschema.validate(result.structured_content, tools[name].output_schema)
    return result.structured_content, text


async def refusal(client: Client, name: str, arguments: dict[str, Any]) -> str:
    result = await client.call_tool(name, arguments)
    text = result.content[0].text  # type: ignore[union-attr]
    assert result.is_error, text
    return str(text)


async def the_four_tools(client: Client) -> None:
    assert [tool.name for tool in (await client.list_tools()).tools] == ["lookup", "search", "diff", "check_code"]
    found, text = await answer(client, "lookup", name="kiln.fire")
    assert (found["status"], found["version"], found["defined_as"]) == ("present", "2.0.0", "kiln.core.fire")
    assert text.startswith("kiln.fire(pots, hours=1")
    found, text = await answer(client, "lookup", name="kiln.stack")
    assert (found["status"], found["replacement"]) == ("absent", "kiln.tools.stack")
    assert "kiln.stack does not exist in kiln 2.0.0: kiln, as imported with Python" in text
    found, _ = await answer(client, "lookup", name="kiln.stack", version="1.9.0")
    assert (found["status"], found["documentation"]) == ("present", "Stack pots by size.")
    found, text = await answer(client, "lookup", name="kiln.fires")
    assert "kiln.fire" in found["similar"]
    assert "Much like it: kiln.fire" in text
    found, text = await answer(client, "lookup", name="kiln.smoke")
    assert (found["deprecated"][:20], found["replacement"]) == ("Deprecated since 1.8", "kiln.fire")
    found, text = await answer(client, "search", query="smoke the pots")
    assert found["hits"][0]["name"] == "kiln.smoke"
    assert "kiln.smoke" in text
    found, text = await answer(client, "diff", package="kiln", **{"from": "1.9.0", "to": "2.0.0"})
    changes = {(one["kind"], one["name"]): one for one in found["changes"]}
    assert changes["moved", "kiln.stack"]["new_name"] == "kiln.tools.stack"
    assert ("removed", "kiln.Kiln.cool") in changes
    assert found["total"] == len(found["changes"])
    assert "moved: kiln.stack to kiln.tools.stack" in text
    found, text = await answer(client, "check_code", source="import kiln\n\nkiln.bake()\n")
    assert [(one["line"], one["column"], one["kind"]) for one in found["findings"]] == [(3, 6, "absent")]
    assert found["versions"] == {"kiln": "2.0.0"}
    assert "line 3, column 6: absent: kiln.bake does not exist in kiln 2.0.0" in text
    source = "import glaze, kiln\nglaze.pour()\nkiln.stack([])\n"
    found, _ = await answer(client, "check_code", source=source, requirements="glaze\nkiln<2\n")
    assert [one["name"] for one in found["findings"]] == ["glaze.pour"]


def test_in_this_process(corpora: Path) -> None:
    served(corpora, the_four_tools)


def test_what_cannot_be_answered_says_what_to_do(corpora: Path) -> None:
    async def calls(client: Client) -> None:
        for name, arguments, message in [
            ("lookup", {}, "name: Field required"),
            ("lookup", {"name": 3}, "name: Input should be a valid string"),
            ("lookup", {"name": "kiln", "more": 1}, "more: Extra inputs are not permitted"),
            ("lookup", {"name": "kiln."}, "'kiln.' is not a dotted name"),
            ("lookup", {"name": "glaze.dip"}, "requirements.txt does not name glaze; give the version"),
            ("lookup", {"name": "kiln.fire", "version": "7"}, "make it with: parallelmind corpus build kiln==7"),
            ("lookup", {"name": "kiln.fire", "version": "new"}, "'new' is not a version"),
            ("lookup", {"name": "numpy.array", "version": "1.2"}, "make it with: parallelmind corpus build numpy==1.2"),
            ("search", {"query": " "}, "write from 1 to"),
            ("search", {"query": "x", "version": "1"}, "name the package"),
            ("diff", {"package": "kiln", "from": "1.9.0"}, "to: Field required"),
            ("diff", {"package": "kiln", "from": "1.9.0", "to": "9"}, "parallelmind corpus build kiln==9"),
            ("check_code", {"source": "import ("}, "source: line 1 is not code of Python"),
            ("check_code", {"source": "", "requirements": "kiln=1"}, "requirements: line 1: kiln=1 is not"),
            ("check_code", {"source": "", "requirements": "-r /etc/passwd"}, "requirements: line 1 includes a file"),
            ("nothing", {}, "there are lookup, search, diff, check_code"),
        ]:
            assert message in await refusal(client, name, arguments)
        assert (await answer(client, "lookup", name="kiln.fire"))[0]["status"] == "present"

    served(corpora, calls)


def test_without_a_project(corpora: Path) -> None:
    async def calls(client: Client) -> None:
        assert "version is missing, and no project was given" in await refusal(client, "lookup", {"name": "kiln.fire"})
        assert "no project says which packages" in await refusal(client, "search", {"query": "x"})
        assert "requirements are missing" in await refusal(client, "check_code", {"source": "x"})

    served(corpora, calls, requirements="")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("check_code", {"source": "x" * 5_000_000}),
        ("check_code", {"source": "(" * 200_000}),
        ("check_code", {"source": "a" + ".b" * 90_000}),
        ("check_code", {"source": "-" * 190_000 + "1"}),
        ("check_code", {"source": "x", "requirements": "a; " + "(" * 90_000}),
        ("check_code", {"source": "x", "requirements": "a" + " " * 90_000 + "b"}),
        ("check_code", {"source": "x", "requirements": "a==" + "1" * 90_000}),
        ("check_code", {"source": "\0", "requirements": "\0"}),
        ("lookup", {"name": "kiln." + "a" * 1_000_000}),
        ("lookup", {"name": "kiln" + ".a" * 140}),
        ("lookup", {"name": "kiln.\u202e\u0000"}),
        ("lookup", {"name": "kiln.fire", "version": "1" * 99}),
        ("lookup", {"name": "../../etc/passwd", "version": "1"}),
        ("search", {"query": "a " * 1_000_000}),
        ("search", {"query": "x", "package": "../..", "version": "1"}),
        ("diff", {"package": "kiln", "from": "1" * 10_000, "to": "\0"}),
        ("lookup", {"name": {"a": [1] * 10_000}}),
    ],
)
def test_hostile_calls_end_at_once(corpora: Path, name: str, arguments: dict[str, Any]) -> None:
    async def calls(client: Client) -> None:
        await client.list_tools()
        started = time.monotonic()
        result = await client.call_tool(name, arguments)
        assert time.monotonic() - started < 10
        text = result.content[0].text  # type: ignore[union-attr]
        assert result.is_error or result.structured_content["status"] != "present"
        assert len(text) < 2_000
        assert "its log says why" not in text
        assert (await answer(client, "lookup", name="kiln.fire"))[0]["status"] == "present"

    served(corpora, calls)


def test_missing_corpora_are_built_where_that_is_allowed(
    tmp_path: Path, corpora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []

    def build(requests: list[str], corpus_path: Path) -> None:
        built.extend(requests)
        if requests == ["broken==1"]:
            raise DataError("cannot build broken==1: there is no such version")
        corpora.rename(corpus_path)

    monkeypatch.setattr(mcp_server, "build_now", build)

    async def calls(client: Client) -> None:
        found, _ = await answer(client, "check_code", source="import kiln, os\nkiln.bake()\n")
        assert [one["name"] for one in found["findings"]] == ["kiln.bake"]
        assert "there is no such version" in await refusal(client, "lookup", {"name": "broken.x"})

    served(tmp_path / "empty", calls, requirements="kiln==2.0.0\nglaze\nbroken==1", may_build=True)
    assert built == ["kiln==2.0.0", "broken==1"]


def test_nothing_is_built_where_that_is_not_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_server, "build_now", lambda *_: pytest.fail("built"))

    async def calls(client: Client) -> None:
        message = await refusal(client, "lookup", {"name": "kiln.fire"})
        assert f"make it with: parallelmind corpus build kiln==2.0.0 --corpus_path {tmp_path}" in message

    served(tmp_path, calls)


def _command(corpora: Path, *flags: str) -> list[str]:
    (corpora.parent / "requirements.txt").write_text("kiln==2.0.0\n")
    given = ["--corpus_path", str(corpora), "--requirements", str(corpora.parent / "requirements.txt")]
    return ["-m", "parallelmind", "docs-server", *given, *flags]


def test_over_standard_input_and_output(corpora: Path) -> None:
    async def run() -> None:
        how = StdioServerParameters(command=sys.executable, args=_command(corpora), env=dict(os.environ))
        async with Client(how) as client:
            await the_four_tools(client)

    asyncio.run(run())


@pytest.fixture
def address(corpora: Path) -> Iterator[str]:
    command = [sys.executable, *_command(corpora, "--transport", "http", "--port", "0")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said = next(line for line in process.stderr if "listening on" in line)
            found = re.search(r"http://127\.0\.0\.1:\d+/mcp", said)
            assert found is not None
            yield found.group()
        finally:
            process.terminate()
            process.stderr.read()
            assert process.wait(20) in (0, 143)


def test_over_http(address: str) -> None:
    async def run() -> None:
        async with Client(address) as client:
            await the_four_tools(client)
            assert "at most 100000" in await refusal(client, "check_code", {"source": "x" * 300_000})

    asyncio.run(run())


def _posted(address: str, body: bytes, **headers: str) -> int:
    import http.client

    host, _, path = address.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=30)
    given = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"} | headers
    connection.request("POST", f"/{path}", body, given)
    status = connection.getresponse().status
    connection.close()
    return status


def test_hostile_bodies_are_refused(address: str) -> None:
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
    lone = json.dumps(call | {"params": {"name": "check_code", "arguments": {"source": "'\udc00'"}}})
    assert _posted(address, b"[" * 1_000_000) == 400
    assert _posted(address, b"x" * 20_000_000) == 413
    assert _posted(address, b"\xff\xfe") == 400
    assert _posted(address, lone.encode()) in (200, 400)
    assert _posted(address, b"{}", Host="evil.example.org") == 421
    assert _posted(address, b"{}", Origin="http://evil.example.org") == 403
    test_over_http(address)
