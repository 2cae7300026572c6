"""LoRA training on packed rows against PEFT + Trainer on the unpacked sequences, in the same run.

    python benchmarks/training.py --save

The peer is what one would write without this project: PEFT's LoRA on the same layers with the same rank, transformers'
Trainer, DataCollatorForSeq2Seq with dynamic padding, every branch a sequence of its own with main in front of it.
Both compute the loss on the same tokens in every step (the answers of all branches of the same records), from the same
data, model and seed. Every measurement is a process of its own, and the two take turns, so that both meet the same
machine.
float32 is the default: on a CPU without bfloat16 instructions bfloat16 is many times slower, for both.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import describe, save
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Trainer, TrainerCallback

VOCABULARY = 32000
SHAPES = {
    "25m": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6},
    "100m": {"hidden_size": 640, "intermediate_size": 2560, "num_hidden_layers": 10, "num_attention_heads": 10},
}
WARM_UP = 2
RANK = 8


class StepTimer(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Seconds of each step, from end to end, and of waiting for its batch."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.batches: list[float] = []
        self._last = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = time.perf_counter()
        self.steps.append(now - self._last)
        self._last = now

    def watch(self, trainer: Any) -> None:
        """Time how long the trainer waits for the data, tokenising and collating included."""
        original = trainer.get_batch_samples

        def timed(*arguments: Any) -> Any:
            began = time.perf_counter()
            batch = original(*arguments)
            self.batches.append(time.perf_counter() - began)
            return batch

        trainer.get_batch_samples = timed


def make_model(shape: str, dtype: str) -> Any:
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=VOCABULARY, num_key_value_heads=2, max_position_embeddings=8192, **SHAPES[shape])
    return Qwen2ForCausalLM(config).to(getattr(torch, dtype))


def make_tokenizer(vocabulary: int = VOCABULARY) -> Any:
    """One token a word, w0, w1 and so on."""
    words = {f"w{number}": number for number in range(vocabulary - 2)}
    special = {"<pad>": vocabulary - 2, "<eos>": vocabulary - 1}
    backend = Tokenizer(models.WordLevel(words | special, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def make_records(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Branches vary in length by a quarter; a third of each is its prompt."""
    rng = random.Random(0)

    def text(tokens: int) -> str:
        return " ".join(f"w{rng.randrange(VOCABULARY - 2)}" for _ in range(tokens))

    records = []
    for _ in range(args.steps + WARM_UP):
        branches = []
        for _ in range(args.branches):
            tokens = rng.randint(args.tokens * 3 // 4, args.tokens * 5 // 4) - 1
            branches.append({"prompt": text(tokens // 3), "completion": text(tokens - tokens // 3)})
        records.append({"main": text(args.main), "branches": branches})
    return records


def run_packed(args: argparse.Namespace, records: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    from parallelmind.training.options import TrainOptions
    from parallelmind.training.run import run_training
    from parallelmind.training.trainer import PackedTrainer

    timer = StepTimer()
    original = PackedTrainer.__init__

    def with_timer(self: Any, **parts: Any) -> None:
        original(self, **parts)
        self.add_callback(timer)
        timer.watch(self)

    PackedTrainer.__init__ = with_timer  # type: ignore[method-assign]
    make_model(args.shape, args.dtype).save_pretrained(folder / "model")
    # Apart: beside a model of a known family it would be loaded as that family's kind of tokenizer.
    make_tokenizer().save_pretrained(folder / "tokenizer")
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    options = TrainOptions(
        base_model=str(folder / "model"),
        tokenizer_path=str(folder / "tokenizer"),
        data_path=data,
        out_dir=folder / "out",
        branches_per_sample=args.branches,
        batch_size=args.branches,
        dtype=args.dtype,
        device="cpu",
        lora_rank=RANK,
        save_interval=10**6,
        log_interval=10**6,
        max_steps=args.steps + WARM_UP,
        # Tokenised while training, so that it counts as part of waiting for the data.
        use_streaming=True,
        shuffle_buffer=4,
    )
    report = run_training(options, progress=Silent())
    return result(timer, report.data_counts["supervised_tokens"] / (args.steps + WARM_UP))


def run_unpacked(args: argparse.Namespace, records: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    from peft import LoraConfig, get_peft_model
    from transformers import DataCollatorForSeq2Seq, TrainingArguments

    tokenizer = make_tokenizer()
    model = get_peft_model(
        make_model(args.shape, args.dtype), LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear")
    )
    rows, supervised = [], 0
    for record in records:
        main = tokenizer(record["main"])["input_ids"]
        for branch in record["branches"]:
            prompt = main + tokenizer(branch["prompt"])["input_ids"]
            answer = [*tokenizer(branch["completion"])["input_ids"], tokenizer.eos_token_id]
            rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
            supervised += len(answer)
    timer = StepTimer()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=args.branches,
            max_steps=args.steps + WARM_UP,
            bf16=args.dtype == "bfloat16",
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            learning_rate=1e-4,
        ),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[timer],
    )
    timer.watch(trainer)
    trainer.train()
    return result(timer, supervised / (args.steps + WARM_UP))


class Silent:
    """No progress display."""

    def start(self, *, total: int | None, done: int) -> None: ...

    def step(self, done: int) -> None: ...

    def log(self, entry: dict[str, Any]) -> None: ...

    def stop(self) -> None: ...


def result(timer: StepTimer, supervised_of_a_step: float) -> dict[str, Any]:
    steps, batches = timer.steps[WARM_UP:], timer.batches[WARM_UP:]
    return {
        "supervised": supervised_of_a_step,
        "seconds": statistics.median(steps),
        "waiting": sum(batches) / sum(steps),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measure(kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """One process: a peak of memory can only be read for a whole process."""
    names = ("shape", "dtype", "main", "branches", "tokens", "steps", "threads")
    flags = [part for name in names for part in (f"--{name}", str(getattr(args, name)))]
    done = subprocess.run(
        [sys.executable, __file__, "--only", kind, *flags], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="25m")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--main", type=int, default=512, help="tokens of main")
    parser.add_argument("--branches", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a branch, on average")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of a measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each, taking turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--save", action="store_true", help="write the table to benchmarks/results")
    parser.add_argument("--only", choices=["packed", "unpacked"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.only:
        run = {"packed": run_packed, "unpacked": run_unpacked}[args.only]
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(run(args, make_records(args), Path(folder))))
        return
    measured: dict[str, list[dict[str, Any]]] = {"packed": [], "unpacked": []}
    for _ in range(args.rounds):
        for kind, results in measured.items():
            results.append(measure(kind, args))
    median = {
        kind: {name: statistics.median(one[name] for one in results) for name in results[0]}
        for kind, results in measured.items()
    }
    packed, unpacked = median["packed"], median["unpacked"]
    lines = [
        f"main {args.main} tokens, {args.branches} branches of about {args.tokens}; model {args.shape}, {args.dtype}, "
        f"LoRA rank {RANK} on all linear layers; median of {args.rounds} x {args.steps} steps",
        "",
        "| | supervised tokens/s | s/step | peak memory, MB | waiting for data |",
        "|---|---|---|---|---|",
    ]
    for name, values in (("packed rows (ParallelMind)", packed), ("unpacked (PEFT + Trainer)", unpacked)):
        rate = values["supervised"] / values["seconds"]
        lines.append(
            f"| {name} | {rate:.0f} | {values['seconds']:.2f} | {values['peak_mb']:.0f} | {values['waiting']:.2%} |"
        )
    speed = packed["supervised"] / packed["seconds"] / (unpacked["supervised"] / unpacked["seconds"])
    lines += ["", f"Speed: {speed:.2f} times; peak memory: {packed['peak_mb'] / unpacked['peak_mb']:.2f} times."]
    table = "\n".join(lines)
    print(describe(), table, sep="\n\n")
    if args.save:
        print(save("training", "LoRA training: packed rows against unpacked sequences", table))


if __name__ == "__main__":
    main()
