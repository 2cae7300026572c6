"""Train the tiny model: tokenizer, then the weights, then the final evaluation. One command for all."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.utils.logging import disable_progress_bar

from examples.tiny_model.data import LANGUAGES, Record, stories
from examples.tiny_model.packing import answer_logits, exact, pack
from examples.tiny_model.train_tokenizer import train

HELD_OUT_SEED = 1_000_000


def new_model(tokenizer: PreTrainedTokenizerBase, width: int, layers: int) -> Qwen2ForCausalLM:
    """A fresh model; the wide initialisation and the untied embeddings are what makes look-up learnable."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        initializer_range=width**-0.5,
        tie_word_embeddings=False,
        use_sliding_window=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )
    return Qwen2ForCausalLM(config)


def batches(seed: int, steps: int, questions: int, bare_steps: int, mixed_steps: int) -> Iterator[list[Record]]:
    """Every batch has its own number of facts.

    The first `bare_steps` have names and values only, the next `mixed_steps` take turns between those,
    the shortest wordings and all wordings, and the rest is all wordings.
    """
    for step in range(steps):
        facts = 4 + (step * 5 + seed) % 9
        wordings = 0 if step < bare_steps else 9
        if bare_steps <= step < bare_steps + mixed_steps:
            wordings = (0, 1, 9, 1, 9)[step % 5]
        yield list(
            stories(
                seed * 10_000_000 + step,
                max(1, questions // facts),
                facts,
                again=0.0 if wordings < 2 else 0.3,
                wordings=wordings,
            )
        )


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm up for 100 steps, hold, and go down to nothing over the last 40 percent."""
    return peak * min(1.0, (step + 1) / 100, (steps - step) / (0.4 * steps))


def accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: int, language: str, n: int) -> float:
    """The exact share over `n` held-out stories."""
    records = list(stories(HELD_OUT_SEED + facts, n, facts, language))
    right = [hit for at in range(0, n, 50) for hit in exact(model, pack(tokenizer, records[at : at + 50]))]
    return sum(right) / len(right)


def final_evaluation(folder: Path, n: int = 250) -> None:
    """Print the accuracy of what was stored, read back the way a user reads it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for facts in (4, 8, 12):
        shares = [f"{lang} {accuracy(model, tokenizer, facts, lang, n):.4f}" for lang in LANGUAGES]
        print(f"{facts} facts, {n * facts} questions a language:", *shares, flush=True)


def main() -> None:
    """Train, save and evaluate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out_dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4200)
    parser.add_argument("--bare_steps", type=int, default=1500)
    parser.add_argument("--mixed_steps", type=int, default=500)
    parser.add_argument("--questions", type=int, default=256, help="questions a step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--vocab_size", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--init_from", type=Path, help="go on from a saved model")
    args = parser.parse_args()
    disable_progress_bar()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = train(args.vocab_size, args.seed)
    tokenizer.save_pretrained(args.out_dir)
    model = new_model(tokenizer, args.width, args.layers)
    if args.init_from:
        model = Qwen2ForCausalLM.from_pretrained(args.init_from, dtype=torch.float32)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(tokenizer)} tokens", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.1, fused=True)
    began = time.monotonic()
    total, seen = 0.0, 0
    for step, records in enumerate(batches(args.seed, args.steps, args.questions, args.bare_steps, args.mixed_steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        loss = cross_entropy(*answer_logits(model, pack(tokenizer, records)))
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        total, seen = total + loss.item(), seen + 1
        if (step + 1) % 50 == 0:
            line = f"step {step + 1} loss {total / seen:.4f} {time.monotonic() - began:.0f} s"
            if (step + 1) % 250 == 0:
                line += "".join(f" {lang} {accuracy(model, tokenizer, 8, lang, 50):.3f}" for lang in LANGUAGES)
                model.save_pretrained(args.out_dir)
            print(line, flush=True)
            total, seen = 0.0, 0
    model.save_pretrained(args.out_dir)
    final_evaluation(args.out_dir)


if __name__ == "__main__":
    main()
