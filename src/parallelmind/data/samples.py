"""One row of training data, checked field by field: what stands in main, what in the branches, what is supervised.

| row | supervised |
|---|---|
| `{"main", "branches": [text, …]}` | every branch text |
| `{"main", "branches": [text, …], "answers": [text, …]}` | the answers; the branch texts are their prompts |
| `{"main", "branches": [{"prompt", "completion"}, …]}` | the completions |
| `{"main", "branches": [{"messages": […]}, …]}` | the assistant's turns |
| `{"main": [turn, …], "branches": […]}` | the same of the branches, which continue these turns |
| `{"text"}` | the text |
| `{"prompt", "completion"}` | the completion |
| `{"prompt": [turn, …], "completion": [turn, …]}` | the assistant's turns of the completion |
| `{"conversations": […]}`, `{"messages": […]}` | the assistant's turns |

Beside turns may stand `system`, which takes the place of system turns, and `tools` (or `functions`), which the chat
template writes into the prompt. A turn of the assistant with `"weight": 0` is not supervised. The forms of one branch
may be mixed. A branch that is an object may have a `main` of its own, which it alone sees: it stands before the branch,
in the same tokens as the main of a record. The last four rows have no main: they are *loose*, several of them become
the branches of one packed row. Other fields are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parallelmind.errors import DataError
from parallelmind.io.records import field_names, quoted, show_value, text_field
from parallelmind.prompts.conversation import (
    Message,
    Tool,
    assistant,
    is_learned,
    parse_messages,
    row_tools,
    under_row_system,
    unlearned,
    user,
)

_FORMS = (
    '{"main", "branches"}, {"text"}, {"prompt", "completion"}, {"messages": [{"role", "content"}, …]} or '
    '{"conversations": […]}'
)
_KINDS = {
    "main": "main",
    "branches": "main",
    "text": "text",
    "messages": "messages",
    "conversations": "messages",
    "completion": "completion",
}
PREFERENCES = ("chosen", "rejected")
"""Fields of a preference, in which the answer stands beside a worse one."""
_JUDGEMENTS = ("label", "kto_tag")
"""Fields that say whether the answer of a row is a good one."""


@dataclass(frozen=True, slots=True)
class SampleBranch:
    """A text with the part of it that is supervised."""

    prompt: str = ""
    """Not supervised."""
    completion: str = ""
    """Supervised, and closed with the end-of-text token."""
    messages: tuple[Message, ...] = ()
    """Instead of both: turns, of which the assistant's are supervised."""
    tools: tuple[Tool, ...] = ()
    """What the assistant may call in these turns, for the chat template to write."""
    main: str = ""
    """A main of this branch only, which stands before all of it."""
    turns: tuple[Message, ...] = ()
    """Instead of `main`, turns that `messages` continue."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The branches of one row of data, and their main."""

    main: str
    branches: tuple[SampleBranch, ...]
    where: str
    """File and line, for messages."""
    loose: bool = False
    """Without a main of its own: may share a packed row with other loose samples."""
    turns: tuple[Message, ...] = ()
    """Instead of `main`, the turns that all branches continue by theirs."""
    tools: tuple[Tool, ...] = ()
    """What the assistant may call in these turns and those of the branches."""


def parse_sample(row: Mapping[str, Any], where: str, file: Path | None = None) -> Sample:
    """Check one row of data, which stands in `file`.

    Raises:
        DataError: names `where`, the field, the value found, and what is expected.
    """
    kinds = {kind for name, kind in _KINDS.items() if name in row}
    if kinds & {"messages", "completion"}:
        refuse_worse(row, where + " ")
    if len(kinds) > 1:
        clash = [name for name in _KINDS if name in row]
        raise DataError(f"{where} has {quoted(clash)}; expected one of {_FORMS}.")
    if kinds == {"main"}:
        return _with_main(row, where)
    if kinds == {"text"}:
        branch = SampleBranch(completion=text_field(row["text"], f'{where}: "text"'))
    elif kinds == {"messages"}:
        name = "messages" if "messages" in row else "conversations"
        branch = _conversation(row, name, where + ": ")
    elif kinds == {"completion"}:
        branch = _completion(row, where + ": ")
    else:
        refuse_preference(row, where + " ")
        raise DataError(
            f"{where} has none of the fields of a sample (found: {field_names(row)}); expected {_FORMS}. Alpaca and "
            f"other forms become records with: parallelmind convert --input {file or 'FILE'} --output records.jsonl"
        )
    return Sample(main="", branches=(branch,), where=where, loose=True)


def refuse_preference(row: Mapping[str, Any], name: str = "") -> None:
    """Refuse a row of preferences. Its fields name the better answer, which nothing else in the row is.

    Args:
        name: stands in front of the message.
    Raises:
        DataError: the row has such fields.
    """
    if found := [field for field in PREFERENCES if field in row]:
        raise DataError(
            f"{name}has {quoted(found)}: a preference, which is not trained on here; keep the better answer, as "
            '{"prompt", "completion"} or as the last turn of {"messages"}.'
        )


def refuse_worse(row: Mapping[str, Any], name: str = "") -> None:
    """Refuse a row whose answer its own label calls a bad one, as data for KTO has them. Raises DataError."""
    if found := [field for field in _JUDGEMENTS if row.get(field) is False]:
        raise DataError(
            f'{name}has "{found[0]}": false, an answer that is not to be given; leave such rows out: only good answers '
            "are trained on here."
        )


def _with_main(row: Mapping[str, Any], where: str) -> Sample:
    if missing := [name for name in ("main", "branches") if name not in row]:
        raise DataError(f"{where} has no {quoted(missing)} (found: {field_names(row)}); expected {_FORMS}.")
    items, main = row["branches"], row["main"]
    if not isinstance(items, list) or not items:
        raise DataError(f'{where}: "branches" is {show_value(items)}; expected a list of at least one branch.')
    answers = row.get("answers")
    if answers is not None and (not isinstance(answers, list) or len(answers) != len(items)):
        found = f"a list of {len(answers)}" if isinstance(answers, list) else show_value(answers)
        raise DataError(f'{where}: "answers" is {found}; expected a list of {len(items)}, one for each branch.')
    turns = tuple(unlearned(parse_messages(main, f'{where}: "main"'))) if isinstance(main, list) else ()
    text = "" if turns else text_field(main, f'{where}: "main"', may_be_empty=True)
    branches = []
    for place, item in enumerate(items):
        name = f'{where}: "branches"[{place}]'
        if isinstance(item, dict):
            branch = _branch_object(item, name)
        elif answers is None:
            branch = SampleBranch(completion=text_field(item, name))
        else:
            prompt = text_field(item, name, may_be_empty=bool(main))
            answered = text_field(answers[place], f'{where}: "answers"[{place}]')
            branch = SampleBranch(prompt=prompt, completion=answered)
        if turns and (own := [field for field in ("main", "tools") if getattr(branch, field) or branch.turns]):
            raise DataError(f'{name} has {quoted(own)}, under a "main" of turns; put all turns into the branch.')
        branches.append(_under_turns(branch, name) if turns else branch)
    tools = row_tools(row, where + ": ") if turns else ()
    return Sample(main=text, branches=tuple(branches), where=where, turns=turns, tools=tools)


def _under_turns(branch: SampleBranch, name: str) -> SampleBranch:
    """A branch under a conversation: its prompt is the user's next message, as it is when the model is asked."""
    if branch.messages:
        return branch
    if not branch.prompt:
        raise DataError(
            f'{name} is a text under a conversation, which says nothing of an answer; expected {{"messages"}} or '
            '{"prompt", "completion"}.'
        )
    return SampleBranch(messages=(user(branch.prompt), assistant(branch.completion)))


def _branch_object(item: Mapping[str, Any], name: str) -> SampleBranch:
    branch = _conversation(item, "messages", name + ".") if "messages" in item else _completion(item, name + ".")
    own = item.get("main")
    if isinstance(own, list):
        turns = tuple(unlearned(parse_messages(own, f'{name}."main"')))
        return replace(_under_turns(branch, name), turns=turns, tools=branch.tools)
    return branch if own is None else replace(branch, main=text_field(own, f'{name}."main"', may_be_empty=True))


def _completion(item: Mapping[str, Any], name: str) -> SampleBranch:
    for field in ("prompt", "completion"):
        if field not in item:
            raise DataError(
                f'{name}"{field}" is missing (found: {field_names(item)}); expected {{"prompt", "completion"}} or '
                '{"messages"}.'
            )
    if isinstance(item["prompt"], list) or isinstance(item["completion"], list):
        return _continued(item, name)
    return SampleBranch(
        prompt=text_field(item["prompt"], f'{name}"prompt"', may_be_empty=True),
        completion=text_field(item["completion"], f'{name}"completion"', may_be_empty=bool(item["prompt"])),
    )


def _continued(item: Mapping[str, Any], name: str) -> SampleBranch:
    """A conversation in two parts, of which only the second is learned, as TRL has it."""
    asked, completion = (parse_messages(item[field], f'{name}"{field}"') for field in ("prompt", "completion"))
    if not any(is_learned(turn) for turn in completion):
        raise DataError(f'{name}"completion" has no turn of the assistant; there is nothing to train on.')
    messages = under_row_system((*unlearned(asked), *completion), item)
    return SampleBranch(messages=tuple(messages), tools=row_tools(item, name))


def _conversation(row: Mapping[str, Any], field: str, name: str) -> SampleBranch:
    where = f'{name}"{field}"'
    messages = parse_messages(row[field], where)
    if not any(message["role"] == "assistant" for message in messages):
        raise DataError(f"{where} has no turn of the assistant; there is nothing to train on.")
    if messages[-1]["role"] != "assistant":
        refuse_preference(row, name.removesuffix(".").removesuffix(": ") + " ")
    messages = tuple(under_row_system(messages, row))
    return SampleBranch(messages=messages, tools=row_tools(row, name))
