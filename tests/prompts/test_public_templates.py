"""What is learned of conversations under the chat templates of public models, and that they are asked so."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import groupby
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from parallelmind.chat import ChatSession, Exchange
from parallelmind.data.encoder import DataCounts, EncodedSample, SampleEncoder
from parallelmind.data.samples import parse_sample
from parallelmind.io.jsonl import JsonLine
from parallelmind.prompts.prompt_encoder import PromptEncoder
from parallelmind.settings.sampling import SamplingParams
from parallelmind.tasks.batch_records import Dialogue, read_record
from parallelmind.training.evaluation import _question
from tests.prompts.public_labels import (
    BE_KIND,
    CASES,
    EXPECTED,
    PRICE,
    QWEN_CALL,
    RESULT,
    TOOL,
    WITH_TOOLS,
    Turn,
    assistant,
    user,
)
from tests.prompts.public_templates import PUBLIC, public_tokenizer
from tests.prompts.test_one_conversation import RecordingEngine

ALL = [(name, case) for name, cases in EXPECTED.items() for case in cases]


def row(case: str) -> dict[str, Any]:
    return {"messages": CASES[case], **({"tools": [TOOL]} if case in WITH_TOOLS else {})}


def encoded(tokenizer: Any, fields: dict[str, Any], counts: DataCounts | None = None) -> EncodedSample:
    sample = SampleEncoder(tokenizer, max_seq_len=10**6).encode(parse_sample(fields, "row"), counts or DataCounts())
    assert sample is not None
    return sample


def marked(tokenizer: Any, sample: EncodedSample, branch: int = 0) -> str:
    """Main and one branch as text, what is learned in guillemets."""
    ids = [*sample.main, *sample.branches[branch].ids]
    marks = bytes(len(sample.main)) + sample.branches[branch].loss_mask
    text = ""
    for is_learned, run in groupby(zip(ids, marks, strict=True), key=lambda pair: bool(pair[1])):
        written = tokenizer.decode([token for token, _ in run])
        text += f"«{written}»" if is_learned else written
    return text


@pytest.mark.parametrize(("name", "case"), ALL)
def test_what_is_learned(name: str, case: str) -> None:
    tokenizer = public_tokenizer(name)
    assert marked(tokenizer, encoded(tokenizer, row(case))) == EXPECTED[name][case]


def test_every_template_is_tried() -> None:
    assert EXPECTED.keys() == {*PUBLIC, "no template"}
    assert all({"turns", "system"} & cases.keys() for cases in EXPECTED.values())


@pytest.mark.parametrize(("name", "case"), ALL)
def test_the_prompt_at_inference_is_what_stands_before_the_answer(name: str, case: str) -> None:
    """In the engine's conversations, `batch` and the evaluation of training, and in `chat` where it has the case."""
    tokenizer, turns = public_tokenizer(name), CASES[case]
    sample = encoded(tokenizer, row(case))
    [branch] = sample.branches
    start = branch.loss_mask.rfind(0, 0, branch.loss_mask.rfind(1)) + 1
    prompt = list(branch.ids[:start])
    prompts = PromptEncoder(tokenizer)
    tools = [TOOL] if case in WITH_TOOLS else []
    asked = parse_sample({"messages": turns}, "row").branches[0].messages[:-1]
    assert prompts.conversation(asked, tools=tools).main == prompt
    record = read_record(line({"main": "", "branches": [row(case)]}))
    assert isinstance(record, Dialogue)
    assert record.encode(prompts, "isolated").branches == [prompt]
    if turns[-1]["content"]:  # a call has no text to compare
        question = _question(sample, tokenizer, tokenizer.eos_token_id)
        assert question is not None
        assert [list(branch.prompt) for branch in question[0].branches] == [prompt]  # type: ignore[union-attr]
    if case in ("single", "turns", "system"):
        assert in_chat(tokenizer, turns) == prompt


def line(fields: dict[str, Any]) -> JsonLine:
    content = json.dumps(fields).encode()
    return JsonLine(index=0, number=1, content=content, size=len(content))


def in_chat(tokenizer: Any, turns: list[Turn]) -> list[int]:
    engine: Any = RecordingEngine(tokenizer)
    session = ChatSession(engine, SamplingParams())
    if turns[0]["role"] == "system":
        session.conversation.system, turns = turns[0]["content"], turns[1:]
    for asked, said in zip(turns[:-2:2], turns[1:-2:2], strict=True):
        session.conversation.exchanges.append(Exchange(asked["content"], said["content"]))
    list(session.reply(turns[-2]["content"]))
    return list(engine.asked[0].main)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_shared_system_turn_is_the_main_of_all_its_questions(name: str) -> None:
    """main and branch are the conversation as it is alone, and main is what the server shares between such branches."""
    tokenizer = public_tokenizer(name)
    branches = [[user("Hi"), assistant("Yo")], [user("Who?"), assistant("Me")]]
    fields = {"main": [BE_KIND], "branches": [{"messages": turns} for turns in branches]}
    sample = encoded(tokenizer, fields)
    for place, turns in enumerate(branches):
        alone = encoded(tokenizer, {"messages": [BE_KIND, *turns]})
        assert marked(tokenizer, sample, place) == marked(tokenizer, alone)
    ids = PromptEncoder(tokenizer).conversation([BE_KIND], [[user("Hi")], [user("Who?")]])
    assert list(sample.main) == ids.main
    assert "Be kind." in tokenizer.decode(ids.main)
    record = read_record(line({"main": [BE_KIND], "branches": ["Hi", "Who?"]}))
    assert isinstance(record, Dialogue)
    assert record.encode(PromptEncoder(tokenizer), "isolated") == ids
    question = _question(sample, tokenizer, tokenizer.eos_token_id)
    assert question is not None
    assert list(question[0].main) == ids.main  # type: ignore[arg-type]
    assert [list(branch.prompt) for branch in question[0].branches] == ids.branches  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "turns", "learned"),
    [
        # A step of a tool within the last question keeps its thought.
        ("qwen3", [user("Tea?"), assistant("<think>\nhm\n</think>\n\n", tool_calls=[PRICE]), RESULT, assistant("5.")],
         f"«<think>\nhm\n</think>\n\n{QWEN_CALL}<|im_end|>»"),
        ("qwen3", [user("Tea?"), assistant("Wait.", tool_calls=[PRICE]), RESULT, assistant("5.")],
         f"«Wait.\n{QWEN_CALL}<|im_end|>»"),
        ("qwen2.5", [user("Tea?"), assistant("Wait. ", tool_calls=[PRICE, PRICE]), RESULT, RESULT, assistant("5.")],
         f"«Wait. \n{QWEN_CALL}\n{QWEN_CALL}<|im_end|>»"),
        ("chatml", [assistant("Hello."), user("Hi"), assistant("Yo")], "«Hello.<|im_end|>»"),
        ("chatml", [user("Hi"), assistant("<|im_end|>"), user("Hi"), assistant("Yo")], "«<|im_end|><|im_end|>»"),
        ("qwen3", [user("Yo"), assistant("Yo"), user("Yo"), assistant("Yo")],
         "<|im_start|>user\nYo<|im_end|>\n<|im_start|>assistant\n«Yo<|im_end|>»\n<|im_start|>user\nYo<|im_end|>"),
        ("zephyr", [user("Hi"), assistant(" Yo"), assistant("And?"), user("Who?"), assistant("Me")],
         "« Yo</s>»\n<|assistant|>\n«And?</s>»\n<|user|>\n"),
        ("qwen3", [user("assistant"), assistant("user"), user("assistant"), assistant("user")],
         "<|im_start|>user\nassistant<|im_end|>\n<|im_start|>assistant\n«user<|im_end|>»\n"),
    ],
)  # fmt: skip
def test_turns_in_the_middle(name: str, turns: list[Turn], learned: str) -> None:
    tokenizer = public_tokenizer(name)
    assert learned in marked(tokenizer, encoded(tokenizer, {"messages": turns, "tools": [TOOL]}))


@pytest.mark.parametrize(
    ("name", "turns", "expected"),
    [
        ("qwen3", CASES["thoughts"], {"shortened_turns": 1}),
        ("qwen3", [user("Hi"), assistant("Yo", reasoning_content="hm"), *CASES["turns"][2:]], {"shortened_turns": 1}),
        ("chatml", CASES["thoughts"], {}),
        ("chatml", CASES["weights"], {"unlearned_turns": 1}),
        ("chatml", [*CASES["turns"], user("Bye"), assistant("Bye", weight=0)], {"unlearned_turns": 1,
         "unanswered_turns": 2}),
        ("chatml", CASES["call"], {"unwritten_turns": 1, "unwritten_tools": 1}),
        ("qwen2.5", CASES["call"], {}),
        ("llama-3.1", [user("Tea?"), assistant("Wait.", tool_calls=[PRICE]), RESULT, assistant("5.")],
         {"shortened_turns": 1}),
        ("no template", [user("Tea?"), assistant("", tool_calls=[PRICE]), RESULT, assistant("5.")],
         {"unwritten_turns": 1, "unwritten_tools": 1}),
    ],
)  # fmt: skip
def test_what_is_not_learned_is_counted(name: str, turns: list[Turn], expected: dict[str, int]) -> None:
    counts = DataCounts()
    tools = {"tools": [TOOL]} if any("tool_calls" in turn for turn in turns) else {}
    encoded(public_tokenizer(name), {"messages": turns, **tools}, counts)
    names = ("unlearned_turns", "unanswered_turns", "unwritten_turns", "shortened_turns", "unwritten_tools")
    assert {key: value for key, value in asdict(counts).items() if key in names and value} == expected
    assert bool(counts.notes) == any(not key.startswith("un") or "written" in key for key in expected)


TOKENIZERS = {name: public_tokenizer(name) for name in EXPECTED}
texts = st.text(st.characters(codec="utf-8", exclude_characters="<[｜"), min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(EXPECTED)),
    said=st.lists(st.tuples(texts, texts), min_size=1, max_size=3),
    system=st.one_of(st.just(""), texts),
)
@example(name="mistral-v3", said=[("a", "a"), ("s", "s")], system="s")
@example(name="qwen3", said=[("user", "assistant\n"), (" think", "\nuser")], system="")
@example(name="deepseek-r1", said=[("a", " a "), ("a\n", " a\n")], system="a")
def test_for_any_texts(name: str, said: list[tuple[str, str]], system: str) -> None:
    """Every answer is learned, and the last one follows from the prompt that asks for it."""
    tokenizer = TOKENIZERS[name]
    turns = [turn for asked, answered in said for turn in (user(asked), assistant(answered))]
    turns = [{"role": "system", "content": system}, *turns] if system else turns
    prompts = PromptEncoder(tokenizer)
    ids, loss_mask, lost = prompts.supervised(turns, has_main=False)
    assert not any(asdict(lost).values())
    runs = groupby(zip(ids, loss_mask, strict=True), key=lambda pair: pair[1])
    written = [tokenizer.decode([token for token, _ in run]) for is_learned, run in runs if is_learned]
    assert len(written) == len(said)
    for text, (_, answered) in zip(written, said, strict=True):
        assert answered.strip() in text
    start = bytes(loss_mask).rfind(0, 0, bytes(loss_mask).rfind(1)) + 1
    assert ids[:start] == prompts.conversation(turns[:-1]).main
