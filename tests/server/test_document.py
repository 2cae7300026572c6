"""What docs/service.md shows is what happens; its commands and programs are run by tests/docs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.server.serving import Running

DOCUMENT = (Path(__file__).parents[2] / "docs" / "service.md").read_text(encoding="utf-8")


def test_the_request(server: Running) -> None:
    [body] = re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)
    answers = server.post("/v1/branches", json.loads(body)).json["branches"]
    assert [answer["text"] for answer in answers] == [" 26", " 91"]


@pytest.mark.parametrize("name", re.findall(r"`((?:GET |POST |DELETE )?/[\w/{}.]+)[`?]", DOCUMENT))
def test_every_endpoint_exists(server: Running, name: str) -> None:
    paths = server.get("/openapi.json").json["paths"]
    path = name.rpartition(" ")[2].replace("{id}", "{request_id}")
    assert path in paths or path in ("/", "/docs"), path
