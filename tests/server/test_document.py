"""What docs/service.md shows is what happens."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import pytest

from parallelmind.cli import serve
from parallelmind.cli.args import Parser
from tests.server.serving import Running

DOCUMENT = (Path(__file__).parents[2] / "docs" / "service.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)


def test_the_python_examples(server: Running) -> None:
    source = "\n".join(blocks("python")).replace("http://127.0.0.1:8000", server.url)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, "docs/service.md", "exec"), {})
    assert printed.getvalue() == " 91\n"


def test_the_request(server: Running) -> None:
    [body] = blocks("json")
    answers = server.post("/v1/branches", json.loads(body)).json["branches"]
    assert [answer["text"] for answer in answers] == [" 26", " 91"]


def test_every_flag_exists() -> None:
    parser = Parser()
    serve.add_arguments(parser)
    flags = set(re.findall(r"--\w+", DOCUMENT))
    assert flags <= set(parser._option_string_actions) | {"--help"}
    assert len(flags) > 12


@pytest.mark.parametrize("name", re.findall(r"`((?:GET |POST |DELETE )?/[\w/{}.]+)[`?]", DOCUMENT))
def test_every_endpoint_exists(server: Running, name: str) -> None:
    paths = server.get("/openapi.json").json["paths"]
    path = name.rpartition(" ")[2].replace("{id}", "{request_id}")
    assert path in paths or path in ("/", "/docs"), path
