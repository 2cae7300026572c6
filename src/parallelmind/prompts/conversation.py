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
_CALL_ROLE = "function_call"
"""What ShareGPT calls a turn that calls a tool, and OpenAI once called the field for it."""
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")


def role_of(name: str) -> str:
    """The role as chat templates call it; an unknown one stays, for the template to know or to refuse."""
    return ROLES.get(name.lower(), name)


def system(text: str) -> Message:
    """A system message."""
    return {"role": "system", "content": text}


def assistant(text: str) -> Message:
    """A message of the assistant."""
    return {"role": "assistant", "content": text}


def unlearned(messages: Sequence[Message]) -> list[Message]:
    """The same turns, of which none is learned."""
    return [{**turn, "weight": 0} if turn["role"] == "assistant" else turn for turn in messages]


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
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind not in _TEXT_PARTS:
                raise DataError(
                    f'{where}[{place}] is {show_value(part)}; expected text, {{"type": "text", "text": "..."}}: '
                    "pictures and sounds are not supported."
                )
            field = "refusal" if kind == "refusal" else "text"
            texts.append(text_field(part.get(field), f'{where}[{place}]."{field}"', may_be_empty=True))
        content = "".join(texts)
    return text_field(content, where, may_be_empty=may_be_empty)


def is_learned(message: Message) -> bool:
    """Whether training supervises a turn: the assistant's, but for those of `"weight": 0` or without any content."""
    if message["role"] != "assistant" or message.get("weight", 1) == 0:
        return False
    return any(message.get(name) for name in ("content", "tool_calls", *_THOUGHTS))


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

    Tool calls become what chat templates take. Further fields of a turn (reasoning, the weight of OpenAI's fine-tuning
    files) are kept.

    Raises:
        DataError: names `where`, the turn, the value found, and what is expected.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        raise DataError(f"{where} is {show_value(value)}; expected a list of turns.")
    turns = [_parse_turn(turn, f"{where}[{place}]") for place, turn in enumerate(value) if not _is_no_system(turn)]
    if not turns:
        raise DataError(f"{where} has no turn but an empty one of the system.")
    return tuple(turns)


def _is_no_system(turn: Any) -> bool:
    """Whether it is a turn of the system whose text is null, as tables have it where there is none."""
    if not isinstance(turn, Mapping):
        return False
    role = turn.get("role", turn.get("from"))
    text = [turn[name] for name in ("content", "value") if name in turn]
    return isinstance(role, str) and role_of(role) == "system" and text == [None]


def _parse_turn(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f'{where} is {show_value(turn)}; expected {{"role": "...", "content": "..."}}.')
    role_key, text_key = names = ("role", "content") if "role" in turn else ("from", "value")
    calls = _parse_calls(turn, where)
    if missing := [name for name in names if name not in turn and not (calls and name == text_key)]:
        raise DataError(
            f'{where} has no {quoted(missing)} (found: {field_names(turn)}); expected {{"role", "content"}}.'
        )
    name, content = text_field(turn[role_key], f'{where}."{role_key}"'), turn.get(text_key)
    text = "" if content is None and calls else content_text(content, f'{where}."{text_key}"')
    if name.lower() == _CALL_ROLE and not calls and (found := _call_in(text)):
        calls, text = found, ""
    if "weight" in turn:
        _check_weight(turn["weight"], f'{where}."weight"')
    rest = {key: item for key, item in turn.items() if key not in (*names, _CALL_ROLE) and item is not None}
    return {"role": role_of(name), "content": text, **rest, **({"tool_calls": calls} if calls else {})}


def _check_weight(value: Any, where: str) -> None:
    if value is not None and (isinstance(value, bool) or value not in (0, 1)):
        raise DataError(f"{where} is {show_value(value)}; expected 1, or 0 for a turn that is not to be learned.")


def _parse_calls(turn: Mapping[str, Any], where: str) -> list[Tool]:
    """The tools that a turn calls, OpenAI's former `function_call` among them, with their arguments as objects."""
    given = turn.get("tool_calls") or []
    if not isinstance(given, Sequence) or not all(isinstance(call, Mapping) and tool_name(call) for call in given):
        raise DataError(
            f'{where}."tool_calls" is {show_value(given)}; expected a list of '
            '{"type": "function", "function": {"name", "arguments"}}.'
        )
    calls = [dict(call) for call in given]
    if (former := turn.get(_CALL_ROLE)) is not None:
        if not isinstance(former, Mapping) or not tool_name(former):
            raise DataError(f'{where}."{_CALL_ROLE}" is {show_value(former)}; expected {{"name", "arguments"}}.')
        calls.append({"type": "function", "function": dict(former)})
    for call in calls:
        if isinstance(call.get("function"), Mapping):
            call["function"] = _with_arguments(call["function"])
    return [call if "function" in call else _with_arguments(call) for call in calls]


def _with_arguments(function: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI has arguments as JSON text; chat templates take objects, and would write a text in quotes."""
    arguments = function.get("arguments")
    try:
        found = json.loads(arguments) if isinstance(arguments, str) else None
    except ValueError:
        found = None
    return {**function, "arguments": found} if isinstance(found, Mapping) else dict(function)


def _call_in(text: str) -> list[Tool]:
    """The calls in a text of ShareGPT's role `function_call`: one as JSON, or a list of them."""
    try:
        found = json.loads(text)
    except ValueError:
        return []
    calls = found if isinstance(found, list) else [found]
    if not all(isinstance(call, Mapping) and call.get("name") and "arguments" in call for call in calls):
        return []
    return [{"type": "function", "function": _with_arguments(call)} for call in calls]


def row_tools(row: Mapping[str, Any], name: str = "") -> tuple[Tool, ...]:
    """The tools of a row of data: `tools`, and OpenAI's former `functions`.

    Args:
        name: stands before the name of the field in messages.
    Raises:
        DataError: names the field, and what is expected.
    """
    functions = parse_tools(row.get("functions"), f'{name}"functions"')
    tools = parse_tools(row.get("tools"), f'{name}"tools"')
    return (*tools, *({"type": "function", "function": function} for function in functions))


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
    instructions = row.get("system", row.get("system_prompt"))
    if not isinstance(instructions, str) or not instructions.strip():
        return list(messages)
    return [{"role": "system", "content": instructions}, *(turn for turn in messages if turn["role"] != "system")]


def without_system(messages: Sequence[Message]) -> list[Message]:
    """The same without system turns in front: their text begins the user's first turn, or is one."""
    count = next((place for place, message in enumerate(messages) if message["role"] != "system"), len(messages))
    rest = list(messages[count:])
    texts = [message["content"] for message in messages[:count] if message["content"]]
    if texts and rest and rest[0]["role"] == "user":
        return [{**rest[0], "content": "\n\n".join([*texts, rest[0]["content"]])}, *rest[1:]]
    return [user("\n\n".join(texts)), *rest] if texts else rest
