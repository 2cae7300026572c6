"""The same conversation has the same token ids in chat, server, answering, training, and for what conversion makes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from parallelmind.answering.context_rows import ContextRow
from parallelmind.answering.openai_body import CHAT
from parallelmind.answering.prompts import Prompts
from parallelmind.chat import ChatSession, Exchange
from parallelmind.data.convert import ConvertOptions, convert
from parallelmind.data.encoder import DataCounts, SampleEncoder
from parallelmind.data.samples import parse_sample
from parallelmind.engine.request import Request
from parallelmind.prompts.encode import PromptIds
from parallelmind.prompts.prompt_encoder import PromptEncoder
from parallelmind.server.branches_api import encode_conversation
from parallelmind.server.schemas import ChatMessage
from parallelmind.settings.sampling import SamplingParams
from tests.prompts.templates import MERGED, TEMPLATES, TOKENIZERS, Message

ANSWER = "They are 3.\nAnd 4."
CONVERSATIONS: dict[str, list[Message]] = {
    "question": [{"role": "user", "content": "Who?"}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many\nare there?"}],
    "turns": [
        {"role": "system", "content": "说中文。"},
        {"role": "user", "content": "How many apples?"},
        {"role": "assistant", "content": "2 apples."},
        {"role": "user", "content": "Sure? How many?"},
        {"role": "assistant", "content": "3."},
        {"role": "user", "content": "小明住在哪里?"},
    ],
    "white space": [
        {"role": "system", "content": " Be brief.\n"},
        {"role": "user", "content": "  a list:\n\n - one\n"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "\n and now? \n\n"},
    ],
}


@dataclass
class RecordingEngine:
    """Takes requests and answers nothing."""

    tokenizer: Any
    max_model_len: int = 10**6
    asked: list[Request] = field(default_factory=list)

    def stream(self, requests: Iterable[Request], sampling: SamplingParams) -> Iterator[Any]:
        self.asked += requests
        return iter(())


def session(tokenizer: Any, messages: list[Message]) -> ChatSession:
    engine: Any = RecordingEngine(tokenizer)
    started = ChatSession(engine, SamplingParams())
    if messages[0]["role"] == "system":
        started.conversation.system, messages = messages[0]["content"], messages[1:]
    for question, answer in zip(messages[:-1:2], messages[1:-1:2], strict=True):
        started.conversation.exchanges.append(Exchange(question["content"], answer["content"]))
    return started


def in_chat(tokenizer: Any, messages: list[Message]) -> list[int]:
    chat = session(tokenizer, messages)
    list(chat.reply(messages[-1]["content"]))
    [request] = chat.engine.asked  # type: ignore[attr-defined]
    return list(request.main)


def as_chat_branch(tokenizer: Any, messages: list[Message]) -> list[int]:
    chat = session(tokenizer, messages)
    list(chat.branch([messages[-1]["content"], "Another question"]))
    [request] = chat.engine.asked  # type: ignore[attr-defined]
    return [*request.main, *request.branches[0]]


def served(tokenizer: Any, messages: list[Message], texts: list[str]) -> PromptIds:
    service: Any = SimpleNamespace(served=SimpleNamespace(prompts=PromptEncoder(tokenizer)))
    said = [ChatMessage(role=message["role"], content=message["content"]) for message in messages]  # type: ignore[arg-type]
    return encode_conversation(service, said, texts)


def on_the_server(tokenizer: Any, messages: list[Message]) -> list[int]:
    main, [branch] = served(tokenizer, messages, [""])
    return main + branch


def as_server_branch(tokenizer: Any, messages: list[Message]) -> list[int]:
    ids = served(tokenizer, messages[:-1], ["Another question", messages[-1]["content"]])
    return ids.main + ids.branches[1]


def answered(tokenizer: Any, messages: list[Message]) -> list[int]:
    row = ContextRow(
        id="1", query="", context="", retrieval_method="", target_api="", dependencies={},
        body={"messages": messages}, endpoint=CHAT,
    )  # fmt: skip
    prompts = PromptEncoder(tokenizer)
    main, branch = prompts.split(Prompts().split(row, prompts.slots))
    return main + branch


def prompt_of(tokenizer: Any, row: dict[str, Any], answer: str) -> list[int]:
    """What comes before the last supervised tokens of a row with one branch; these are the answer."""
    sample = SampleEncoder(tokenizer, max_seq_len=10**6).encode(parse_sample(row, "row"), DataCounts())
    assert sample is not None
    [branch] = sample.branches
    stop = branch.loss_mask.rfind(1) + 1
    start = branch.loss_mask.rfind(0, 0, stop) + 1
    written = list(branch.ids[start:stop])
    assert answer.strip() in tokenizer.decode(written) or tokenizer.unk_token_id in written
    main = sample.main if isinstance(row.get("main"), list) else ()
    return [*main, *branch.ids[:start]]


def trained(tokenizer: Any, messages: list[Message], answer: str = ANSWER) -> list[int]:
    return prompt_of(tokenizer, {"messages": [*messages, {"role": "assistant", "content": answer}]}, answer)


ENTRANCES = {
    "chat": in_chat,
    "chat branch": as_chat_branch,
    "server": on_the_server,
    "server branch": as_server_branch,
    "answering": answered,
    "training": trained,
}


def rendered(tokenizer: Any, name: str, messages: list[Message]) -> list[int]:
    """What transformers makes of a conversation whose system turn the template takes."""
    if name in MERGED and messages[0]["role"] == "system":
        text = f"{messages[0]['content']}\n\n{messages[1]['content']}"
        messages = [{"role": "user", "content": text}, *messages[2:]]
    ids: list[int] = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return ids


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
def test_every_entrance_gives_the_ids_of_the_template(make: Any, name: str, conversation: str) -> None:
    tokenizer, messages = make(TEMPLATES[name]), CONVERSATIONS[conversation]
    expected = rendered(tokenizer, name, messages)
    assert {entrance: encode(tokenizer, messages) for entrance, encode in ENTRANCES.items()} == dict.fromkeys(
        ENTRANCES, expected
    )


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
def test_without_a_template_it_is_the_dialogue_written_out(make: Any, conversation: str) -> None:
    tokenizer, messages = make(None), CONVERSATIONS[conversation]
    text = "".join(f"{message['role'].capitalize()}: {message['content']}\n" for message in messages) + "Assistant:"
    expected = tokenizer(text)["input_ids"]
    entrances = {entrance: encode(tokenizer, messages) for entrance, encode in ENTRANCES.items()}
    assert entrances == dict.fromkeys(ENTRANCES, expected)


@pytest.mark.parametrize("form", ["messages", "conversations", "sharegpt"])
@pytest.mark.parametrize("name", [*TEMPLATES, None])
def test_what_conversion_makes_of_it(tmp_path: Path, name: str | None, form: str) -> None:
    tokenizer = TOKENIZERS["words"](TEMPLATES[name] if name else None)
    messages = CONVERSATIONS["turns"]
    turns = [*messages, {"role": "assistant", "content": ANSWER}]
    row: dict[str, Any] = {form: turns}
    if form == "sharegpt":
        names = {"user": "human", "assistant": "gpt", "system": "system"}
        row = {"conversations": [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns]}
    source, records = tmp_path / "rows.jsonl", tmp_path / "records.jsonl"
    source.write_text(json.dumps(row) + "\n", encoding="utf-8")
    convert(ConvertOptions(input=source, output=records))
    expected = on_the_server(tokenizer, messages)
    assert prompt_of(tokenizer, json.loads(records.read_text("utf-8")), ANSWER) == expected
    assert prompt_of(tokenizer, row, ANSWER) == expected


@pytest.mark.parametrize("name", [*TEMPLATES, None])
@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
def test_in_a_branch_under_a_main_it_is_the_same_but_for_the_beginning(make: Any, name: str | None) -> None:
    tokenizer = make(TEMPLATES[name] if name else None)
    messages = CONVERSATIONS["turns"]
    turns = [*messages, {"role": "assistant", "content": ANSWER}]
    ids = prompt_of(tokenizer, {"main": "A text.\n", "branches": [{"messages": turns}]}, ANSWER)
    expected = on_the_server(tokenizer, messages)
    assert ids == (expected[1:] if expected[0] == tokenizer.bos_token_id else expected)


texts = st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(
    make=st.sampled_from(sorted(TOKENIZERS)),
    name=st.sampled_from([*sorted(TEMPLATES), None]),
    said=st.lists(texts, min_size=1, max_size=4),
    system=st.one_of(st.just(""), texts),
    answer=texts.filter(str.strip),
)
@example(make="words", name="chatml", said=["a"], system="", answer="\nb")
@example(make="words", name="mistral", said=["a", "s", "b"], system="s", answer="s")
def test_for_any_texts(make: str, name: str | None, said: list[str], system: str, answer: str) -> None:
    tokenizer = TOKENIZERS[make](TEMPLATES[name] if name else None)
    said = said if len(said) % 2 else said[:-1]
    messages = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(said)]
    for turn in messages[1::2]:
        turn["content"] = turn["content"].strip() or "x"  # as chat keeps its answers
    if system:
        messages.insert(0, {"role": "system", "content": system})
    expected = on_the_server(tokenizer, messages)
    if name:
        assert expected == rendered(tokenizer, name, messages)
    found = {entrance: encode(tokenizer, messages) for entrance, encode in ENTRANCES.items() if entrance != "training"}
    assert found | {"training": trained(tokenizer, messages, answer)} == dict.fromkeys(ENTRANCES, expected)
