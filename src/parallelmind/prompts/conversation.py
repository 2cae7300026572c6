"""A conversation as chat templates take it: a list of turns, each a role and a text.

Datasets and APIs name the roles in several ways and give texts whole or in parts; here they become one form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from parallelmind.errors import DataError
from parallelmind.io.records import field_names, quoted, show_value, text_field

Message = dict[str, Any]
"""One turn: `role`, `content` (a text), and what else the chat template knows (`tool_calls`, `name`, …)."""
Tool = dict[str, Any]
"""What the model may call, as transformers' chat templates take it: a JSON schema."""

ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "function_call"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "function_response"), "tool"),
}
"""Names of roles, and what chat templates call them."""
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_TEXT_PARTS = ("text", "input_text", "output_text")


def role_of(name: str) -> str:
    """The role as chat templates call it; an unknown one stays, for the template to know or to refuse."""
    return ROLES.get(name.lower(), name)


def user(text: str) -> Message:
    """A message of the user."""
    return {"role": "user", "content": text}


def content_text(content: Any, where: str, *, may_be_empty: bool = True) -> str:
    """The text of a turn, which may be in parts as OpenAI's are.

    Raises:
        DataError: names `where`; a part is a picture or a sound, or the content is no text.
    """
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        texts = []
        for place, part in enumerate(content):
            if not isinstance(part, Mapping) or part.get("type") not in _TEXT_PARTS:
                raise DataError(
                    f'{where}[{place}] is {show_value(part)}; expected text, {{"type": "text", "text": "..."}}: '
                    "pictures and sounds are not supported."
                )
            texts.append(text_field(part.get("text"), f'{where}[{place}]."text"', may_be_empty=True))
        content = "".join(texts)
    return text_field(content, where, may_be_empty=may_be_empty)


def is_learned(message: Message) -> bool:
    """Whether training supervises a turn: the assistant's, but for those of `"weight": 0`."""
    return message["role"] == "assistant" and message.get("weight", 1) != 0


def thought_and_answer(message: Message) -> tuple[str, str]:
    """What an assistant's turn thinks, in a field of its own or in its text, and what it says."""
    content = str(message["content"])
    thought = next((message[name] for name in _THOUGHTS if isinstance(message.get(name), str)), "")
    if "</think>" in content:
        thought = thought or content.partition("</think>")[0].rpartition("<think>")[2]
        content = content.rpartition("</think>")[2]
    return thought.strip(), content.strip()


def called(message: Message) -> list[str]:
    """The names of the tools that a turn calls."""
    return [tool_name(call) for call in message.get("tool_calls") or ()]


def tool_name(tool: Mapping[str, Any]) -> str:
    """The name of a tool, or of one that is called: OpenAI has both under "function"."""
    inner = tool.get("function")
    return str((inner if isinstance(inner, Mapping) else tool).get("name", ""))


def parse_messages(value: Any, where: str) -> tuple[Message, ...]:
    """The turns of a row of data: `{"role", "content"}` or `{"from", "value"}`.

    Further fields of a turn (tool calls, reasoning) are kept: they are the chat template's business.

    Raises:
        DataError: names `where`, the turn, the value found, and what is expected.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        raise DataError(f"{where} is {show_value(value)}; expected a list of turns.")
    return tuple(_parse_turn(turn, f"{where}[{place}]") for place, turn in enumerate(value))


def _parse_turn(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f'{where} is {show_value(turn)}; expected {{"role": "...", "content": "..."}}.')
    role_key, text_key = names = ("role", "content") if "role" in turn else ("from", "value")
    calls = turn.get("tool_calls")
    if missing := [name for name in names if name not in turn and not (calls and name == text_key)]:
        raise DataError(
            f'{where} has no {quoted(missing)} (found: {field_names(turn)}); expected {{"role", "content"}}.'
        )
    content = turn.get(text_key)
    text = "" if content is None and calls else content_text(content, f'{where}."{text_key}"')
    rest = {key: item for key, item in turn.items() if key not in names and item is not None}
    return {**rest, "role": role_of(text_field(turn[role_key], f'{where}."{role_key}"')), "content": text}


def parse_tools(value: Any, where: str) -> tuple[Tool, ...]:
    """The tools of a row of data: a list of objects, or such a list as JSON text.

    Raises:
        DataError: names `where`, and what is expected.
    """
    found = value or []
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError:
            found = None
    if not isinstance(found, Sequence) or not all(isinstance(tool, Mapping) for tool in found):
        raise DataError(
            f"{where} is {show_value(value)}; expected a list of objects, as chat templates take them, "
            "or no such field."
        )
    return tuple(dict(tool) for tool in found)


def under_row_system(messages: Sequence[Message], row: Mapping[str, Any]) -> list[Message]:
    """The conversation under the system prompt in the row's own field, `system` as ShareGPT has it, if there is one.

    It takes the place of the system turns.
    """
    system = row.get("system", row.get("system_prompt"))
    if not isinstance(system, str) or not system.strip():
        return list(messages)
    return [{"role": "system", "content": system}, *(turn for turn in messages if turn["role"] != "system")]


def without_system(messages: Sequence[Message]) -> list[Message]:
    """The same without system turns in front: their text begins the user's first turn, or is one."""
    count = next((place for place, message in enumerate(messages) if message["role"] != "system"), len(messages))
    rest = list(messages[count:])
    texts = [message["content"] for message in messages[:count] if message["content"]]
    if texts and rest and rest[0]["role"] == "user":
        return [{**rest[0], "content": "\n\n".join([*texts, rest[0]["content"]])}, *rest[1:]]
    return [user("\n\n".join(texts)), *rest] if texts else rest
