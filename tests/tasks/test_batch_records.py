"""Lines of batch files: what of a record is asked, as texts and as conversations."""

from __future__ import annotations

import json
from typing import Any

import pytest

from parallelmind.errors import DataError, RequestError
from parallelmind.io.jsonl import JsonLine
from parallelmind.io.records import Record
from parallelmind.prompts.prompt_encoder import PromptEncoder
from parallelmind.tasks.batch_records import Dialogue, read_record
from tests.prompts.templates import CHATML, GEMMA, byte_tokenizer

SYSTEM = {"role": "system", "content": "Dan is 26."}
ASKED = [{"role": "user", "content": "How old?"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "26"}]
PROMPT = "<|im_start|>user\nHow old?<|im_end|>\n<|im_start|>assistant\n"
UNDER_SYSTEM = "<|im_start|>system\nDan is 26.<|im_end|>\n" + PROMPT


def line(row: Any) -> JsonLine:
    content = json.dumps(row).encode()
    return JsonLine(index=0, number=3, content=content, size=len(content))


def asked(row: Any, *, visibility: Any = "isolated", as_messages: bool = False) -> tuple[str, list[str]]:
    """Main and prompts as text."""
    record = read_record(line(row), as_messages=as_messages)
    assert isinstance(record, Dialogue)
    assert record.fields == {"id": 7}
    ids = record.encode(PromptEncoder(byte_tokenizer(CHATML)), visibility)
    tokenizer = byte_tokenizer(None)
    return tokenizer.decode(ids.main), [tokenizer.decode(branch) for branch in ids.branches]


@pytest.mark.parametrize(
    ("row", "whole"),
    [
        ({"main": [SYSTEM], "branches": ["How old?", {"messages": ANSWERED}]}, UNDER_SYSTEM),
        ({"main": "", "branches": [{"messages": [SYSTEM, *ANSWERED]}, {"messages": [SYSTEM, *ASKED]}]}, UNDER_SYSTEM),
        ({"main": "", "branches": [{"main": [SYSTEM], "messages": ANSWERED}]}, UNDER_SYSTEM),
        ({"messages": ANSWERED}, PROMPT),
        ({"conversations": [{"from": "human", "value": "How old?"}], "system": "Dan is 26."}, UNDER_SYSTEM),
        ({"main": "m ", "branches": [{"messages": ANSWERED}]}, "m " + PROMPT),
    ],
)
def test_conversations(row: dict[str, Any], whole: str) -> None:
    main, prompts = asked({**row, "id": 7})
    assert {main + prompt for prompt in prompts} == {whole}
    assert bool(main) == bool(row.get("main"))


@pytest.mark.parametrize(
    ("row", "whole"),
    [
        ({"main": "Dan is 26.\n", "branches": ["How old?", "How old?"]}, UNDER_SYSTEM),
        ({"main": "", "branches": ["How old?"]}, PROMPT),
        ({"text": "How old?"}, PROMPT),
    ],
)
def test_texts_as_messages(row: dict[str, Any], whole: str) -> None:
    main, prompts = asked({**row, "id": 7}, as_messages=True)
    assert {main + prompt for prompt in prompts} == {whole}
    assert isinstance(read_record(line(row)), Record)


def test_branches_that_do_not_see_main_hold_all_of_it() -> None:
    _, prompts = asked({"main": [SYSTEM], "branches": ["How old?"], "id": 7}, visibility="strict")
    assert prompts == [UNDER_SYSTEM]


def test_the_input_of_an_answer_is_the_last_message() -> None:
    record = read_record(line({"main": [SYSTEM, *ASKED], "branches": [{"messages": ANSWERED[1:]}, "And Tim?"]}))
    assert record.inputs == ("How old?", "And Tim?")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"main": [{"role": "user"}], "branches": ["a"]}, 'line 3: "main"[0] has no "content"'),
        ({"main": [SYSTEM], "branches": [3]}, 'line 3: "branches"[0] is a number (3)'),
        ({"main": [SYSTEM], "branches": [{"completion": "c"}]}, 'line 3: "branches"[0] is an object'),
        ({"messages": []}, 'line 3: "messages" is a list ([]); expected a list of turns'),
        ({"main": [SYSTEM], "branches": []}, 'line 3: "main" is a list'),
    ],
)
def test_wrong_rows(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_record(line(row))
    assert str(caught.value).startswith(message)


def test_what_a_template_refuses_is_an_error_of_its_record() -> None:
    record = read_record(line({"messages": [*ASKED, *ASKED]}))
    assert isinstance(record, Dialogue)
    with pytest.raises(RequestError, match="roles must alternate"):
        record.encode(PromptEncoder(byte_tokenizer(GEMMA)), "isolated")
