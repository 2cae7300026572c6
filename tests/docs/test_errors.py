"""docs/errors.md explains every message of the source, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from parallelmind.cli.main import main
from parallelmind.errors import ParallelMindError
from parallelmind.io.jsonl import read_lines
from parallelmind.jobs.gpus import assign_gpus
from parallelmind.models.lora_read import read_adapter
from parallelmind.models.sidecar import RopeSettings
from parallelmind.server.options import ServeOptions
from tests.docs.errors import ARGPARSE, SOURCE, templates

DOCUMENT = Path(__file__).parents[2] / "docs" / "errors.md"
SHORTEST_CUT = 60
"""A message that is cut in the document must stay recognizable."""


class Entry(NamedTuple):
    message: str
    cause: str
    remedy: str

    def explains(self, template: str) -> bool:
        """As a whole, or as its beginning: long messages are cut in the document."""
        if self.message in TEMPLATES:
            return template == self.message
        cut = self.message.endswith(" …") and len(self.message) >= SHORTEST_CUT
        return template == self.message or (cut and template.startswith(self.message.removesuffix(" …")))


def entries() -> list[Entry]:
    found = []
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            message, cause, remedy = re.split(r"(?<!\\) \| ", line.removeprefix("| ").removesuffix(" |"))
            found.append(Entry(message.strip("`").strip().replace("\\|", "|"), cause, remedy))
    return found


TEMPLATES = templates()
ENTRIES = entries()


def test_every_message_has_an_entry() -> None:
    """Of what is missing the test says where it is raised; write a row with its cause and remedy."""
    everything = {text: sites[0].site for text, sites in TEMPLATES.items()} | dict.fromkeys(ARGPARSE, "argparse")
    missing = [f"{site}: {text}" for text, site in everything.items() if not any(e.explains(text) for e in ENTRIES)]
    assert not missing, "\n".join(missing)


def test_every_entry_is_one_message_of_the_source() -> None:
    for entry in ENTRIES:
        meant = [text for text in (*TEMPLATES, *ARGPARSE) if entry.explains(text)]
        assert len(meant) == 1, f"{entry.message}: {meant or 'no message begins so'}"
    assert len({entry.message for entry in ENTRIES}) == len(ENTRIES)


def test_causes_and_remedies_say_more_than_the_message() -> None:
    for entry in ENTRIES:
        assert re.search(r"\w{3}.*[.?]`?$", entry.cause), entry
        assert re.search(r"\w{3}.*\.`?$", entry.remedy), entry
        assert entry.cause.lower().rstrip(".") not in entry.message.lower(), entry


@pytest.mark.parametrize(
    ("argv", "template"),
    [
        (["batch"], ARGPARSE[0]),
        (["chat", "--base_model", "tiny", "--preset", "none"], ARGPARSE[1]),
        (["serve", "--base_model", "tiny", "--port", "many"], ARGPARSE[2]),
        (["serve", "--base_model", "tiny", "--rope_2d_ratio", "half"], ARGPARSE[3]),
        (["serve", "--base_model"], ARGPARSE[4]),
        (["serve", "--base_model", "tiny", "--patch_rope", "--no_patch_rope"], ARGPARSE[5]),
        (["generate", "--base_model", "tiny"], ARGPARSE[6]),
        (["serve", "--base_model", "tiny", "--patch_rope=yes"], ARGPARSE[7]),
        (["serve", "--base_mode", "tiny"], "unknown flag …"),
        (["serve", "--base_model", "tiny", "more"], "unexpected argument …"),
    ],
)
def test_usage_errors_read_as_documented(argv: list[str], template: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(argv)
    said = capsys.readouterr().err.removeprefix("error: ").partition(" (see parallelmind")[0]
    assert re.fullmatch(re.escape(template).replace("…", ".+"), said), said
    assert template in {entry.message for entry in ENTRIES}


def test_errors_that_are_raised_are_found_by_their_text(tmp_path: Path) -> None:
    """Errors of several packages, raised for real: the document has the row that a user would look for."""
    (tmp_path / "packed.jsonl").write_bytes(b"\x1f\x8b\x08\x00")
    (tmp_path / "adapter.pth").write_bytes(b"nothing")
    raised = []
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
        raised.append(str(caught.value))
    for text in raised:
        fitting = [t for t in TEMPLATES if re.fullmatch(re.escape(t).replace("…", ".*"), text, re.DOTALL)]
        assert any(entry.explains(template) for template in fitting for entry in ENTRIES), text


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
    assert sorted(templates(tmp_path)) == [
        "--… is too long; shorten it.",
        "--… is …, not a text; shorten it.",
        "it failed: …",
        "member … is a link.",
        "member … is encrypted.",
        "… is empty; expected a list.",
    ]


def test_every_place_that_raises_is_read() -> None:
    """What yields no text of its own passes on another error's; a new form of raising must not slip through."""
    read = {site.site for sites in TEMPLATES.values() for site in sites}
    unread = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = ast.unparse(node.exc.func)
                if re.fullmatch(r"(Data|Settings|UnsupportedModel|Adapter|Training|Job|Request|Api)Error", name):
                    lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                    module = path.relative_to(SOURCE).as_posix()
                    if not any(f"{module}:{line}" in read for line in lines):
                        message = node.exc.args[0] if name != "ApiError" else node.exc.args[1]
                        unread[ast.unparse(message)] = module
    assert set(unread) == {
        "query.error",
        "row.error",
        "failure.message",
        "str(error)",
        "str(event.result.error)",
        "f'--{error}'",
        "f'{where}: {error}'",
        "str(error).replace('--base_model', '--model_path')",
        "'; '.join(resolved.missing.values())",
    }


def test_statuses_of_the_service_are_those_of_the_source() -> None:
    """A message that several statuses share comes as a variable, and is left out here."""
    checked = set()
    for path in sorted((SOURCE / "server").glob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match call:
                case ast.Call(func=ast.Name(id="ApiError"), args=[ast.Constant(value=int(status)), message, *_]) if (
                    not isinstance(message, ast.Name)
                ):
                    site = f"server/{path.name}:{message.lineno}"
                    for text in (text for text, sites in TEMPLATES.items() if site in {s.site for s in sites}):
                        [entry] = [entry for entry in ENTRIES if entry.explains(text)]
                        assert re.search(rf"\b{status}\b", entry.cause), entry
                        checked.add(text)
    assert len(checked) > 20
