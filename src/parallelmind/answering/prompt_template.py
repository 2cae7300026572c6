"""Prompt templates: a YAML file with system, context, question and answer for each retrieval method."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from parallelmind.errors import SettingsError
from parallelmind.io.records import quoted, shorten
from parallelmind.prompts.pieces import Piece

PLACEHOLDERS = ("query", "context", "target_api", "dependencies", "retrieval_method", "id")

_BUILT_IN = Path(__file__).parent / "templates" / "answer.yaml"
_PARTS = ("system", "context", "question", "answer")
_DEFAULT = "default"
_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")

_Line = tuple[tuple[str, bool], ...]
"""(text, False) or (placeholder, True)."""


@dataclass(frozen=True, slots=True)
class TextTemplate:
    """A text with placeholders."""

    lines: tuple[_Line, ...]

    def fill(self, values: Mapping[str, str]) -> tuple[Piece, ...]:
        """Put the values in; they are not looked into, so that braces and anything else may stand in them.

        A line is left out if it has placeholders and all of them are empty.
        """
        pieces: list[Piece] = []
        for line in self.lines:
            names = [text for text, is_name in line if is_name]
            if names and not any(values[name] for name in names):
                continue
            if pieces:
                pieces.append(Piece("\n", is_data=False))
            pieces += [Piece(values[text] if is_name else text, is_name) for text, is_name in line]
        return tuple(piece for piece in pieces if piece.text)

    @property
    def placeholders(self) -> set[str]:
        return {text for line in self.lines for text, is_name in line if is_name}


@dataclass(frozen=True, slots=True)
class Section:
    """How the rows of one retrieval method are asked."""

    system: TextTemplate
    context: TextTemplate
    question: TextTemplate
    answer: TextTemplate
    """Begins the answer of a model without a chat template."""


class PromptTemplate:
    """The built-in template, or a user's file over it.

    A text is looked up in the file under the method, then in the file under `default`, then in the built-in template
    under the method and under `default`; so a file may hold only what it changes.

    Raises:
        SettingsError: names the file, the key and what is wrong with it.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._sources = [_read(file)] if file else []
        self._sources.append(_read(_BUILT_IN))
        self._sections: dict[str, Section] = {}
        methods = {method for source in self._sources for method in source}
        for method in sorted(methods):
            if "query" not in self.section(method).question.placeholders:
                raise SettingsError(
                    f'{file}: "question" of "{method}" has no {{query}}; every row would be asked the same.'
                )

    def section(self, retrieval_method: str) -> Section:
        """The texts for a method; any name is fine."""
        known = any(retrieval_method in source for source in self._sources)
        method = retrieval_method if known else _DEFAULT
        if method not in self._sections:
            self._sections[method] = Section(**{part: self._find(method, part) for part in _PARTS})
        return self._sections[method]

    def _find(self, method: str, part: str) -> TextTemplate:
        for source in self._sources:
            for name in (method, _DEFAULT):
                if part in source.get(name, {}):
                    return source[name][part]
        raise AssertionError(f"the built-in template has no {part}")


def _read(file: Path) -> dict[str, dict[str, TextTemplate]]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"--prompt_template {file} cannot be read: {error.strerror}; check the path.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: bytes that are not UTF-8
        reason = " ".join(str(error).split())
        raise SettingsError(f"--prompt_template {file} is no YAML file: {shorten(reason, 200)}") from error
    form = 'expected a retrieval method (or "default") with "system", "context", "question" or "answer" below it'
    if not isinstance(content, dict) or not content:
        raise SettingsError(f"{file} holds {_kind(content)}; {form}.")
    sections: dict[str, dict[str, TextTemplate]] = {}
    for method, parts in content.items():
        if not isinstance(method, str) or not isinstance(parts, dict):
            raise SettingsError(f'{file}: "{method}" holds {_kind(parts)}; {form}.')
        if unknown := [str(part) for part in parts if part not in _PARTS]:
            raise SettingsError(f'{file}: "{method}" has {quoted(unknown)}; {form}.')
        sections[method] = {part: _parse(text, f'{file}: "{part}" of "{method}"') for part, text in parts.items()}
    return sections


def _parse(text: Any, where: str) -> TextTemplate:
    if not isinstance(text, str):
        raise SettingsError(f"{where} is {_kind(text)}; expected a text.")
    return TextTemplate(tuple(_parse_line(line, where) for line in text.strip("\n").split("\n")))


def _parse_line(line: str, where: str) -> _Line:
    parts: list[tuple[str, bool]] = []
    literal, position = "", 0
    for match in _BRACES.finditer(line):
        literal += line[position : match.start()]
        position = match.end()
        found = match[0]
        if found in ("{{", "}}"):
            literal += found[0]
        elif match[1] in PLACEHOLDERS:
            parts += [(literal, False), (match[1], True)]
            literal = ""
        else:
            known = " ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            raise SettingsError(f"{where} has {found}; known are {known}, and {{{{ and }}}} stand for braces.")
    parts.append((literal + line[position:], False))
    return tuple((text, is_name) for text, is_name in parts if text)


def _kind(value: Any) -> str:
    kinds: dict[type, str] = {dict: "an object", list: "a list", str: "a text"}
    return "nothing" if value is None else kinds.get(type(value), f"{value!r}")
