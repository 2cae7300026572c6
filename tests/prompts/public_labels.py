"""Conversations, and what is learned of them under the chat templates of public models: written by hand, with the
learned tokens in guillemets.
"""

from __future__ import annotations

from typing import Any

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
