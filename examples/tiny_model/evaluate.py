"""Measure a saved tiny model on held-out stories, with plain greedy generation, every question alone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from examples.tiny_model.data import LANGUAGES, Record, stories

EVALUATION_SEED = 2_000_000
MAX_NEW_TOKENS = 6


@torch.inference_mode()
def written(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: Record, temperature: float = 0.0
) -> list[str]:
    """The answers `model.generate` writes to the questions of one story; questions of one length together."""
    main = tokenizer(record["main"])["input_ids"]
    prompts = [main + tokenizer(branch)["input_ids"] for branch in record["branches"]]
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    answers = [""] * len(prompts)
    for length in {len(prompt) for prompt in prompts}:
        chosen = [index for index, prompt in enumerate(prompts) if len(prompt) == length]
        ids = torch.tensor([prompts[index] for index in chosen])
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_NEW_TOKENS, **sampling)
        for index, text in zip(
            chosen, tokenizer.batch_decode(output[:, length:], skip_special_tokens=True), strict=True
        ):
            answers[index] = text.strip()
    return answers


def share(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    temperature: float = 0.0,
) -> tuple[int, int]:
    """How many answers are exactly right, and how many there are."""
    right = total = 0
    for record in records:
        answers = written(model, tokenizer, record, temperature)
        right += sum(map(str.__eq__, answers, record["answers"]))
        total += len(answers)
    return right, total


def main() -> None:
    """Print a table; with --demo also write the first 32 records of the evaluation seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--stories", type=int, default=100, help="stories a cell of the table")
    parser.add_argument("--facts", type=int, nargs="+", default=[4, 6, 8, 10, 12])
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--demo", type=Path, help="write the demo records here and measure them")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    print(f"| facts | language | questions | exact, greedy | exact, temperature {args.temperature} |")
    print("|---|---|---|---|---|")
    for facts in args.facts:
        for language in LANGUAGES:
            records = list(stories(EVALUATION_SEED + facts, args.stories, facts, language))
            right, total = share(model, tokenizer, records)
            sampled, _ = share(model, tokenizer, records, args.temperature)
            print(
                f"| {facts} | {language} | {total} | {right / total:.4f} | {sampled / total:.4f} |",
                flush=True,
            )
    if args.demo:
        records = list(stories(EVALUATION_SEED, 32))
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        args.demo.write_text("".join(lines), encoding="utf-8")
        right, total = share(model, tokenizer, records)
        print(f"demo records: {right} of {total} answers exact")


if __name__ == "__main__":
    main()
