"""All commands, in groups by what a person wants to do, each with one line of help and an example.

Kept apart from the commands themselves, whose modules take long to import, so that `parallelmind --help` is quick.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A subcommand, implemented by `parallelmind.cli.<name>` with `add_arguments(parser)` and `run(args)`."""

    help: str
    example: str
    """The flags of a typical use."""


GROUPS: dict[str, dict[str, Command]] = {
    "See it work, with the bundled model": {
        "demo": Command("answer 256 questions about 32 texts in parallel, and compare with one by one", ""),
        "demo-train": Command("train adapters for 2D RoPE and for cooperating branches, in a few minutes", ""),
        "demo-rag": Command("answer questions from the documentation of two versions of a package", ""),
    },
    "Ask a model": {
        "batch": Command(
            "answer the records of a JSONL file",
            "--base_model tiny --data_path records.jsonl --out_path answers.jsonl --temperature 0",
        ),
        "generate": Command(
            "complete a prompt, or several branches under it",
            '--base_model tiny --temperature 0 --prompt_file story.txt --branch "How old is Dan?"',
        ),
        "chat": Command(
            "talk with a model, and ask it several questions at once", "--base_model Qwen/Qwen2.5-0.5B-Instruct"
        ),
        "serve": Command("serve a model: OpenAI's API, parallel branches, and a web page", "--base_model tiny"),
    },
    "Train an adapter": {
        "convert": Command("turn fine-tuning data into records", "--input sft_data.jsonl --output train.jsonl"),
        "show": Command(
            "draw a record as one packed row: its tokens, their positions, and who sees whom",
            "train.jsonl --index 0 --png row.png",
        ),
        "train": Command(
            "train a LoRA adapter, or a small model from scratch, on packed branches",
            "--base_model Qwen/Qwen2.5-0.5B --data_path train.jsonl --lora_name mine",
        ),
        "merge": Command(
            "merge an adapter into its base model",
            "--base_model Qwen/Qwen2.5-0.5B --lora_path out/lora/mine_final.pth --output_dir merged",
        ),
    },
    "Answer from the documentation of exact package versions": {
        "corpus": Command(
            "build the documentation of package versions, and look into it",
            "build numpy==1.26.4 --corpus_path corpora",
        ),
        "contexts": Command(
            "find the documentation that each query asks about",
            "--queries_file queries.json --corpus_path corpora --output_file contexts.jsonl",
        ),
        "answer": Command(
            "answer questions over the contexts that were found",
            "--contexts_file contexts.jsonl --output_file answers.jsonl --model_path Qwen/Qwen2.5-0.5B-Instruct",
        ),
        "pipeline": Command(
            "go from queries to contexts to answers in one command",
            "--queries_file queries.json --corpus_path corpora --output_dir out --model_path "
            "Qwen/Qwen2.5-0.5B-Instruct",
        ),
        "evaluate": Command("measure retrieval on labelled queries", "--queries labelled.jsonl --corpus_path corpora"),
        "check-code": Command(
            "find what code uses that its packages' versions do not have or do not take so",
            "src --requirements uv.lock --corpus_path corpora",
        ),
        "docs-server": Command(
            "serve the documentation of a project's versions to coding agents (MCP)",
            "--requirements uv.lock --corpus_path corpora",
        ),
        "batch-import": Command(
            "turn an OpenAI batch file into contexts", "requests.jsonl contexts.jsonl --target engine"
        ),
        "batch-export": Command("turn answers into an OpenAI batch output file", "answers.jsonl output.jsonl"),
    },
    "Find out what is wrong": {
        "job": Command(
            "show a job, running or not: settings, progress, workers, failures, records under suspicion",
            "answers.jsonl",
        ),
        "doctor": Command("check this installation, and name the remedy of what fails", ""),
        "check-pos2d": Command(
            "show and check how the positions (branch, time) flow through a model", "--base_model tiny"
        ),
        "check-workers": Command(
            "show and check how records and GPUs are divided among workers",
            "--num_samples 11 --num_workers 4 --total_gpus 8 --skip_inference",
        ),
    },
}

COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def overview() -> str:
    """The text of `parallelmind --help`."""
    lines = [
        "Parallel branches for Hugging Face causal language models: one shared text, many answers decoded at once."
    ]
    for title, group in GROUPS.items():
        lines += ["", f"{title}:"]
        for name, command in group.items():
            lines += [f"  {name:<14} {command.help}", f"  {'':<14} $ {_typed(name, command)}"]
    return "\n".join(lines)


def prepare_parser(parser: argparse.ArgumentParser, name: str) -> Callable[[argparse.Namespace], int]:
    """Give a parser the flags and the texts of a command, whose module is imported; returns what runs it."""
    module = importlib.import_module(f"parallelmind.cli.{name.replace('-', '_')}")
    parser.description = COMMANDS[name].help
    module.add_arguments(parser)
    example = f"Example:\n  {_typed(name, COMMANDS[name])}\n"
    parser.epilog = f"{parser.epilog}\n{example}" if parser.epilog else example
    run: Callable[[argparse.Namespace], int] = module.run
    return run


def _typed(name: str, command: Command) -> str:
    return f"parallelmind {name} {command.example}".rstrip()
