"""Put a story and all its questions into one row, in which a question sees the story and itself only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from examples.tiny_model.data import Record, answer_text

PADDING = -1


@dataclass(frozen=True)
class Batch:
    """Rows of equal length. `targets` holds the token to predict next, or PADDING where nothing is asked."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    segments: torch.Tensor  # 0 the story, 1, 2, … its questions, PADDING
    targets: torch.Tensor

    def attention_mask(self) -> torch.Tensor:
        """The additive mask [rows, 1, length, length]."""
        length = self.segments.shape[1]
        query, key = self.segments[:, :, None], self.segments[:, None, :]
        seen = ((key == 0) & (query != PADDING)) | (key == query)
        seen &= torch.ones(length, length, dtype=torch.bool).tril()
        mask = torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(torch.float32).min)
        return mask[:, None]


def pack(tokenizer: PreTrainedTokenizerBase, records: Sequence[Record]) -> Batch:
    """Tokenise story, questions and answers one by one, so that no token crosses a border."""
    texts: list[str] = []
    for record in records:
        texts.append(record["main"])
        for branch, answer in zip(record["branches"], record["answers"], strict=True):
            texts += [branch, answer_text(branch, answer)]
    pieces = iter(tokenizer(texts)["input_ids"])
    rows: list[tuple[list[int], list[int], list[int], list[int]]] = []
    for record in records:
        ids = list(next(pieces))
        start = len(ids)
        positions, segments, targets = list(range(start)), [0] * start, [PADDING] * start
        for number in range(1, len(record["branches"]) + 1):
            asked, said = next(pieces), [*next(pieces), tokenizer.eos_token_id]
            size = len(asked) + len(said) - 1
            ids += asked + said[:-1]
            positions += range(start, start + size)
            segments += [number] * size
            targets += [PADDING] * (len(asked) - 1) + said
        rows.append((ids, positions, segments, targets))
    width = max(len(row[0]) for row in rows)
    fills = (tokenizer.pad_token_id, 0, PADDING, PADDING)
    columns = [
        torch.tensor([row[part] + [fill] * (width - len(row[part])) for row in rows]) for part, fill in enumerate(fills)
    ]
    return Batch(*columns)


def answer_logits(model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and targets of the asked positions, in reading order."""
    hidden = model.model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask(),
        position_ids=batch.position_ids,
        use_cache=False,
    ).last_hidden_state
    asked = batch.targets != PADDING
    return model.lm_head(hidden[asked]), batch.targets[asked]


@torch.inference_mode()
def exact(model: PreTrainedModel, batch: Batch) -> list[bool]:
    """For every question in order: would greedy generation write the answer and then stop?"""
    logits, targets = answer_logits(model, batch)
    right = logits.argmax(-1) == targets
    asked = batch.targets != PADDING
    row = torch.arange(len(asked))[:, None].expand_as(asked)[asked]
    question = row * (int(batch.segments.max()) + 1) + batch.segments[asked]
    _, where = torch.unique_consecutive(question, return_inverse=True)
    wrong = torch.zeros(int(where.max()) + 1).index_add_(0, where, (~right).float())
    return (wrong == 0).tolist()
