"""Decoding N branches under one main: the engine against transformers' generate, timed in the same run.

    python benchmarks/decoding.py --save

Peers, both the strongest way to do it with transformers alone:
- "duplicated": generate() on N copies of main + prompt;
- "copied cache": main prefilled once, its cache copied N times (batch_repeat_interleave), then generate().
The model is random, of the shape given (387M parameters by default), and all decode greedily to the full length.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Callable
from typing import Any

# As the command line does, for all peers: see parallelmind.cli.main.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from machine import describe, save
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from parallelmind import Engine, Request, SamplingParams
from parallelmind.models.cpu.optimize import optimize_for_cpu

VOCABULARY = 32000
SHAPES = {
    "387m": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
    },
    "1.5b-part": {  # 4 of its 28 layers
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 4,
        "num_attention_heads": 12,
    },
    "25m": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6},
}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class NoTokenizer:
    """The requests are token ids and nobody reads the text."""

    eos_token_id = None

    def decode(self, ids: list[int], **_: Any) -> str:
        """One character per token."""
        return "." * len(ids)


def random_model(shape: str, dtype: torch.dtype) -> Any:
    """A random qwen2 model."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=32768,
        bos_token_id=None,
        eos_token_id=None,
        **SHAPES[shape],
    )
    return Qwen2ForCausalLM(config).to(dtype).eval()


@torch.inference_mode()
def duplicated(model: Any, main: list[int], prompts: list[list[int]], new_tokens: int) -> Any:
    """generate() on N copies of main + prompt."""
    ids = torch.tensor([main + prompt for prompt in prompts])
    return _generate(model, ids, new_tokens)


@torch.inference_mode()
def copied_cache(model: Any, main: list[int], prompts: list[list[int]], new_tokens: int) -> Any:
    """Main prefilled once, its cache copied for each branch, then generate()."""
    cache = DynamicCache(config=model.config)
    model(torch.tensor([main]), past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache = copy.deepcopy(cache)
    cache.batch_repeat_interleave(len(prompts))
    ids = torch.tensor([main + prompt for prompt in prompts])
    return _generate(model, ids, new_tokens, past_key_values=cache)


def _generate(model: Any, ids: torch.Tensor, new_tokens: int, **arguments: Any) -> Any:
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        **arguments,
    )
    return output[:, ids.shape[1] :]


def timed(run: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest of several runs."""
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return best


def main() -> None:
    """Time all peers for each number of branches and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="387m")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the checkpoint and of the peers")
    parser.add_argument("--main", type=int, default=1024, help="tokens of main")
    parser.add_argument("--prompt", type=int, default=8, help="tokens of each branch's prompt")
    parser.add_argument("--new_tokens", type=int, default=32)
    parser.add_argument("--branches", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--duplicated_up_to", type=int, default=8, help="skip this peer above so many branches")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--save", action="store_true", help="write the result to benchmarks/results/")
    args = parser.parse_args()
    print(describe())

    generator = torch.Generator().manual_seed(1)
    text = torch.randint(VOCABULARY, (args.main,), generator=generator).tolist()
    peer = random_model(args.shape, DTYPES[args.dtype])
    ours = random_model(args.shape, DTYPES[args.dtype])
    notes = optimize_for_cpu(ours)
    engine = Engine(ours, NoTokenizer(), max_running_branches=None)
    greedy = SamplingParams(max_new_tokens=args.new_tokens, temperature=0, ignore_eos=True)
    lines = [
        "| main, branches | engine | duplicated | copied cache | duplicated / ours | copied / ours | KV of main |",
        "|---|---|---|---|---|---|---|",
    ]
    for count in args.branches:
        prompts = torch.randint(VOCABULARY, (count, args.prompt), generator=generator).tolist()

        def run_engine(prompts: list[list[int]] = prompts) -> list[list[int]]:
            engine.reset_prefix_cache()
            result = engine.generate([Request(main=text, branches=prompts)], greedy)[0]
            return [branch.token_ids for branch in result.branches]

        if args.dtype == "float32":
            # Random models have near ties, so a few differing branches are rounding; all differing would be a fault.
            theirs = copied_cache(peer, text, prompts, args.new_tokens).tolist()
            same = sum(a == b for a, b in zip(run_engine(), theirs, strict=True))
            print(f"{same} of {count} branches have the same tokens both ways")

        seconds = timed(run_engine, args.repeats)
        kept = engine.kv_cache_bytes / 2**20
        copied = timed(lambda p=prompts: copied_cache(peer, text, p, args.new_tokens), args.repeats)  # type: ignore[misc]
        twice, ratio = "–", "–"
        if count <= args.duplicated_up_to:
            duplicate = timed(lambda p=prompts: duplicated(peer, text, p, args.new_tokens), 1)  # type: ignore[misc]
            twice, ratio = f"{duplicate:.1f} s", f"{duplicate / seconds:.1f}×"
        lines.append(
            f"| {args.main}, {count} | {seconds:.2f} s | {twice} | {copied:.1f} s | {ratio} | {copied / seconds:.1f}× "
            f"| {kept:.1f} MiB |"
        )
        print(lines[-1], flush=True)
    table = "\n".join(lines)
    print("\n" + table)
    if args.save:
        said = "".join(f"\nThe engine's note: {note}." for note in notes)
        setting = (
            f"\n{args.shape}, {args.dtype}, {args.new_tokens} new tokens, prompts of {args.prompt} tokens.\n{said}\n"
        )
        print(save(f"decoding-{args.dtype}", "Decoding branches under one main", table, setting))


if __name__ == "__main__":
    main()
