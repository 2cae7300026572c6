"""What is learned of conversations under the chat templates of public models: the texts are written by hand, with the
learned tokens in guillemets.
"""

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
from tests.prompts.public_templates import PUBLIC, public_tokenizer
from tests.prompts.test_one_conversation import RecordingEngine

Turn = dict[str, Any]


def user(text: str) -> Turn:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> Turn:
    return {"role": "assistant", "content": text, **more}


PRICE = {"type": "function", "function": {"name": "price", "arguments": '{"of": "tea"}'}, "id": "call00001"}
TOOL = {"type": "function", "function": {"name": "price", "parameters": {"type": "object"}}}
RESULT = {"role": "tool", "content": "5", "tool_call_id": "call00001"}
BE_KIND = {"role": "system", "content": "Be kind."}

CASES: dict[str, list[Turn]] = {
    "single": [user("Hi"), assistant("Yo")],
    "turns": [user("Hi"), assistant("Yo"), user("Who?"), assistant("Me")],
    "system": [BE_KIND, user("Hi"), assistant("Yo"), user("Who?"), assistant("Me")],
    "spaces": [user("Hi"), assistant("Yo "), user("Who?"), assistant("Me ")],
    "weights": [user("Hi"), assistant("Yo", weight=0), user("Who?"), assistant("Me", weight=1)],
    "thoughts": [
        user("Hi"), assistant("<think>\nhm\n</think>\n\nYo"), user("Who?"), assistant("<think>\nwell\n</think>\n\nMe")
    ],
    "call": [
        user("Tea?"), assistant("", tool_calls=[PRICE]), RESULT, assistant("5."), user("Sure?"), assistant("Yes.")
    ],
    "last call": [user("Hi"), assistant("Yo"), user("Tea?"), assistant("", tool_calls=[PRICE])],
}  # fmt: skip
WITH_TOOLS = ("call", "last call")

QWEN_PERSONA = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
QWEN_TOOLS = (
    "<|im_start|>system\n{persona}\n\n# Tools\n\n<tools>\n"
    '{{"type": "function", "function": {{"name": "price", "parameters": {{"type": "object"}}}}}}\n</tools><|im_end|>\n'
)
QWEN_CALL = '<tool_call>\n{"name": "price", "arguments": {"of": "tea"}}\n</tool_call>'
LLAMA31_SYSTEM = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n"
)
LLAMA31_TOOLS = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
    '<|start_header_id|>user<|end_header_id|>\n\n{\n    "type": "function",\n    "function": {\n'
    '        "name": "price",\n        "parameters": {\n            "type": "object"\n        }\n    }\n}\n\n'
)
MISTRAL_TOOLS = (
    '[{"type": "function", "function": {"name": "price", "parameters": {"type": "object"}}}][/AVAILABLE_TOOLS]'
)
MISTRAL_CALL = '[{"name": "price", "arguments": {"of": "tea"}, "id": "call00001"}]</s>'


def chatml(system: str, *turns: str) -> str:
    """ChatML around texts that are written out: questions, and answers in guillemets."""
    written = ""
    for place, text in enumerate(turns):
        if place % 2 == 0:
            written += f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        else:
            written += f"{text}\n"
    return system + written


EXPECTED: dict[str, dict[str, str]] = {
    "chatml": {
        "single": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n«Yo<|im_end|>»\n",
        "turns": chatml("", "Hi", "«Yo<|im_end|>»", "Who?", "«Me<|im_end|>»"),
        "system": chatml("<|im_start|>system\nBe kind.<|im_end|>\n", "Hi", "«Yo<|im_end|>»", "Who?", "«Me<|im_end|>»"),
        "spaces": chatml("", "Hi", "«Yo <|im_end|>»", "Who?", "«Me <|im_end|>»"),
        "weights": chatml("", "Hi", "Yo<|im_end|>", "Who?", "«Me<|im_end|>»"),
        "thoughts": chatml(
            "",
            "Hi",
            "«<think>\nhm\n</think>\n\nYo<|im_end|>»",
            "Who?",
            "«<think>\nwell\n</think>\n\nMe<|im_end|>»",
        ),
    },
    "qwen2.5": {
        "single": QWEN_PERSONA + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n«Yo<|im_end|>»\n",
        "turns": chatml(QWEN_PERSONA, "Hi", "«Yo<|im_end|>»", "Who?", "«Me<|im_end|>»"),
        "system": chatml("<|im_start|>system\nBe kind.<|im_end|>\n", "Hi", "«Yo<|im_end|>»", "Who?", "«Me<|im_end|>»"),
        "spaces": chatml(QWEN_PERSONA, "Hi", "«Yo <|im_end|>»", "Who?", "«Me <|im_end|>»"),
        "weights": chatml(QWEN_PERSONA, "Hi", "Yo<|im_end|>", "Who?", "«Me<|im_end|>»"),
        "call": QWEN_TOOLS.format(persona="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
        + f"<|im_start|>user\nTea?<|im_end|>\n<|im_start|>assistant\n«{QWEN_CALL}<|im_end|>»\n"
        "<|im_start|>user\n<tool_response>\n5\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n«5.<|im_end|>»\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n«Yes.<|im_end|>»\n",
        "last call": QWEN_TOOLS.format(persona="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
        + chatml("", "Hi", "«Yo<|im_end|>»", "Tea?", f"«{QWEN_CALL}<|im_end|>»"),
    },
    "qwen3": {
        "single": chatml("", "Hi", "«<think>\n\n</think>\n\nYo<|im_end|>»"),
        "turns": chatml("", "Hi", "«Yo<|im_end|>»", "Who?", "«<think>\n\n</think>\n\nMe<|im_end|>»"),
        "system": chatml(
            "<|im_start|>system\nBe kind.<|im_end|>\n",
            "Hi",
            "«Yo<|im_end|>»",
            "Who?",
            "«<think>\n\n</think>\n\nMe<|im_end|>»",
        ),
        "spaces": chatml("", "Hi", "«Yo <|im_end|>»", "Who?", "«<think>\n\n</think>\n\nMe <|im_end|>»"),
        "weights": chatml("", "Hi", "Yo<|im_end|>", "Who?", "«<think>\n\n</think>\n\nMe<|im_end|>»"),
        "thoughts": chatml("", "Hi", "«Yo<|im_end|>»", "Who?", "«<think>\nwell\n</think>\n\nMe<|im_end|>»"),
        "call": QWEN_TOOLS.format(persona="")
        + f"<|im_start|>user\nTea?<|im_end|>\n<|im_start|>assistant\n«{QWEN_CALL}<|im_end|>»\n"
        "<|im_start|>user\n<tool_response>\n5\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n«5.<|im_end|>»\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n«<think>\n\n</think>\n\nYes.<|im_end|>»\n",
        "last call": QWEN_TOOLS.format(persona="")
        + chatml("", "Hi", "«Yo<|im_end|>»", "Tea?", f"«<think>\n\n</think>\n\n{QWEN_CALL}<|im_end|>»"),
    },
    "yi-1.5": {
        "turns": chatml("", "Hi", "«Yo<|im_end|>»", "Who?", "«Me<|im_end|>»"),
        "system": chatml("Be kind.", "Hi", "«Yo<|im_end|>»", "Who?", "«Me<|im_end|>»"),
        "spaces": chatml("", "Hi", "«Yo <|im_end|>»", "Who?", "«Me <|im_end|>»"),
    },
    "internlm2": {
        "turns": chatml("<s>", "Hi", "«Yo<|im_end|>»", "Who?", "«Me<|im_end|>»"),
        "system": chatml(
            "<s><|im_start|>system\nBe kind.<|im_end|>\n", "Hi", "«Yo<|im_end|>»", "Who?", "«Me<|im_end|>»"
        ),
        "spaces": chatml("<s>", "Hi", "«Yo <|im_end|>»", "Who?", "«Me <|im_end|>»"),
    },
    "llama-2": {
        "single": "<s>[INST] Hi [/INST]« Yo </s>»",
        "turns": "<s>[INST] Hi [/INST]« Yo </s>»<s>[INST] Who? [/INST]« Me </s>»",
        "system": "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST]« Yo </s>»<s>[INST] Who? [/INST]« Me </s>»",
        "spaces": "<s>[INST] Hi [/INST]« Yo </s>»<s>[INST] Who? [/INST]« Me </s>»",
        "weights": "<s>[INST] Hi [/INST] Yo </s><s>[INST] Who? [/INST]« Me </s>»",
    },
    "llama-3": {
        "turns": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«Yo<|eot_id|>»"
        "<|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«Me<|eot_id|>»",
        "system": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«Yo<|eot_id|>»"
        "<|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«Me<|eot_id|>»",
        "spaces": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«Yo<|eot_id|>»"
        "<|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«Me<|eot_id|>»",
    },
    "llama-3.1": {
        "single": LLAMA31_SYSTEM + "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«Yo<|eot_id|>»",
        "system": LLAMA31_SYSTEM + "Be kind.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«Yo<|eot_id|>»"
        "<|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«Me<|eot_id|>»",
        "spaces": LLAMA31_SYSTEM + "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«Yo<|eot_id|>»"
        "<|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«Me<|eot_id|>»",
        "call": LLAMA31_TOOLS + "Tea?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        '«{"name": "price", "parameters": {"of": "tea"}}<|eot_id|>»'
        '<|start_header_id|>ipython<|end_header_id|>\n\n"5"<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n«5.<|eot_id|>»"
        "<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«Yes.<|eot_id|>»",
        "last call": LLAMA31_TOOLS + "Hi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n«Yo<|eot_id|>»"
        "<|start_header_id|>user<|end_header_id|>\n\nTea?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        '«{"name": "price", "parameters": {"of": "tea"}}<|eot_id|>»',
    },
    "mistral-v1": {
        "single": "<s>[INST] Hi [/INST]«Yo</s>»",
        "turns": "<s>[INST] Hi [/INST]«Yo</s>»[INST] Who? [/INST]«Me</s>»",
        "system": "<s>[INST] Be kind.\n\nHi [/INST]«Yo</s>»[INST] Who? [/INST]«Me</s>»",
        "spaces": "<s>[INST] Hi [/INST]«Yo </s>»[INST] Who? [/INST]«Me </s>»",
        "weights": "<s>[INST] Hi [/INST]Yo</s>[INST] Who? [/INST]«Me</s>»",
    },
    "mistral-v3": {
        "single": "<s>[INST] Hi[/INST]« Yo</s>»",
        "turns": "<s>[INST] Hi[/INST]« Yo</s>»[INST] Who?[/INST]« Me</s>»",
        "system": "<s>[INST] Hi[/INST]« Yo</s>»[INST] Be kind.\n\nWho?[/INST]« Me</s>»",
        "spaces": "<s>[INST] Hi[/INST]« Yo </s>»[INST] Who?[/INST]« Me </s>»",
        "weights": "<s>[INST] Hi[/INST] Yo</s>[INST] Who?[/INST]« Me</s>»",
        "call": f"<s>[INST] Tea?[/INST]«[TOOL_CALLS] {MISTRAL_CALL}»"
        '[TOOL_RESULTS] {"content": 5, "call_id": "call00001"}[/TOOL_RESULTS]« 5.</s>»'
        f"[AVAILABLE_TOOLS] {MISTRAL_TOOLS}[INST] Sure?[/INST]« Yes.</s>»",
        "last call": "<s>[INST] Hi[/INST]« Yo</s>»"
        f"[AVAILABLE_TOOLS] {MISTRAL_TOOLS}[INST] Tea?[/INST]«[TOOL_CALLS] {MISTRAL_CALL}»",
    },
    "mistral-tekken": {
        "single": "<s>[INST]Hi[/INST]«Yo</s>»",
        "turns": "<s>[INST]Hi[/INST]«Yo</s>»[INST]Who?[/INST]«Me</s>»",
        "system": "<s>[INST]Hi[/INST]«Yo</s>»[INST]Be kind.\n\nWho?[/INST]«Me</s>»",
        "spaces": "<s>[INST]Hi[/INST]«Yo </s>»[INST]Who?[/INST]«Me </s>»",
        "call": f"<s>[INST]Tea?[/INST]«[TOOL_CALLS]{MISTRAL_CALL}»"
        '[TOOL_RESULTS]{"content": 5, "call_id": "call00001"}[/TOOL_RESULTS]«5.</s>»'
        f"[AVAILABLE_TOOLS]{MISTRAL_TOOLS}[INST]Sure?[/INST]«Yes.</s>»",
        "last call": "<s>[INST]Hi[/INST]«Yo</s>»"
        f"[AVAILABLE_TOOLS]{MISTRAL_TOOLS}[INST]Tea?[/INST]«[TOOL_CALLS]{MISTRAL_CALL}»",
    },
    "gemma-2": {
        "single": "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n«Yo<end_of_turn>»\n",
        "turns": "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n«Yo<end_of_turn>»\n"
        "<start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\n«Me<end_of_turn>»\n",
        "system": "<bos><start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n<start_of_turn>model\n«Yo<end_of_turn>»\n"
        "<start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\n«Me<end_of_turn>»\n",
        "spaces": "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n«Yo<end_of_turn>»\n"
        "<start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\n«Me<end_of_turn>»\n",
    },
    "gemma-3": {
        "turns": "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n«Yo<end_of_turn>»\n"
        "<start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\n«Me<end_of_turn>»\n",
        "system": "<bos><start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n<start_of_turn>model\n«Yo<end_of_turn>»\n"
        "<start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\n«Me<end_of_turn>»\n",
        "spaces": "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n«Yo<end_of_turn>»\n"
        "<start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\n«Me<end_of_turn>»\n",
    },
    "phi-3": {
        "single": "<|user|>\nHi<|end|>\n<|assistant|>\n«Yo<|end|>»\n<|endoftext|>",
        "turns": "<|user|>\nHi<|end|>\n<|assistant|>\n«Yo<|end|>»\n"
        "<|user|>\nWho?<|end|>\n<|assistant|>\n«Me<|end|>»\n<|endoftext|>",
        "system": "<|system|>\nBe kind.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n«Yo<|end|>»\n"
        "<|user|>\nWho?<|end|>\n<|assistant|>\n«Me<|end|>»\n<|endoftext|>",
        "spaces": "<|user|>\nHi<|end|>\n<|assistant|>\n«Yo <|end|>»\n"
        "<|user|>\nWho?<|end|>\n<|assistant|>\n«Me <|end|>»\n<|endoftext|>",
    },
    "phi-4": {
        "turns": "<|im_start|>user<|im_sep|>Hi<|im_end|><|im_start|>assistant<|im_sep|>«Yo<|im_end|>»"
        "<|im_start|>user<|im_sep|>Who?<|im_end|><|im_start|>assistant<|im_sep|>«Me<|im_end|>»",
        "system": "<|im_start|>system<|im_sep|>Be kind.<|im_end|>"
        "<|im_start|>user<|im_sep|>Hi<|im_end|><|im_start|>assistant<|im_sep|>«Yo<|im_end|>»"
        "<|im_start|>user<|im_sep|>Who?<|im_end|><|im_start|>assistant<|im_sep|>«Me<|im_end|>»",
        "spaces": "<|im_start|>user<|im_sep|>Hi<|im_end|><|im_start|>assistant<|im_sep|>«Yo <|im_end|>»"
        "<|im_start|>user<|im_sep|>Who?<|im_end|><|im_start|>assistant<|im_sep|>«Me <|im_end|>»",
    },
    "zephyr": {
        "single": "<|user|>\nHi</s>\n<|assistant|>\n«Yo</s>»\n",
        "turns": "<|user|>\nHi</s>\n<|assistant|>\n«Yo</s>»\n<|user|>\nWho?</s>\n<|assistant|>\n«Me</s>»\n",
        "system": "<|system|>\nBe kind.</s>\n<|user|>\nHi</s>\n<|assistant|>\n«Yo</s>»\n"
        "<|user|>\nWho?</s>\n<|assistant|>\n«Me</s>»\n",
        "spaces": "<|user|>\nHi</s>\n<|assistant|>\n«Yo </s>»\n<|user|>\nWho?</s>\n<|assistant|>\n«Me </s>»\n",
    },
    "deepseek-v2": {
        "turns": "<｜begin▁of▁sentence｜>User: Hi\n\nAssistant:« Yo<｜end▁of▁sentence｜>»"
        "User: Who?\n\nAssistant:« Me<｜end▁of▁sentence｜>»",
        "system": "<｜begin▁of▁sentence｜>Be kind.\n\nUser: Hi\n\nAssistant:« Yo<｜end▁of▁sentence｜>»"
        "User: Who?\n\nAssistant:« Me<｜end▁of▁sentence｜>»",
        "spaces": "<｜begin▁of▁sentence｜>User: Hi\n\nAssistant:« Yo <｜end▁of▁sentence｜>»"
        "User: Who?\n\nAssistant:« Me <｜end▁of▁sentence｜>»",
    },
    # Its prompt begins a thought, which the template leaves out of answers.
    "deepseek-r1": {
        "single": "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜><think>\n«\n</think>\n\nYo<｜end▁of▁sentence｜>»",
        "turns": "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>«Yo<｜end▁of▁sentence｜>»"
        "<｜User｜>Who?<｜Assistant｜><think>\n«\n</think>\n\nMe<｜end▁of▁sentence｜>»",
        "system": "<｜begin▁of▁sentence｜>Be kind.<｜User｜>Hi<｜Assistant｜>«Yo<｜end▁of▁sentence｜>»"
        "<｜User｜>Who?<｜Assistant｜><think>\n«\n</think>\n\nMe<｜end▁of▁sentence｜>»",
        "thoughts": "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>«\n\nYo<｜end▁of▁sentence｜>»"
        "<｜User｜>Who?<｜Assistant｜><think>\n«well\n</think>\n\nMe<｜end▁of▁sentence｜>»",
    },
    # An answer ends where the next role begins; behind the last one nothing is written.
    "glm-4": {
        "single": "[gMASK]<sop><|user|>\nHi<|assistant|>«\nYo<|endoftext|>»",
        "turns": "[gMASK]<sop><|user|>\nHi<|assistant|>«\nYo<|user|>»\nWho?<|assistant|>«\nMe<|endoftext|>»",
        "system": "[gMASK]<sop><|system|>\nBe kind.<|user|>\nHi<|assistant|>«\nYo<|user|>»\n"
        "Who?<|assistant|>«\nMe<|endoftext|>»",
        "spaces": "[gMASK]<sop><|user|>\nHi<|assistant|>«\nYo <|user|>»\nWho?<|assistant|>«\nMe <|endoftext|>»",
    },
    "no template": {
        "single": "User: Hi\nAssistant:« Yo<|endoftext|>»",
        "turns": "User: Hi\nAssistant:« Yo»\nUser: Who?\nAssistant:« Me<|endoftext|>»",
        "system": "System: Be kind.\nUser: Hi\nAssistant:« Yo»\nUser: Who?\nAssistant:« Me<|endoftext|>»",
        "spaces": "User: Hi\nAssistant:« Yo »\nUser: Who?\nAssistant:« Me <|endoftext|>»",
        "weights": "User: Hi\nAssistant: Yo\nUser: Who?\nAssistant:« Me<|endoftext|>»",
    },
}
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
