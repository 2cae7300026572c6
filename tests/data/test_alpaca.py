"""Questions and answers in a table, converted and trained: what is learned, by hand, and that it is asked so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parallelmind.chat import ChatSession
from parallelmind.data.convert import ConvertOptions, convert
from parallelmind.io.jsonl import read_lines
from parallelmind.prompts.prompt_encoder import PromptEncoder
from parallelmind.settings.sampling import SamplingParams
from parallelmind.tasks.batch_records import Dialogue, read_record
from tests.prompts.public_templates import PUBLIC, public_tokenizer
from tests.prompts.test_one_conversation import RecordingEngine
from tests.prompts.test_public_templates import encoded, line, marked

PERSONA = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
FILES = {
    "alpaca": ("in.jsonl", '{"instruction": "Translate", "input": "chat", "output": "CAT"}\n'),
    "no input": ("in.jsonl", '{"instruction": "Translate", "input": "", "output": "CAT"}\n'),
    "system": ("in.jsonl", '{"instruction": "Translate", "input": "chat", "output": "CAT", "system": "Be brief."}\n'),
    "csv": ("in.csv", "question,answer\nHello,World\n"),
    "completion": ("in.jsonl", '{"prompt": "Hello", "completion": "World"}\n'),
}
LEARNED = {
    ("qwen2.5", "alpaca"): "<|im_start|>system\nchat<|im_end|>\n<|im_start|>user\nTranslate<|im_end|>\n"
    "<|im_start|>assistant\n«CAT<|im_end|>»\n",
    ("qwen2.5", "no input"): PERSONA + "<|im_start|>user\nTranslate<|im_end|>\n"
    "<|im_start|>assistant\n«CAT<|im_end|>»\n",
    ("qwen2.5", "system"): "<|im_start|>system\nBe brief.\n\nchat<|im_end|>\n<|im_start|>user\nTranslate<|im_end|>\n"
    "<|im_start|>assistant\n«CAT<|im_end|>»\n",
    ("qwen2.5", "csv"): PERSONA + "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n«World<|im_end|>»\n",
    ("gemma-2", "system"): "<bos><start_of_turn>user\nBe brief.\n\nchat\n\nTranslate<end_of_turn>\n"
    "<start_of_turn>model\n«CAT<end_of_turn>»\n",
    ("mistral-v3", "system"): "<s>[INST] Be brief.\n\nchat\n\nTranslate[/INST]« CAT</s>»",
    ("llama-2", "alpaca"): "<s>[INST] <<SYS>>\nchat\n<</SYS>>\n\nTranslate [/INST]« CAT </s>»",
    ("no template", "alpaca"): "System: chat\nUser: Translate\nAssistant:« CAT<|endoftext|>»",
    ("no template", "no input"): "User: Translate\nAssistant:« CAT<|endoftext|>»",
    ("no template", "csv"): "User: Hello\nAssistant:« World<|endoftext|>»",
    ("no template", "completion"): "User: Hello\nAssistant:« World<|endoftext|>»",
}


def record(folder: Path, case: str, **options: Any) -> dict[str, Any]:
    name, text = FILES[case]
    (folder / name).write_text(text, encoding="utf-8")
    convert(ConvertOptions(input=folder / name, output=folder / "out.jsonl", **options))
    [written] = read_lines(folder / "out.jsonl")
    fields: dict[str, Any] = json.loads(written.content)
    return fields


@pytest.mark.parametrize(("name", "case"), LEARNED)
def test_what_is_learned(tmp_path: Path, name: str, case: str) -> None:
    tokenizer = public_tokenizer(name)
    assert marked(tokenizer, encoded(tokenizer, record(tmp_path, case))) == LEARNED[name, case]


@pytest.mark.parametrize("name", [*PUBLIC, "no template"])
def test_it_is_asked_as_it_was_learned(tmp_path: Path, name: str) -> None:
    """With the shared text and the system prompt of a chat, and with the texts of a record as messages."""
    tokenizer = public_tokenizer(name)
    fields = record(tmp_path, "system")
    sample = encoded(tokenizer, fields)
    [branch] = sample.branches
    prompt = [*sample.main, *branch.ids[: branch.loss_mask.index(1)]]
    asked = read_record(line({"main": "Be brief.\n\nchat\n", "branches": ["Translate"]}), as_messages=True)
    again = read_record(line(fields))
    for one in (asked, again):
        assert isinstance(one, Dialogue)
        ids = one.encode(PromptEncoder(tokenizer), "isolated")
        assert ids.main == list(sample.main)
        assert ids.main + ids.branches[0] == prompt
    engine: Any = RecordingEngine(tokenizer)
    session = ChatSession(engine, SamplingParams())
    if name == "no template":  # a text above a conversation stays as it is there
        session.conversation.system = "Be brief.\n\nchat"
    else:
        session.conversation.system = "Be brief."
        session.set_main("chat")
    list(session.reply("Translate"))
    assert list(engine.asked[0].main) == prompt


def test_texts_on_demand(tmp_path: Path) -> None:
    tokenizer = public_tokenizer("no template")
    sample = encoded(tokenizer, record(tmp_path, "alpaca", branch_form="prompt"))
    assert marked(tokenizer, sample) == "chat\nTranslate«\nCAT<|endoftext|>»"
