"""Write all that the training of the tiny model needs: tokenizer, records, config.json and two YAML files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from examples.tiny_model.data import Record, answer_text, stories
from examples.tiny_model.train_tokenizer import train

HELD_OUT_SEED = 1_000_000
HELD_OUT_STORIES = 100
BARE_SHARE, MIXED_SHARE, DECAY_SHARE = 1500 / 4200, 500 / 4200, 0.4
ALL_WORDINGS = 9
WIDTH, LAYERS, HEAD = 128, 3, 64


def wordings_of_steps(steps: int) -> list[int]:
    """How many wordings of a fact each step draws from.

    The first share has names and values only (0), the next takes turns between those, the plainest wordings and all
    wordings, and the rest is all wordings.
    """
    bare, mixed = round(steps * BARE_SHARE), round(steps * MIXED_SHARE)
    turns = [(0, 1, ALL_WORDINGS, 1, ALL_WORDINGS)[step % 5] for step in range(bare, bare + mixed)]
    return [0] * bare + turns + [ALL_WORDINGS] * (steps - bare - mixed)


def stories_of_steps(seed: int, wordings: Iterable[int], questions: int) -> Iterator[Record]:
    """The stories of each step, which all have the same number of facts."""
    for step, number in enumerate(wordings):
        facts = 4 + (step * 5 + seed) % 9
        again = 0.0 if number < 2 else 0.3
        count = max(1, questions // facts)
        yield from stories(seed * 10_000_000 + step, count, facts, again=again, wordings=number)


def training_record(record: Record) -> dict[str, Any]:
    """A story as a row of training data: the answers are supervised."""
    pairs = zip(record["branches"], record["answers"], strict=True)
    return {
        "main": record["main"],
        "branches": [{"prompt": branch, "completion": answer_text(branch, answer)} for branch, answer in pairs],
    }


def write_records(path: Path, records: Iterable[Record]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(training_record(record), ensure_ascii=False) + "\n")


def model_config() -> dict[str, Any]:
    """The wide initialisation and the untied embeddings are what makes look-up learnable."""
    return {
        "model_type": "qwen2",
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": WIDTH // HEAD,
        "num_key_value_heads": WIDTH // HEAD,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "initializer_range": WIDTH**-0.5,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
    }


def training_flags(folder: Path, *, name: str, steps: int, questions: int, seed: int) -> dict[str, Any]:
    """The flags of `trainer/train_pretrain.py` that both trainings share."""
    return {
        "lora_name": name,
        "data_path": str(folder / f"{name}.jsonl"),
        "eval_data_path": str(folder / "held_out.jsonl"),
        "out_dir": str(folder),
        "dtype": "float32",
        "device": "cpu",
        "seed": seed,
        # The records come in their order, a step is all the stories that have room in it.
        "use_streaming": True,
        "shuffle": False,
        "branches_per_sample": 12,
        "batch_size": questions,
        "loss_on_main": False,
        # Ordinary positions, so that the model works in any program; who sees whom is the same.
        "patch_rope": False,
        "visibility": "isolated",
        "max_steps": steps,
        "adam_beta2": 0.98,
        "weight_decay": 0.1,
        "warmup_steps": 100,
        "lr_scheduler_type": "warmup_stable_decay",
        "save_interval": 250,
    }


def write_training(folder: Path, *, name: str, wordings: list[int], questions: int, seed: int, **flags: Any) -> None:
    """The records of a training and its YAML file."""
    write_records(folder / f"{name}.jsonl", stories_of_steps(seed, wordings, questions))
    common = training_flags(folder, name=name, steps=len(wordings), questions=questions, seed=seed)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(common | flags, sort_keys=False), encoding="utf-8")
    print(f"python trainer/train_pretrain.py --config {folder}/{name}.yaml")


def main() -> None:
    """Write the folder and say how to go on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out_dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4200, help="of the first training")
    parser.add_argument("--questions", type=int, default=256, help="questions a step of it")
    parser.add_argument("--more_steps", type=int, default=2500, help="of the second training")
    parser.add_argument("--vocab_size", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder: Path = args.out_dir
    folder.mkdir(parents=True, exist_ok=True)
    train(args.vocab_size, args.seed).save_pretrained(folder / "tokenizer")
    (folder / "config.json").write_text(json.dumps(model_config(), indent=2) + "\n", encoding="utf-8")
    write_records(folder / "held_out.jsonl", stories(HELD_OUT_SEED, HELD_OUT_STORIES))
    write_training(
        folder,
        name="first",
        wordings=wordings_of_steps(args.steps),
        questions=args.questions,
        seed=args.seed,
        tokenizer_path=str(folder / "tokenizer"),
        model_config=str(folder / "config.json"),
        learning_rate=2e-3,
        lr_scheduler_kwargs={"num_decay_steps": round(args.steps * DECAY_SHARE), "decay_type": "linear"},
    )
    write_training(
        folder,
        name="tiny",
        wordings=[ALL_WORDINGS] * args.more_steps,
        questions=max(12, args.questions // 4),
        seed=args.seed + 1,
        base_model=str(folder / "pretrain" / "first_final"),
        learning_rate=2e-3,
        lr_scheduler_kwargs={"num_decay_steps": round(args.more_steps * DECAY_SHARE), "decay_type": "linear"},
    )


if __name__ == "__main__":
    main()
