"""Exact answers on held-out data: what is asked, and that a model trained on them scores 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parallelmind.data.encoder import DataCounts, SampleEncoder
from parallelmind.data.samples import parse_sample
from parallelmind.training.evaluation import _question
from tests.families import char_tokenizer
from tests.training.runs import options, save_model, train

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{% if m.role == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


def conversation(*turns: str) -> list[dict[str, str]]:
    return [{"role": "user" if place % 2 == 0 else "assistant", "content": text} for place, text in enumerate(turns)]


def chat_tokenizer() -> Any:
    tokenizer = char_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({"messages": conversation("hi", "yo", "who?", "me")}, [("u:hia:yo<eos>u:who?a:", "me")]),
        ({"messages": conversation("hi", "yo", "end")}, [("u:hia:", "yo")]),
        ({"text": "abc"}, []),
        ({"messages": [{"role": "assistant", "content": "hello"}]}, []),
        ({"prompt": "1+1=", "completion": "2"}, [("1+1=", "2")]),
        ({"messages": conversation("hi", "a-turn-that-is-too-long")}, []),
        ({"prompt": "p", "completion": "a-completion-too-long"}, []),
        (
            {"main": "m", "branches": ["t", {"messages": conversation("q", "r")}, {"prompt": "p", "completion": "c"}]},
            [("u:qa:", "r"), ("p", "c")],
        ),
    ],
)
def test_what_is_asked(row: dict[str, Any], asked: list[tuple[str, str]]) -> None:
    tokenizer = chat_tokenizer()
    sample = SampleEncoder(tokenizer, max_seq_len=20).encode(parse_sample(row, "row"), DataCounts())
    assert sample is not None
    question = _question(sample, tokenizer, tokenizer.eos_token_id)
    if not asked:
        assert question is None
        return
    assert question is not None
    request, answers = question
    assert [tokenizer.decode(branch.prompt) for branch in request.branches] == [prompt for prompt, _ in asked]  # type: ignore[union-attr]
    assert answers == [answer for _, answer in asked]


def test_conversations_that_were_trained_on_are_answered_exactly(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    chat_tokenizer().save_pretrained(model)
    data = tmp_path / "data.jsonl"
    rows = [{"messages": conversation(f"q{n}", f"{n}{n}", f"x{n}", f"y{9 - n}z")} for n in range(4)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = train(options(model, data, tmp_path / "out", task="lora", eval_data_path=data, max_steps=1))
    assert report.evaluation["eval_exact"] < 1
    report = train(options(model, data, tmp_path / "more", task="lora", eval_data_path=data, max_steps=60))
    assert report.evaluation["eval_exact"] == 1
