"""Writes docs/compatibility.md from the promises and their tests: python -m tests.compatibility.document."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections import defaultdict
from pathlib import Path

import tests.compatibility
from tests.compatibility.contract import SECTIONS, Section, proofs_of
from tests.conformance import documents

DOCUMENT = Path(__file__).parents[2] / "docs" / "compatibility.md"
_HEAD = """\
# Compatibility

Every documented command, flag, import and file format, and the tests that show its effect, on small models. The last
column numbers the tests below each table. This page is generated from `tests/compatibility` by
`python -m tests.compatibility.document`. A test fails when it is out of date, and when something documented has no
proof. Flags may be spelled with hyphens as well. At the end stand the documents of the request, block by block.
"""


def proofs() -> dict[tuple[str, str], list[str]]:
    """(section, name) -> what each of its tests shows."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for info in pkgutil.iter_modules(tests.compatibility.__path__):
        if not info.name.startswith("test_"):
            continue
        module = importlib.import_module(f"tests.compatibility.{info.name}")
        for name, test in inspect.getmembers(module, inspect.isfunction):
            for promise in proofs_of(test):
                if test.__module__ == module.__name__:
                    sentence = " ".join((inspect.getdoc(test) or "").split("\n\n")[0].split())
                    found[promise].append(f"{sentence} (`{info.name}.py::{name}`)")
    return found


def render() -> str:
    """The document."""
    shown = proofs()
    return "\n".join([_HEAD, *(_table(section, shown) for section in SECTIONS.values()), documents.render()])


def _table(section: Section, shown: dict[tuple[str, str], list[str]]) -> str:
    """The promises, with the numbers of their tests, and the list of these."""
    numbers: dict[str, int] = {}
    lines = [f"## {section.title}", "", "| as documented | default | meaning | shown by |", "|---|---|---|---|"]
    for promise in section.promises:
        tests_of_it = shown.get((section.key, promise.name), [])
        places = sorted(numbers.setdefault(test, len(numbers) + 1) for test in tests_of_it)
        default = f"`{promise.default}`" if promise.default else ""
        lines.append(f"| `{promise.name}` | {default} | {promise.meaning} | {', '.join(map(str, places))} |")
    return "\n".join([*lines, "", *(f"{number}. {test}" for test, number in numbers.items()), ""])


if __name__ == "__main__":
    DOCUMENT.write_text(render(), encoding="utf-8")
    print(f"{DOCUMENT} written")
