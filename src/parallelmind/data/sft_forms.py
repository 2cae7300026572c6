"""From one row of fine-tuning data, in any of the usual forms, to a main and a trainable branch.

| form | rows |
|---|---|
| conversations | `{"conversations": [{"role": "user", "content": "…"}, …]}` |
| sharegpt | `{"conversations": [{"from": "human", "value": "…"}, …], "system": "…"}`, or such turns in `messages` |
| messages | `{"messages": [{"role": "user", "content": "…"}, …]}` |
| alpaca | `{"instruction", "input", "output"}`, also `system`, `history`, and the names in `FIELDS` |
| text | `{"text": "…"}`, or a line of text |
| prompt and completion | two lists of turns under these names, as TRL has them |
| records | `{"main", "branches"}`, already of the form that is written, or with texts and `answers` |

A question and its answer become messages, which the chat template of a chat model writes as it writes them for the
prompt that asks, and the plain dialogue of a model without one; what is to be shared becomes a system turn, which is
main. Only on demand they become texts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from parallelmind.data.samples import PREFERENCES, refuse_preference, refuse_worse
from parallelmind.errors import DataError
from parallelmind.io.records import field_names, show_value
from parallelmind.prompts.conversation import (
    ROLES,
    Message,
    Tool,
    assistant,
    is_learned,
    parse_messages,
    row_tools,
    system,
    under_row_system,
    unlearned,
    user,
)

RowForm = Literal["conversations", "sharegpt", "messages", "alpaca", "text", "records"]
BranchForm = Literal["auto", "messages", "prompt"]
MainFrom = Literal["auto", "system", "context", "none"]
Branch = str | dict[str, Any]
Main = str | list[Message]
"""A text, or the turns that the branches continue."""

FIELDS: dict[str, tuple[str, ...]] = {
    "prompt": ("instruction", "prompt", "question", "query"),
    "completion": ("output", "completion", "response", "answer"),
    "context": ("input", "context"),
}
"""Names under which the fields of the alpaca form are looked for, the first that a row has."""
_SPEAKERS = {"user": "User: ", "assistant": "Assistant: ", "tool": "Tool: ", "system": "System: "}
_MAY_BE_EMPTY = ("system", "tool")
_PASSED_ON = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "weight")


@dataclass(frozen=True, slots=True)
class BranchSample:
    """One branch and the main it stands under."""

    main: Main
    branch: Branch
    cut_turns: int = 0
    """Turns after the last one of the assistant, which were left out: they would not be supervised."""
    replaced_turns: int = 0
    """System turns that the row's own field "system" took the place of."""
    unlearned_turns: int = 0
    """Turns of the assistant that are not to be learned."""
    dropped_fields: tuple[str, ...] = ()
    """Names of fields of turns that were left out."""
    separated: bool = False
    """A line end was put between texts that would have been glued."""


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """How a row becomes a sample."""

    form: RowForm | None = None
    """None: told from each row's fields."""
    branch_form: BranchForm = "auto"
    """auto: messages, but for plain texts."""
    main_from: MainFrom = "auto"
    """auto: the system prompt, then the context, as one system turn; of texts, as text."""
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
    refuse_worse(fields)
    if form == "alpaca":
        refuse_preference(fields)
    if form == "records":
        return _of_record(fields)
    if form == "alpaca" and isinstance(fields.get("prompt"), list):
        return [_of_two_parts(fields, settings)]
    if form == "alpaca":
        return [_of_pair(fields, settings)]
    in_messages = form == "messages" or (form == "sharegpt" and "messages" in fields and "conversations" not in fields)
    name = "messages" if in_messages else "conversations"
    turns, dropped = _turns(fields, name)
    given, turns = turns, under_row_system(turns, fields)
    replaced = sum(turn["role"] == "system" and turn not in turns for turn in given)
    if turns and turns[-1]["role"] != "assistant":
        refuse_preference(fields)
    sample = _of_turns(turns, row_tools(fields), name, settings)
    return [dataclasses.replace(sample, replaced_turns=replaced, dropped_fields=dropped)]


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
    if any(name in row for name in PREFERENCES):
        return "alpaca"
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
    if not isinstance(main, str | list) or not isinstance(branches, list) or not branches:
        raise DataError(
            'is not of the form records: "main" must be a text or a list of turns, "branches" a list that is not empty'
        )
    if (answers := row.get("answers")) is not None:
        if not isinstance(answers, list) or len(answers) != len(branches):
            raise DataError(f'"answers" is {show_value(answers)}; expected a list, one for each branch')
        branches = [
            {"prompt": prompt, "completion": answer} if isinstance(prompt, str) else prompt
            for prompt, answer in zip(branches, answers, strict=True)
        ]
    for place, branch in enumerate(branches):
        trainable = (isinstance(branch, str) and isinstance(main, str)) or (
            isinstance(branch, dict) and ("messages" in branch or {"prompt", "completion"} <= branch.keys())
        )
        if not trainable:
            raise DataError(
                f'"branches"[{place}] is neither a text nor {{"prompt", "completion"}} nor {{"messages"}}: '
                f"{show_value(branch)}"
            )
    if isinstance(main, str):
        return [_under(_whole(main, '"main"'), _whole_branch(branch)) for branch in branches]
    turns, _ = _turns(row, "main")
    return [_under_turns(turns, _whole_branch(branch), row_tools(row)) for branch in branches]


def _under(main: str, branch: Branch) -> BranchSample:
    """A branch's own main, which `grouping` gave it, becomes main again, so that it can be grouped anew."""
    if isinstance(branch, dict) and "main" in branch and not main:
        own, rest = branch["main"], {key: value for key, value in branch.items() if key != "main"}
        if isinstance(own, list):
            return _under_turns(_turns(branch, "main")[0], rest, row_tools(rest))
        return BranchSample(_text(own, 'the "main" of a branch'), rest)
    return BranchSample(main, branch)


def _under_turns(main: list[Message], branch: Branch, tools: Sequence[Tool]) -> BranchSample:
    """A branch under turns, which is what it says with them in front; under tools it takes all of them itself."""
    assert isinstance(branch, dict)
    if "messages" not in branch:
        branch = {"messages": [user(branch["prompt"]), assistant(branch["completion"])]}
    if not tools:
        return BranchSample(main, branch)
    return BranchSample("", {**branch, "messages": [*unlearned(main), *branch["messages"]], "tools": list(tools)})


def _of_pair(row: Mapping[str, Any], settings: SampleSettings) -> BranchSample:
    prompt = _named(row, "prompt", settings, required=True)
    completion = _named(row, "completion", settings, required=True)
    context = _named(row, "context", settings)
    instructions = _text(row.get("system") or row.get("system_prompt") or "", '"system"')
    past = _history(row.get("history") or [])
    if settings.branch_form == "prompt":
        return _of_texts(prompt, completion, context, instructions, past, settings)
    shares_context = bool(context.strip()) and settings.main_from in ("auto", "context")
    shares_system = settings.main_from in ("auto", "system") or shares_context
    # As `parallelmind chat` shows a model its shared text.
    parts = [instructions, context.rstrip() if shares_context else ""]
    shared = "\n\n".join(part for part in parts if part.strip())
    if context.strip() and not shares_context:
        prompt = f"{prompt}\n{context}"
    turns = [*past, user(prompt), assistant(completion)]
    if shared and not shares_system:
        turns.insert(0, system(shared))
    main = [system(shared)] if shared and shares_system else ""
    return BranchSample(_whole_main(main), _whole_branch({"messages": turns}))


def _of_texts(
    prompt: str,
    completion: str,
    context: str,
    instructions: str,
    past: Sequence[Message],
    settings: SampleSettings,
) -> BranchSample:
    """Main, prompt and completion as they are, with a line end where nothing else parts them."""
    in_main = ("system", "context") if settings.main_from == "auto" else (settings.main_from,)
    mains = [text for kind, text in (("system", instructions), ("context", context)) if text and kind in in_main]
    if context and "context" not in in_main:
        prompt = f"{prompt}\n{context}"
    turns = [*past, user(prompt), assistant(completion)]
    if instructions and "system" not in in_main:
        turns.insert(0, system(instructions))
    return _as_texts("\n\n".join(mains), turns)


def _as_texts(main: str, turns: Sequence[Message]) -> BranchSample:
    *past, last = turns
    if len(past) == 1 and past[0]["role"] == "user":
        prompt, completion = past[0]["content"], last["content"]
    else:
        prompt = "".join(f"{_SPEAKERS[turn['role']]}{turn['content']}\n" for turn in past) + "Assistant:"
        completion = f" {last['content']}"
    # In main and in the completion, so that it is there too where only the question is given.
    parted_main = main if not main or main[-1].isspace() or prompt[:1].isspace() else main + "\n"
    parted = completion if prompt[-1:].isspace() or completion[:1].isspace() else "\n" + completion
    return BranchSample(
        _whole(parted_main, "main"),
        _whole_branch({"prompt": prompt, "completion": parted}),
        separated=(parted_main, parted) != (main, completion),
    )


def _of_two_parts(row: Mapping[str, Any], settings: SampleSettings) -> BranchSample:
    """A conversation in two parts, of which only the second is learned."""
    asked, dropped = _turns(row, "prompt")
    completion, more = _turns(row, "completion")
    turns = under_row_system([*unlearned(asked), *completion], row)
    sample = _of_turns(turns, row_tools(row), "completion", settings)
    return dataclasses.replace(sample, dropped_fields=(*dropped, *more))


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
        question, said = (_text(text, f'"history"[{place}]') for text in pair)
        turns += [user(question), assistant(said)]
    return turns


def _turns(row: Mapping[str, Any], name: str) -> tuple[list[Message], tuple[str, ...]]:
    """The turns in a field, and the names of their fields that are not passed on."""
    turns, dropped = [], dict[str, None]()
    for place, turn in enumerate(parse_messages(row.get(name), f'"{name}"')):
        where = f'"{name}"[{place}]'
        if turn["role"] not in ROLES.values():
            raise DataError(f'{where}."role" is {show_value(turn["role"])}; known: {", ".join(ROLES)}')
        if not turn["content"].strip() and not turn.get("tool_calls") and turn["role"] not in _MAY_BE_EMPTY:
            raise DataError(f'{where}."content" is empty')
        dropped |= dict.fromkeys(key for key in turn if key not in _PASSED_ON)
        if turn["content"] or turn["role"] != "system":
            turns.append({key: value for key, value in turn.items() if key in _PASSED_ON})
    return turns, tuple(dropped)


def _of_turns(turns: Sequence[Message], tools: Sequence[Tool], name: str, settings: SampleSettings) -> BranchSample:
    last = max((place for place, turn in enumerate(turns) if is_learned(turn)), default=-1)
    if last < 0:
        raise DataError(f'"{name}" has no turn of the assistant to learn: there is nothing to train on')
    kept = list(turns[: last + 1])
    weighted = sum(turn["role"] == "assistant" and not is_learned(turn) for turn in kept)
    counts = {"cut_turns": len(turns) - last - 1, "unlearned_turns": weighted}
    shares = settings.main_from in ("auto", "system") and kept[0]["role"] == "system"
    if settings.branch_form == "prompt":
        if tools or any("tool_calls" in turn for turn in kept):
            raise DataError("has tools or tool calls, which texts cannot express; use --branch_form messages")
        main = str(kept.pop(0)["content"]) if shares else ""
        return dataclasses.replace(_as_texts(main, kept), **counts)
    # Tools stand in the system turn too: a conversation that has some is whole in its branch.
    shared: Main = [kept.pop(0)] if shares and not tools and len(kept) > 1 else ""
    branch = {"messages": kept} | ({"tools": list(tools)} if tools else {})
    return BranchSample(_whole_main(shared), _whole_branch(branch), **counts)


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


def _whole_main(main: Main) -> Main:
    _whole(main if isinstance(main, str) else json.dumps(main, ensure_ascii=False), "main")
    return main


def _whole_branch(branch: Branch) -> Branch:
    _whole(json.dumps(branch, ensure_ascii=False), "the branch")
    return branch
