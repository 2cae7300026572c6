"""docs/errors.md lists every message of the source."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from parallelmind.errors import ParallelMindError
from parallelmind.io.jsonl import read_lines
from parallelmind.jobs.gpus import assign_gpus
from parallelmind.models.lora_read import read_adapter
from parallelmind.models.sidecar import RopeSettings
from parallelmind.server.options import ServeOptions
from tests.docs.errors import PATH, render
from tests.docs.messages import CARRIERS, EXCEPTIONS, MORE_CARRIERS, SOURCE, VARIABLES, Template, templates


@pytest.fixture(scope="module")
def found() -> list[Template]:
    return templates()


def test_the_page_is_up_to_date(found: list[Template]) -> None:
    assert PATH.read_text(encoding="utf-8") == render(found), "run: python -m tests.docs.errors"


def test_errors_that_are_raised_are_found_by_their_text(tmp_path: Path, found: list[Template]) -> None:
    """Errors of several packages, raised for real: the page has the row that a user would look for."""
    (tmp_path / "packed.jsonl").write_bytes(b"\x1f\x8b\x08\x00")
    (tmp_path / "adapter.pth").write_bytes(b"nothing")
    for cause in (
        lambda: list(read_lines(tmp_path / "none.jsonl")),
        lambda: list(read_lines(tmp_path / "packed.jsonl")),
        lambda: read_adapter(tmp_path / "adapter.pth"),
        lambda: RopeSettings(ratio=3.0),
        lambda: assign_gpus(2, 2, []),
        lambda: ServeOptions.from_environment({}),
    ):
        with pytest.raises(ParallelMindError) as caught:
            cause()
        kind = f"`{type(caught.value).__name__}`"
        shown = [re.escape(template.text).replace("…", ".*") for template in found if template.kind == kind]
        assert any(re.fullmatch(pattern, str(caught.value), re.DOTALL) for pattern in shown), caught.value


SAMPLE = '''
_FORM = "expected a list"
def check(path, kind, value):
    if not value:
        raise DataError(f"{path} is empty; {_FORM}.")
    problem = "is too long" if value else f"is {value}, not a text"
    raise SettingsError(f"--{kind} {problem}; shorten it.")
def refuse(member, reason):
    return DataError(f"member {member} {reason}.")
def use(member):
    raise refuse(member, "is encrypted")
    raise refuse(member, "is a " + "link")
def told(error):
    raise ApiError(400, _said(error), param="x")
    raise JobError(str(error))
def _said(error):
    """Why."""
    return f"it failed: {error}"
'''


def test_messages_are_followed_through_variables_constants_and_functions(tmp_path: Path) -> None:
    (tmp_path / "sample.py").write_text(SAMPLE, encoding="utf-8")
    assert [(template.text, template.kind) for template in templates(tmp_path)] == [
        ("… is empty; expected a list.", "`DataError`"),
        ("--… is too long; shorten it.", "`SettingsError`"),
        ("--… is …, not a text; shorten it.", "`SettingsError`"),
        ("member … is encrypted.", "`DataError`"),
        ("member … is a link.", "`DataError`"),
        ("it failed: …", "HTTP 400"),
    ]


def test_no_place_that_raises_is_overlooked(found: list[Template]) -> None:
    """What yields no text only passes on another's: a new way to put a message together must not slip through."""
    read = {(template.module, template.line) for template in found}
    for path in sorted(SOURCE.rglob("*.py")):
        module = path.relative_to(SOURCE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Raise(exc=ast.Call(func=ast.Name(id=name)) as call) if name in EXCEPTIONS | {"ApiError"}:
                    lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                    if not any((module, line) in read for line in lines):
                        texts = [part.value for part in ast.walk(call) if isinstance(part, ast.Constant)]
                        said = [text for text in texts if isinstance(text, str) and " " in text.strip()]
                        assert not said, ast.unparse(call)


def test_what_carries_a_text_is_still_there() -> None:
    """An entry of tests/docs/messages.py whose function or variable has another name now would lose its messages."""
    sources = {path.relative_to(SOURCE).as_posix(): path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py")}
    for name in CARRIERS:
        assert any(re.search(rf"\b{name}\(", text) for text in sources.values()), name
    for module, names in MORE_CARRIERS.items():
        assert all(f"{name}(" in sources[module] for name in names), module
    for module, variable, _ in VARIABLES:
        assert re.search(rf"\b{variable}\b", sources[module]), (module, variable)
