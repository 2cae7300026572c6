"""A line of a batch file: texts, or conversations as training has them.

| row | asked |
|---|---|
| `{"main": text, "branches": [text, …]}`, `{"text"}` | the texts as they are |
| `{"main": [turn, …], "branches": [text or {"messages"}, …]}` | what the chat template writes of both |
| `{"main": text, "branches": [{"messages"}, …]}`, `{"messages"}` | the same of each branch, behind the text of main |

Where turns end with the assistant's, that one is the answer, and it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parallelmind.errors import DataError
from parallelmind.io.jsonl import JsonLine
from parallelmind.io.records import Record, copied_fields, load_record, parse_texts, show_value, text_field
from parallelmind.prompts.conversation import (
    Message,
    Tool,
    parse_messages,
    row_tools,
    system,
    under_row_system,
    user,
)
from parallelmind.prompts.encode import PromptIds, encode_branch, encode_main
from parallelmind.prompts.prompt_encoder import PromptEncoder
from parallelmind.settings.visibility import Visibility, sees_main

_TURNS = ("messages", "conversations")


@dataclass(frozen=True, slots=True)
class AskedTurns:
    """A branch: the turns that it adds, and the tools that the assistant may call in them."""

    turns: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    main: str = ""
    """A text of its own in front."""

    @property
    def text(self) -> str:
        return str(self.turns[-1]["content"]) if self.turns else ""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A main, and branches of which some are conversations."""

    main: str | tuple[Message, ...]
    branches: tuple[str | AskedTurns, ...]
    tools: tuple[Tool, ...]
    fields: Mapping[str, Any]

    @property
    def main_text(self) -> str:
        return self.main if isinstance(self.main, str) else str(self.main[-1]["content"])

    @property
    def inputs(self) -> tuple[str, ...]:
        """The text each answer answers, in the order of the answers."""
        return tuple(one if isinstance(one, str) else one.text or self.main_text for one in self.branches)

    def encode(self, prompts: PromptEncoder, visibility: Visibility) -> PromptIds:
        """The token ids of main and branches, as they are trained.

        Raises:
            RequestError: the chat template refuses the conversation, or it is too long.
        """
        if not isinstance(self.main, str):
            added = [(user(one),) if isinstance(one, str) else one.turns for one in self.branches]
            return prompts.conversation(self.main, added, tools=self.tools, visibility=visibility)
        main = encode_main(prompts.tokenizer, self.main)
        has_main = bool(main) and sees_main(visibility)
        return PromptIds(main, [_branch_ids(prompts, one, has_main=has_main) for one in self.branches])


def _branch_ids(prompts: PromptEncoder, branch: str | AskedTurns, *, has_main: bool) -> list[int]:
    if isinstance(branch, str):
        return encode_branch(prompts.tokenizer, branch, has_main=has_main)
    own = encode_branch(prompts.tokenizer, branch.main, has_main=has_main)
    ids = prompts.conversation(branch.turns, tools=branch.tools).main
    begins_again = (has_main or own) and ids[:1] == [prompts.tokenizer.bos_token_id]
    return own + (ids[1:] if begins_again else ids)


def read_record(line: JsonLine, *, as_messages: bool = False) -> Record | Dialogue:
    """Parse and check one line.

    Args:
        as_messages: the main of a record of texts is a system turn, and its branches are messages of the user.
    Raises:
        DataError: names the line, the field, the value found, and what is expected.
    """
    row, where = load_record(line), f"line {line.number}"
    if name := next((name for name in _TURNS if name in row), None):
        return Dialogue("", (_asked(row, name, where + ": "),), (), copied_fields(row))
    branches = row.get("branches")
    items = branches if isinstance(branches, list) else []
    if isinstance(row.get("main"), list) and items:
        main = parse_messages(row["main"], f'{where}: "main"')
        added = [_branch(item, f'{where}: "branches"[{place}]') for place, item in enumerate(items)]
        return Dialogue(main, tuple(added), row_tools(row, where + ": "), copied_fields(row))
    if "text" not in row and any(isinstance(item, dict) and "messages" in item for item in items):
        main_text = text_field(row.get("main", ""), f'{where}: "main"', may_be_empty=True)
        added = [_branch(item, f'{where}: "branches"[{place}]') for place, item in enumerate(items)]
        return Dialogue(main_text, tuple(added), (), copied_fields(row))
    record = parse_texts(row, line.number)
    return _as_messages(record) if as_messages else record


def _as_messages(record: Record) -> Dialogue:
    if not record.branches:
        return Dialogue((user(record.main),), (AskedTurns(()),), (), record.fields)
    shared = record.main.rstrip()
    if not shared:
        return Dialogue("", tuple(AskedTurns((user(text),)) for text in record.branches), (), record.fields)
    return Dialogue((system(shared),), record.branches, (), record.fields)


def _branch(item: Any, name: str) -> str | AskedTurns:
    if not isinstance(item, Mapping):
        return text_field(item, name, may_be_empty=True)
    if "messages" in item:
        return _asked(item, "messages", name + ".")
    if "prompt" not in item:
        raise DataError(f'{name} is {show_value(item)}; expected a text, {{"prompt"}} or {{"messages"}}.')
    own = text_field(item.get("main") or "", f'{name}."main"', may_be_empty=True)
    return own + text_field(item["prompt"], f'{name}."prompt"', may_be_empty=True)


def _asked(row: Mapping[str, Any], field: str, name: str) -> AskedTurns:
    turns: Sequence[Message] = under_row_system(parse_messages(row[field], f'{name}"{field}"'), row)
    if turns[-1]["role"] == "assistant":
        turns = turns[:-1]
    own = row.get("main") or ""
    if isinstance(own, list):
        return AskedTurns((*parse_messages(own, f'{name}"main"'), *turns), row_tools(row, name))
    return AskedTurns(tuple(turns), row_tools(row, name), text_field(own, f'{name}"main"', may_be_empty=True))
