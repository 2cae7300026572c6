"""The forms of data in docs/TRAIN_HF_LORA_USAGE.md are read as its table says."""

from __future__ import annotations

import json

from transformers import AutoTokenizer

from parallelmind.data.encoder import DataCounts, SampleEncoder
from parallelmind.data.samples import parse_sample
from parallelmind.models.identity import bundled_model_path
from tests.docs.blocks import blocks_of

DOCUMENT = "docs/TRAIN_HF_LORA_USAGE.md"
SUPERVISED = [
    ["Dan is a man.", "Dan is not old."],
    [" 26", " Dan"],
    [" 26"],
    [" 26"],
    [" 26"],
    [":小明住在北京。"],  # without a main, nothing predicts the first token, which is 故事
    [" 26"],
    [" Hello! 👋 Bye!"],
    [" Hello!"],
]
"""Of the rows in the document, in order: what is supervised of each branch, end-of-text tokens aside."""


def test_every_form_is_supervised_as_documented() -> None:
    tokenizer = AutoTokenizer.from_pretrained(bundled_model_path())
    encoder = SampleEncoder(tokenizer, max_seq_len=512)
    block = next(block for block in blocks_of(DOCUMENT) if block.file_name == "forms.jsonl")
    found = []
    for number, line in enumerate(block.text.splitlines()):
        encoded = encoder.encode(parse_sample(json.loads(line), f"{DOCUMENT} row {number}"), DataCounts())
        assert encoded is not None
        found.append(
            [
                tokenizer.decode(
                    [token for token, supervised in zip(branch.ids, branch.loss_mask, strict=True) if supervised]
                )
                for branch in encoded.branches
            ]
        )
    assert [[text.replace(tokenizer.eos_token, "") for text in row] for row in found] == SUPERVISED
