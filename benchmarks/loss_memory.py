"""What the loss of a large vocabulary takes: bytes beyond the model, and tokens/s, against PEFT + Trainer and TRL.

    python benchmarks/loss_memory.py --save

All of them train LoRA of the same rank on the same layers of the same random model, on the same sequences, whose tokens
are all learned but for the first two: as branches of one packed row here, as a padded batch with PEFT and transformers'
Trainer, as one packed row with TRL's SFTTrainer. "full logits" is this project with the loss switched to the model's
own logits, as it falls back to. Every measurement is a process of its own, and they take turns. Bytes beyond the model
are the largest resident memory of the process during the timed steps, less what it held when training began; the
kernel's mark of the largest is reset after the steps that warm up. --many tokens are run here alone: what full logits
of them take would not fit (16 bytes for each token and word).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import random
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from machine import describe, save
from training import RANK, Silent, StepTimer, make_tokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM, Trainer, TrainerCallback

VOCABULARY = 151_936
WARM_UP = 1
OURS, FULL, PEFT, TRL = "ours", "full", "peft", "trl"
NAMES = {
    OURS: "ParallelMind",
    FULL: "ParallelMind, full logits",
    PEFT: "PEFT + Trainer",
    TRL: "TRL SFTTrainer, packing",
}


class Memory(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Resident bytes when training began, and the most of the timed steps."""

    def __init__(self) -> None:
        self.before = self.most = 0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.before = _status("VmRSS")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == WARM_UP:
            Path("/proc/self/clear_refs").write_text("5")
        self.most = _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def make_model(args: argparse.Namespace) -> Any:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=args.hidden,
        intermediate_size=4 * args.hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    return Qwen2ForCausalLM(config)


def make_sequences(args: argparse.Namespace, tokens: int) -> list[list[int]]:
    """The last token of each is the end-of-text token. Two come before those that are learned."""
    rng = random.Random(0)
    count = tokens // args.length * (args.steps + WARM_UP)
    return [[rng.randrange(VOCABULARY - 2) for _ in range(args.length + 1)] + [VOCABULARY - 1] for _ in range(count)]


def run_packed(args: argparse.Namespace, tokens: int, folder: Path, full_logits: bool) -> dict[str, Any]:
    from parallelmind.training.loss import ChunkedLoss
    from parallelmind.training.options import TrainOptions
    from parallelmind.training.run import run_training
    from parallelmind.training.trainer import PackedTrainer

    timer, memory = StepTimer(), Memory()
    original = PackedTrainer.__init__

    def watched(self: Any, **parts: Any) -> None:
        original(self, **parts)
        self.add_callback(timer)
        self.add_callback(memory)

    PackedTrainer.__init__ = watched  # type: ignore[method-assign]
    if full_logits:
        ChunkedLoss.of = classmethod(lambda cls, model: None)  # type: ignore[method-assign, assignment]
    make_model(args).save_pretrained(folder / "model")
    make_tokenizer(VOCABULARY).save_pretrained(folder / "tokenizer")

    def words(ids: list[int]) -> str:
        return " ".join(f"w{one}" for one in ids)

    each = tokens // args.length
    sequences = make_sequences(args, tokens)
    rows = [
        {"branches": [{"prompt": words(ids[:2]), "completion": words(ids[2:-1])} for ids in sequences[at : at + each]]}
        for at in range(0, len(sequences), each)
    ]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps({"main": "", **row}) + "\n" for row in rows))
    options = TrainOptions(
        base_model=str(folder / "model"),
        tokenizer_path=str(folder / "tokenizer"),
        data_path=data,
        out_dir=folder / "out",
        branches_per_sample=each,
        batch_size=each,
        shuffle=False,
        dtype="float32",
        device="cpu",
        lora_rank=RANK,
        save_interval=10**6,
        log_interval=10**6,
        max_steps=args.steps + WARM_UP,
    )
    report = run_training(options, progress=Silent())
    assert report.data_counts["supervised_tokens"] == tokens * (args.steps + WARM_UP), report.data_counts
    return result(timer, memory, tokens)


def run_peer(args: argparse.Namespace, tokens: int, folder: Path, trl: bool) -> dict[str, Any]:
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import DataCollatorForSeq2Seq, TrainingArguments

    sequences = make_sequences(args, tokens)
    rows = [{"input_ids": ids, "labels": [-100, -100, *ids[2:]]} for ids in sequences]
    each = tokens // args.length
    timer, memory = StepTimer(), Memory()
    common: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": args.steps + WARM_UP,
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "learning_rate": 1e-4,
        "gradient_checkpointing": False,
    }
    lora = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    tokenizer = make_tokenizer(VOCABULARY)
    trainer: Any
    if trl:
        from trl import SFTConfig, SFTTrainer

        trainer = SFTTrainer(
            model=make_model(args),
            args=SFTConfig(**common, per_device_train_batch_size=1, packing=True, max_length=each * (args.length + 2)),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=lora,
            callbacks=[timer, memory],
        )
    else:
        trainer = Trainer(
            model=get_peft_model(make_model(args), lora),
            args=TrainingArguments(**common, per_device_train_batch_size=each),
            train_dataset=rows,
            data_collator=DataCollatorForSeq2Seq(tokenizer),
            callbacks=[timer, memory],
        )
    learned: list[int] = []
    compute_loss = trainer.compute_loss

    def counted(model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
        learned.append(int((inputs["labels"][:, 1:] != -100).sum()))
        return compute_loss(model, inputs, *more, **named)

    trainer.compute_loss = counted
    trainer.train()
    assert set(learned) == {tokens}, learned
    return result(timer, memory, tokens)


def result(timer: StepTimer, memory: Memory, tokens: int) -> dict[str, Any]:
    seconds = statistics.median(timer.steps[WARM_UP:])
    return {"bytes": memory.most - memory.before, "rate": tokens / seconds}


def measure(kind: str, tokens: int, args: argparse.Namespace) -> dict[str, Any]:
    names = ("hidden", "length", "steps", "threads")
    flags = [part for name in names for part in (f"--{name}", str(getattr(args, name)))]
    done = subprocess.run(
        [sys.executable, __file__, "--only", kind, "--tokens", str(tokens), *flags],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    print(kind, tokens, measured, file=sys.stderr)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--length", type=int, default=256, help="learned tokens of a sequence")
    parser.add_argument("--tokens", type=int, default=1024, help="learned tokens of a step, for all")
    parser.add_argument("--many", type=int, default=8192, help="learned tokens of a step, here alone")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a measurement")
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each, taking turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--save", action="store_true", help="write the table to benchmarks/results")
    parser.add_argument("--only", choices=NAMES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.only:
        run = run_packed if args.only in (OURS, FULL) else run_peer
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(run(args, args.tokens, Path(folder), args.only in (FULL, TRL))))
        return
    has_trl = find_spec("trl") is not None
    kinds = [kind for kind in NAMES if kind != TRL or has_trl]
    cases = [(kind, args.tokens) for kind in kinds]
    cases += [(OURS, args.many)]
    measured: dict[tuple[str, int], list[dict[str, Any]]] = {case: [] for case in cases}
    for number in range(args.rounds):
        for (kind, tokens), results in measured.items():
            if tokens == args.tokens or number == 0:
                results.append(measure(kind, tokens, args))
    lines = [
        f"vocabulary {VOCABULARY:,}, hidden size {args.hidden}, 2 layers, float32, LoRA rank {RANK} on all linear "
        f"layers, sequences of {args.length} learned tokens; median of {args.rounds} x {args.steps} steps, of one for "
        f"{args.many:,} tokens" + (f"; TRL {importlib.metadata.version('trl')}" if has_trl else ""),
        "",
        "| | learned tokens of a step | beyond the model, GiB | times ours | learned tokens/s | ours is faster by |",
        "|---|---|---|---|---|---|",
    ]
    median = {
        case: {name: statistics.median(one[name] for one in results) for name in ("bytes", "rate")}
        for case, results in measured.items()
    }
    for (kind, tokens), values in median.items():
        ours = median[OURS, tokens]
        lines.append(
            f"| {NAMES[kind]} | {tokens:,} | {values['bytes'] / 2**30:.2f} | {values['bytes'] / ours['bytes']:.2f} "
            f"| {values['rate']:.0f} | {ours['rate'] / values['rate']:.2f} |"
        )
    table = "\n".join(lines)
    print(describe(), table, sep="\n\n")
    if args.save:
        print(save("loss", "The loss of a large vocabulary: memory and speed", table))


if __name__ == "__main__":
    main()
