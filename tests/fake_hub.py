"""A Hugging Face Hub on 127.0.0.1 that speaks as much of its API as pushing needs."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FakeHub:
    """What was done to it, and what it answers instead of doing it."""

    endpoint: str = ""
    made: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """By repository, then by path; of a branch that is not main by REPOSITORY@BRANCH."""
    commits: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    refuses: dict[str, int] = field(default_factory=dict)
    """Status by what is asked: create, commit."""

    def answer(self, path: str, body: bytes, token: str) -> tuple[int, dict[str, Any]]:
        self.tokens.add(token)
        parts = path.strip("/").split("/")
        kind = "create" if path == "/api/repos/create" else "commit" if "commit" in parts else ""
        if kind in self.refuses:
            return self.refuses[kind], {"error": "refused"}
        if kind == "create":
            asked = json.loads(body)
            self.made.append(asked)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            known = name in self.files
            self.files.setdefault(name, {})
            return (409 if known else 200), {"url": f"{self.endpoint}/{name}", "name": name}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if "branch" in parts:
            return 200, {}
        if "preupload" in parts:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return 200, {"files": files}
        if kind == "commit":
            return 200, self._commit(parts, body)
        return 404, {"error": f"no {path}"}

    def _commit(self, parts: list[str], body: bytes) -> dict[str, Any]:
        name, branch = "/".join(parts[2:4]), parts[-1]
        lines = [json.loads(line) for line in body.splitlines() if line]
        self.commits.append(lines[0]["value"]["summary"])
        held = self.files.setdefault(name if branch == "main" else f"{name}@{branch}", {})
        held |= {
            one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in lines if one["key"] == "file"
        }
        return {
            "commitUrl": f"{self.endpoint}/{name}/commit/{len(self.commits)}",
            "commitOid": f"{len(self.commits):040x}",
            "hookOutput": "",
        }


@contextmanager
def fake_hub(**state: Any) -> Iterator[FakeHub]:
    """A hub that listens during the block."""
    hub = FakeHub(**state)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            token = self.headers.get("authorization", "").removeprefix("Bearer ")
            length = self.headers.get("content-length")
            body = self.rfile.read(int(length)) if length else self._chunks()
            status, content = hub.answer(self.path.partition("?")[0], body, token)
            answer = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def _chunks(self) -> bytes:
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
