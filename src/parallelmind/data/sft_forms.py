"""From one row of fine-tuning data, in any of the usual forms, to a main and a trainable branch.

| form | rows |
|---|---|
| conversations | `{"conversations": [{"role": "user", "content": "…"}, …]}` |
| sharegpt | `{"conversations": [{"from": "human", "value": "…"}, …], "system": "…"}`, or such turns in `messages` |
| messages | `{"messages": [{"role": "user", "content": "…"}, …]}` |
| alpaca | `{"instruction", "input", "output"}`, also `system`, `history`, and the names in `FIELDS` |
| text | `{"text": "…"}`, or a line of text |
| records | `{"main", "branches"}`, already of the form that is written, or with texts and `answers` |
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from parallelmind.errors import DataError
from parallelmind.io.records import field_names, show_value
from parallelmind.prompts.conversation import ROLES, Message, Tool, content_text, parse_tools, under_row_system, user

RowForm = Literal["conversations", "sharegpt", "messages", "alpaca", "text", "records"]
BranchForm = Literal["auto", "messages", "prompt"]
MainFrom = Literal["auto", "system", "context", "none"]
Branch = str | dict[str, Any]

FIELDS: dict[str, tuple[str, ...]] = {
    "prompt": ("instruction", "prompt", "question", "query"),
    "completion": ("output", "completion", "response", "answer"),
    "context": ("input", "context"),
}
"""Names under which the fields of the alpaca form are looked for, the first that a row has."""
_SPEAKERS = {"user": "User: ", "assistant": "Assistant: ", "tool": "Tool: ", "system": "System: "}
_PASSED_ON = ("name", "tool_calls", "tool_call_id", "reasoning_content")


@dataclass(frozen=True, slots=True)
class BranchSample:
    """One branch and the main it stands under."""

    main: str
    branch: Branch
    cut_turns: int = 0
    """Turns after the last one of the assistant, which were left out: they would not be supervised."""
    replaced_turns: int = 0
    """System turns that the row's own field "system" took the place of."""


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """How a row becomes a sample."""

    form: RowForm | None = None
    """None: told from each row's fields."""
    branch_form: BranchForm = "auto"
    """auto: conversations become messages, the others prompt and completion."""
    main_from: MainFrom = "auto"
    """auto: the system prompt, then the context, but nothing of a branch of messages: there the chat template writes
    the system prompt, and the context is part of the question."""
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The user's own names for prompt, completion and context."""

    def __post_init__(self) -> None:
        assert self.form is None or self.form in get_args(RowForm)
        assert set(self.fields) <= set(FIELDS)


def samples_of(row: Any, settings: SampleSettings) -> list[BranchSample]:
    """The samples of one row: one, or as many as a row of the form `records` has branches.

    Raises:
        DataError: the row is of no known form, or not of the one asked for; the message lacks file and line.
    """
    form = settings.form or _form_of(row, settings)
    if form == "text":
        text = row if isinstance(row, str) else _object(row, "text").get("text")
        if not isinstance(text, str) or not text.strip():
            raise DataError('has no text in "text"' if isinstance(row, dict) else "is not a text")
        return [BranchSample("", _whole(text, "the text"))]
    fields = _object(row, form)
    if form == "records":
        return _of_record(fields)
    if form == "alpaca":
        return [_of_pair(fields, settings)]
    in_messages = form == "messages" or (form == "sharegpt" and "messages" in fields and "conversations" not in fields)
    name = "messages" if in_messages else "conversations"
    turns = _turns(fields, name, sharegpt=form == "sharegpt")
    given, turns = turns, under_row_system(turns, fields)
    replaced = sum(turn["role"] == "system" and turn not in turns for turn in given)
    tools = parse_tools(fields.get("tools"), '"tools"')
    return [dataclasses.replace(_of_turns(turns, tools, name, settings), replaced_turns=replaced)]


def _form_of(row: Any, settings: SampleSettings) -> RowForm:
    if isinstance(row, str):
        return "text"
    if not isinstance(row, dict):
        raise DataError(f"is {show_value(row)}; expected an object")
    if "branches" in row:
        return "records"
    for name in ("conversations", "messages"):
        if name in row:
            turns = row[name]
            first = turns[0] if isinstance(turns, list) and turns else None
            return "sharegpt" if isinstance(first, dict) and "from" in first else name
    if settings.fields or any(name in row for name in FIELDS["prompt"]):
        return "alpaca"
    if "text" in row:
        return "text"
    raise DataError(
        f"has none of the fields conversations, messages, {', '.join(FIELDS['prompt'])}, text, branches "
        f"(found: {field_names(row)}); name its columns with --prompt_field and --completion_field"
    )


def _object(row: Any, form: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"is not of the form {form}: expected an object, found {show_value(row)}")
    return row


def _of_record(row: Mapping[str, Any]) -> list[BranchSample]:
    main, branches = row.get("main", ""), row.get("branches")
    if not isinstance(main, str) or not isinstance(branches, list) or not branches:
        raise DataError('is not of the form records: "main" must be a text, "branches" a list that is not empty')
    if (answers := row.get("answers")) is not None:
        if not isinstance(answers, list) or len(answers) != len(branches):
            raise DataError(f'"answers" is {show_value(answers)}; expected a list, one for each branch')
        branches = [
            {"prompt": prompt, "completion": answer} if isinstance(prompt, str) else prompt
            for prompt, answer in zip(branches, answers, strict=True)
        ]
    for place, branch in enumerate(branches):
        trainable = isinstance(branch, str) or (
            isinstance(branch, dict) and ("messages" in branch or {"prompt", "completion"} <= branch.keys())
        )
        if not trainable:
            raise DataError(
                f'"branches"[{place}] is neither a text nor {{"prompt", "completion"}} nor {{"messages"}}: '
                f"{show_value(branch)}"
            )
    return [_under(_whole(main, '"main"'), _whole_branch(branch)) for branch in branches]


def _under(main: str, branch: Branch) -> BranchSample:
    """A branch's own main, which `grouping` gave it, becomes main again, so that it can be grouped anew."""
    if isinstance(branch, dict) and "main" in branch:
        own = _text(branch["main"], 'the "main" of a branch')
        if not main:
            return BranchSample(own, {key: value for key, value in branch.items() if key != "main"})
    return BranchSample(main, branch)


def _of_pair(row: Mapping[str, Any], settings: SampleSettings) -> BranchSample:
    prompt = _named(row, "prompt", settings, required=True)
    completion = _named(row, "completion", settings, required=True)
    context = _named(row, "context", settings)
    system = _text(row.get("system") or row.get("system_prompt") or "", '"system"')
    past = _history(row.get("history") or [])
    is_chat = settings.branch_form == "messages" or (settings.branch_form == "auto" and bool(past))
    in_main = _in_main(settings, as_messages=is_chat)
    mains = [text for kind, text in (("system", system), ("context", context)) if text and kind in in_main]
    if context and "context" not in in_main:
        prompt = f"{prompt}\n{context}"
    turns = [*past, user(prompt), {"role": "assistant", "content": completion}]
    if system and "system" not in in_main:
        turns.insert(0, {"role": "system", "content": system})
    main = "\n\n".join(mains)
    as_messages = len(turns) > 2 if settings.branch_form == "auto" else settings.branch_form == "messages"
    return BranchSample(_whole(main, "main"), _whole_branch(_branch(turns, as_messages=as_messages)))


def _in_main(settings: SampleSettings, *, as_messages: bool) -> tuple[str, ...]:
    if settings.main_from == "auto":
        return () if as_messages else ("system", "context")
    return (settings.main_from,)


def _named(row: Mapping[str, Any], part: str, settings: SampleSettings, *, required: bool = False) -> str:
    own = settings.fields.get(part)
    names = (own,) if own else FIELDS[part]
    name = next((name for name in names if name in row), None)
    if name is None:
        if required or own:
            raise DataError(f"has no {' or '.join(names)} (found: {field_names(row)})")
        return ""
    value = row[name]
    text = _text("" if value is None else value, f'"{name}"')
    if required and not text.strip():
        raise DataError(f'"{name}" is empty')
    return text


def _history(past: Any) -> list[Message]:
    pairs = past if isinstance(past, list) else [past]
    turns: list[Message] = []
    for place, pair in enumerate(pairs):
        if not (isinstance(pair, list) and len(pair) == 2):
            raise DataError(f'"history"[{place}] is not a pair of question and answer: {show_value(pair)}')
        for role, text in zip(("user", "assistant"), pair, strict=True):
            turns.append({"role": role, "content": _text(text, f'"history"[{place}]')})
    return turns


def _turns(row: Mapping[str, Any], name: str, *, sharegpt: bool) -> list[Message]:
    given = row.get(name)
    if not isinstance(given, list) or not given:
        raise DataError(f'"{name}" is {show_value(given)}; expected a list of turns')
    role_key, text_key = ("from", "value") if sharegpt else ("role", "content")
    turns = []
    for place, turn in enumerate(given):
        where = f'"{name}"[{place}]'
        if not isinstance(turn, dict) or role_key not in turn:
            raise DataError(f'{where} has no "{role_key}": {show_value(turn)}')
        role = ROLES.get(str(turn[role_key]).lower())
        if role is None:
            found = show_value(turn[role_key])
            raise DataError(f'{where}."{role_key}" is {found}; known: {", ".join(ROLES)}')
        extra = {key: turn[key] for key in _PASSED_ON if turn.get(key)}
        content = "" if turn.get(text_key) is None else content_text(turn[text_key], f'{where}."{text_key}"')
        if not content.strip() and "tool_calls" not in extra and role != "system":
            raise DataError(f'{where}."{text_key}" is empty')
        if content or role != "system":
            turns.append({"role": role, "content": content, **extra})
    return turns


def _of_turns(turns: Sequence[Message], tools: Sequence[Tool], name: str, settings: SampleSettings) -> BranchSample:
    last = max((place for place, turn in enumerate(turns) if turn["role"] == "assistant"), default=-1)
    if last < 0:
        raise DataError(f'"{name}" has no turn of the assistant: there is nothing to train on')
    kept = list(turns[: last + 1])
    as_messages = settings.branch_form != "prompt"
    main = ""
    if kept[0]["role"] == "system" and "system" in _in_main(settings, as_messages=as_messages):
        main = str(kept.pop(0)["content"])
    branch = _branch(kept, as_messages=as_messages, tools=tools)
    return BranchSample(_whole(main, "main"), _whole_branch(branch), cut_turns=len(turns) - last - 1)


def _branch(turns: Sequence[Message], *, as_messages: bool, tools: Sequence[Tool] = ()) -> Branch:
    if as_messages:
        return {"messages": list(turns)} | ({"tools": list(tools)} if tools else {})
    *past, answer = turns
    if tools or any("tool_calls" in turn for turn in turns):
        raise DataError(
            "has tools or tool calls, which prompt and completion cannot express; use --branch_form messages"
        )
    if len(past) == 1 and past[0]["role"] == "user":
        return {"prompt": past[0]["content"], "completion": answer["content"]}
    written = "".join(f"{_SPEAKERS[turn['role']]}{turn['content']}\n" for turn in past)
    return {"prompt": f"{written}Assistant:", "completion": f" {answer['content']}"}


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where} is {show_value(value)}; expected a text")
    return value


def _whole(text: str, where: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{where} has bytes that are not UTF-8, or half of a surrogate pair") from None
    return text


def _whole_branch(branch: Branch) -> Branch:
    _whole(json.dumps(branch, ensure_ascii=False), "the branch")
    return branch
