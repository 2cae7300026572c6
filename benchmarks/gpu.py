"""Decoding on an accelerator: the engine beside transformers with a copied cache and beside the memory bound.

    python benchmarks/gpu.py --save
    python benchmarks/gpu.py --device cpu --quick     # a tiny shape, to see that it runs

For each shape, length of main and number of branches: seconds of prefill, the median milliseconds of a decoding step,
and the bound: weights, main's keys and values once and own ones, at the rate that a large copy reaches on this device.
Then the same number of branches below one main and below many, and one step under torch.profiler: how many kernels,
how long they run, how long the device waits.
Weights are random, in bfloat16.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from machine import describe, save
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, Qwen2Config, Qwen3Config

from parallelmind import Branch, Engine, Request, SamplingParams, load_model_with_lora

COMMON = {"vocab_size": 32000, "max_position_embeddings": 32768, "pad_token_id": 0} | dict.fromkeys(
    ("bos_token_id", "eos_token_id")
)
SMALL = {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8}
GROUPED = {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
FULL = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32}
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SHAPES: dict[str, Any] = {
    "0.6B (28 layers, 16/8 heads of 128)": Qwen3Config(head_dim=128, intermediate_size=3072, **SMALL, **COMMON),
    "7B GQA (28 layers, 28/4 heads of 128)": Qwen2Config(intermediate_size=18944, **GROUPED, **COMMON),
    "7B MHA (32 layers, 32/32 heads of 128)": LlamaConfig(intermediate_size=11008, **FULL, **COMMON),
}
GRID = [(1024, 1), (1024, 16), (1024, 128), (8192, 1), (8192, 16), (8192, 64), (8192, 128)]
MANY = [(1, 64, 128), (64, 1, 128), (1, 64, 1024), (64, 1, 1024)]
"""Mains, branches of each, and length."""
PROFILED = [("7B GQA (28 layers, 28/4 heads of 128)", mains) for mains in ((1, 16, 8192), (1, 128, 8192), (64, 1, 128))]
QUICK_SHAPES: dict[str, Any] = {"tiny": Qwen2Config(intermediate_size=128, **TINY, **COMMON)}
NEW, PROMPT, CHUNK = 32, 8, 8192
ATTENTION = ("write_pages", "read_items", "merge_parts")
"""The engine's own kernels."""


class Bench:
    """The device, and what is measured on it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # The requests are token ids; any tokenizer decodes them.
        self.tokenizer = load_model_with_lora("tiny", device="cpu", dtype="float32")[1]

    def seconds(self, run: Callable[[], Any]) -> float:
        """Of one call, the device's work included."""
        self._synchronize()
        start = time.perf_counter()
        run()
        self._synchronize()
        return time.perf_counter() - start

    def copy_rate(self) -> float:
        """Bytes a second of a large copy, counting read and written."""
        source = torch.empty(2**30 if self.device.type == "cuda" else 2**26, dtype=torch.int8, device=self.device)
        target = torch.empty_like(source)
        return 2 * source.numel() / min(self.seconds(lambda: target.copy_(source)) for _ in range(6))

    def model(self, config: Any) -> Any:
        torch.manual_seed(0)
        with torch.device(self.device):
            return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()

    def engine(self, model: Any, mains: int, branches: int, length: int) -> Engine:
        """With requests of random tokens waiting."""
        torch.manual_seed(1)
        engine = Engine(model, self.tokenizer, max_running_branches=mains * branches, max_batched_tokens=CHUNK)
        sampling = SamplingParams(max_new_tokens=NEW, temperature=0, ignore_eos=True)
        for _ in range(mains):
            prompts = [Branch(prompt=tokens(PROMPT)) for _ in range(branches)]
            engine.add_request(Request(main=tokens(length), branches=prompts), sampling)
        return engine

    def engine_steps(self, model: Any, branches: int, length: int, mains: int = 1) -> tuple[float, float]:
        """Seconds of the prefill, and of one step in the median."""
        engine = self.engine(model, mains, branches, length)
        found = []
        while engine.has_unfinished():
            found.append(self.seconds(engine.step))
        prefill = -(-mains * length // CHUNK)
        return sum(found[:prefill]), statistics.median(found[prefill + 2 :])

    @torch.inference_mode()
    def copied_step(self, model: Any, branches: int, length: int) -> float:
        """Seconds of one step of transformers with main's cache copied to every branch."""
        cache = DynamicCache(config=model.config)
        main, prompts = tokens(length), [tokens(PROMPT) for _ in range(branches)]
        model(input_ids=torch.tensor([main], device=self.device), past_key_values=cache, logits_to_keep=1)
        cache.batch_repeat_interleave(branches)
        ids = torch.tensor(prompts, device=self.device)
        found = []
        for _ in range(12):

            def step(ids: torch.Tensor = ids) -> torch.Tensor:
                logits: torch.Tensor = model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits
                return logits[:, -1].argmax(-1, keepdim=True)

            found.append(self.seconds(step))
            ids = step()
        return statistics.median(found[2:])

    def profiled(self, model: Any, mains: int, branches: int, length: int) -> str:
        """One row of the second table."""
        engine = self.engine(model, mains, branches, length)
        warm = 6 + -(-mains * length // CHUNK)
        for _ in range(warm):
            engine.step()
        wall = statistics.median(self.seconds(engine.step) for _ in range(8))
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])]
        with profile(activities=activities) as found:
            self.seconds(engine.step)
        events = found.events() or []
        kernels = [e for e in events if e.device_type == DeviceType.CUDA and not e.name.startswith("Mem")]
        busy = sum(event.time_range.elapsed_us() for event in kernels) / 1e6
        attending = sum(event.time_range.elapsed_us() for event in kernels if event.name in ATTENTION) / 1e6
        return (
            f"| {mains} × {branches} | {length} | {wall * 1e3:.1f} | {len(kernels)} | {busy * 1e3:.1f} "
            f"| {attending * 1e3:.2f} | {1 - busy / wall:.0%} |\n"
        )

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def tokens(count: int) -> list[int]:
    return torch.randint(300, 2000, (count,)).tolist()


def bytes_per_step(model: Any, branches: int, length: int) -> int:
    """Weights, main's keys and values once, and own ones in the middle of the answer."""
    config = model.config
    weights = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if "embed_tokens" not in name)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * size
    return int(weights + per_token * (length + branches * (PROMPT + NEW // 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="a tiny shape, to see that it runs")
    parser.add_argument("--save", action="store_true", help="write a dated file into benchmarks/results")
    args = parser.parse_args()
    bench = Bench(torch.device(args.device))
    shapes, grid = (QUICK_SHAPES, [(128, 1), (128, 8)]) if args.quick else (SHAPES, GRID)
    profiled = [("tiny", (2, 4, 64))] if args.quick else PROFILED
    many_mains = [(1, 4, 64), (4, 1, 64)] if args.quick else MANY
    rate = bench.copy_rate()
    device = torch.cuda.get_device_name() if bench.device.type == "cuda" else "CPU"
    notes = f"{device}; a large copy moves {rate / 1e9:.0f} GB/s, read and written; {describe()}"
    print(notes)
    table = (
        "| shape | main | branches | prefill s | engine ms | copied cache ms | bound ms | engine / bound "
        "| copied / engine |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
    )
    steps = (
        "| mains × branches | main | step ms | kernels | time in kernels ms | of it attention | the device waits |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    many = "| mains × branches | main | step ms |\n|---|---|---|\n"
    for shape, config in shapes.items():
        model = bench.model(config)
        for length, branches in grid:
            bench.engine_steps(model, branches, length)
            prefill, ours = bench.engine_steps(model, branches, length)
            try:
                copied = bench.copied_step(model, branches, length)
            except torch.OutOfMemoryError:
                copied = float("nan")
                torch.cuda.empty_cache()
            bound = bytes_per_step(model, branches, length) / rate
            table += (
                f"| {shape} | {length} | {branches} | {prefill:.2f} | {ours * 1e3:.2f} | {copied * 1e3:.2f} | "
                f"{bound * 1e3:.2f} | {ours / bound:.1f} | {copied / ours:.2f} |\n"
            )
            print(table.splitlines()[-1], flush=True)
        if shape == profiled[0][0]:
            for mains, branches, length in many_mains:
                bench.engine_steps(model, branches, length, mains)
                step = bench.engine_steps(model, branches, length, mains)[1]
                many += f"| {mains} × {branches} | {length} | {step * 1e3:.2f} |\n"
                print(many.splitlines()[-1], flush=True)
        for name, (mains, branches, length) in profiled:
            if name == shape:
                steps += bench.profiled(model, mains, branches, length)
                print(steps.splitlines()[-1], flush=True)
        del model
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    if args.save:
        print(save("gpu", "Decoding branches on a GPU", f"{notes}\n\n{table}\n{many}\n{steps}"))


if __name__ == "__main__":
    main()
