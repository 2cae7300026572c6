"""`parallelmind train`: LoRA, or a small model from scratch, on packed rows."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from parallelmind.cli.args import Parser, documented_default
from parallelmind.cli.train_progress import make_train_progress
from parallelmind.errors import SettingsError
from parallelmind.training.options import TASKS, TrainOptions

EPILOG = """\
Data rows: {"main", "branches": [text or {"prompt", "completion"} or {"messages"}, ...]}, {"text"},
{"prompt", "completion"}, {"messages": [...]} or {"conversations": [...]}. Learned are completions, the
assistant's turns, and texts as a whole.

Any field of transformers' TrainingArguments is a flag too, by its own name: --warmup_steps 10,
--weight_decay 0.01, --lr_scheduler_type cosine, --gradient_checkpointing true, --report_to tensorboard ...

Writes OUT_DIR/lora/NAME_stepN.pth and NAME_final.pth, and beside each the same adapter as a PEFT folder; with
--task lora NAME ends in _hf, and NAME.pth is always the newest adapter.
Interrupted at any moment, the same command continues where it was; its state is in OUT_DIR/checkpoints/NAME.
Where a run with other settings has the name, the new one is called NAME_2, NAME_3 ..., and says so.
"""

_LOGGER = logging.getLogger(__name__)
_NEW_MODEL_FLAGS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings",
)  # fmt: skip
_Add = Callable[..., None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    if isinstance(parser, Parser):
        parser.more_flags = _add_trainer_flags
        parser.meant = {"--lora_path": "--load_lora", "--out_path": "--out_dir"}
    running = _group(parser, "run")
    running(
        "--config",
        Path,
        "YAML file with any of these flags by name; flags on the command line override it",
        metavar="FILE",
    )
    running("--task", str, "what to train", choices=TASKS)
    running("--seed", int, "same seed, same run")
    running("--out_dir", Path, "folder for all output", also="--output_dir", metavar="DIR")
    running("--log_interval", int, "steps between log entries", also="--logging_steps")
    running("--save_interval", int, "steps between checkpoints and saved adapters", also="--save_steps")
    running(
        "--resume_from_checkpoint",
        Path,
        "continue from this checkpoint",
        "the last one of the same run",
        metavar="DIR",
    )
    running("--overwrite", None, "begin a run of this name anew, even if it could be continued")
    running("--use_wandb", None, "report to Weights & Biases; others: --report_to tensorboard, trackio")
    running("--ddp", None, "train in all processes of torchrun, which is done without this flag as well")
    running("--device", str, "such as cuda, cpu", "cuda, or cpu without a GPU")
    running("--dtype", str, "number format to compute in", choices=["float32", "float16", "bfloat16"])
    _add_model(_group(parser, "model"))
    _add_lora(_group(parser, "LoRA"))
    _add_rope(_group(parser, "branches"), parser)
    _add_data(_group(parser, "data"))
    steps = _group(parser, "steps")
    steps("--epochs", int, "passes over the data", also="--num_train_epochs")
    steps("--max_steps", int, "steps, however many passes that takes; -1: as many as --epochs takes")
    steps("--learning_rate", float, "peak of the learning rate")
    steps("--accumulation_steps", int, "batches for one step of a process", also="--gradient_accumulation_steps")
    steps("--grad_clip", float, "largest norm of the gradient; 0 does not clip", also="--max_grad_norm")


def run(args: argparse.Namespace) -> int:
    """Train, and print where the result is; 0 if the run is complete."""
    options = _options(vars(args))
    from parallelmind.training.run import run_training

    report = run_training(options, progress=make_train_progress())
    counts = report.data_counts
    _LOGGER.info(
        "%d records in %d rows: %d branches, %d tokens, %d of them learned",
        counts["records"], counts["rows"], counts["branches"], counts["tokens"], counts["supervised_tokens"],
    )  # fmt: skip
    if counts["cut_branches"] or counts["dropped_branches"] or counts["dropped_records"]:
        _LOGGER.warning(
            "cut: %d branches by %d tokens; dropped: %d branches, %d records (--strict makes this an error)",
            counts["cut_branches"], counts["cut_tokens"], counts["dropped_branches"], counts["dropped_records"],
        )  # fmt: skip
        for note in counts["notes"]:
            _LOGGER.warning("%s", note)
    if counts["unpredicted_tokens"]:
        _LOGGER.info(
            "the first tokens of %d texts are not learned: no prompt is before them, and no main that they see",
            counts["unpredicted_tokens"],
        )
    for name, value in report.evaluation.items():
        _LOGGER.info("%s %.4f", name, value)
    if report.report is not None:  # the first process, which writes
        _LOGGER.info("the report is %s", report.report)
        flag = "--base_model" if options.task == "pretrain" else "--lora_path"
        if report.trained:
            _LOGGER.info("%d steps done; written: %s, to be loaded with %s", report.steps, report.written, flag)
        else:
            _LOGGER.info(
                "%s is complete already: all of its %d steps were done before, and nothing was trained "
                "(--overwrite begins anew). The result is %s, to be loaded with %s",
                report.name, report.steps, report.written, flag,
            )  # fmt: skip
    return 0


def _add_model(add: _Add) -> None:
    add("--base_model", str, "hub name, local folder, or tiny (the bundled model)", metavar="MODEL")
    add("--tokenizer_path", str, "Hub name or folder of the tokenizer", "the base model's", metavar="PATH")
    add("--load_in_4bit", None, "QLoRA: the base model in 4 bits (bitsandbytes)")
    add("--load_in_8bit", None, "the base model in 8 bits (bitsandbytes)")
    add(
        "--model_config",
        Path,
        "pretrain: config.json to make the model from",
        "a small qwen2",
        metavar="FILE",
    )
    add("--model_type", str, "pretrain: family of the new model", "qwen2")
    for name in _NEW_MODEL_FLAGS:
        add(f"--{name}", int, "pretrain: shape of the new model", "the config's")


def _add_lora(add: _Add) -> None:
    add("--lora_rank", int, "rank of the adapter", "8, or that of --load_lora")
    add(
        "--lora_name",
        str,
        "name of the adapter, with which its files begin",
        "hf_parallel_lora; with --task lora MODELTYPE_parallel_lora, such as qwen2_parallel_lora",
        metavar="NAME",
    )
    add("--load_lora", str, "adapter to continue from: a .pth file or a PEFT folder", metavar="PATH")
    add("--lora_alpha", float, "scaling is alpha / rank", "the rank")
    add("--lora_dropout", float, "dropout before the adapter")
    add("--target_modules", str, "layers to adapt, by name or one pattern", "all linear layers", nargs="+")
    add("--use_rslora", None, "rank-stabilised scaling, alpha / sqrt(rank)")
    add(
        "--use_dora",
        None,
        "weight-decomposed LoRA; saved as a PEFT folder alone, since the W + B·A of a .pth cannot express it",
    )
    add(
        "--loraplus_lr_ratio",
        float,
        "LoRA+: the B matrices learn this many times faster",
        "none",
        metavar="X",
    )


def _add_rope(add: _Add, parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--patch_rope", action="store_true", default=argparse.SUPPRESS, help="2D RoPE on (default)")
    group.add_argument(
        "--no_patch_rope",
        action="store_false",
        dest="patch_rope",
        default=argparse.SUPPRESS,
        help="2D RoPE off",
    )
    loaded = ", or that of --load_lora"
    add("--rope_2d_ratio", float, "share of frequency pairs that encode the branch", "0.5" + loaded)
    add("--rope_2d_mode", str, "how they turn", "split" + loaded, choices=["split", "additive"])
    add("--rope_2d_pairs", str, "which pairs", "low" + loaded, choices=["low", "interleaved"])
    add("--stride", int, "branch position = branch id x stride", "128" + loaded, also="--branch_stride")
    add(
        "--visibility",
        str,
        "what a branch sees",
        "isolated" + loaded,
        choices=["isolated", "columnar", "strict"],
    )


def _add_data(add: _Add) -> None:
    add("--data_path", Path, "the records, JSONL", metavar="FILE")
    add("--hf_dataset", str, "a Hugging Face dataset instead, by name or folder", metavar="NAME")
    add("--hf_subset", str, "its subset", "its default", metavar="NAME")
    add("--hf_split", str, "its split", metavar="NAME")
    add("--use_streaming", None, "read while training, with memory for --shuffle_buffer records")
    add(
        "--shuffle",
        _boolean,
        "true: in another order every epoch, rows of similar length together; false: in the order of the data",
        metavar="BOOL",
    )
    add("--shuffle_buffer", int, "streaming: records read (and shuffled) together")
    add("--max_samples", int, "only the first N records", "all")
    add("--eval_data_path", Path, "held-out JSONL file", metavar="FILE")
    add("--eval_ratio", float, "share of the records to hold out instead")
    add("--eval_interval", int, "steps between evaluations", "--save_interval", also="--eval_steps")
    add("--eval_samples", int, "held-out records whose answers are generated and compared")
    add("--max_seq_len", int, "at most this many tokens in a branch")
    add("--branches_per_sample", int, "fixed mode: branches in each row")
    add("--max_branches_per_sample", int, "dynamic mode: at most this many branches in a row; 0 is fixed mode")
    add("--min_branches_per_sample", int, "dynamic mode: at least this many branches in a row, where possible")
    add("--max_total_tokens", int, "at most this many tokens in a row; 0 is no limit")
    add("--batch_size", int, "branches in a batch of one process; a larger row is computed in parts")
    add("--batch_by_samples", None, "--batch_size counts rows instead of branches")
    add("--loss_on_main", _boolean, "true or false: learn main too", "in pretraining only", metavar="BOOL")
    add("--strict", None, "an error if anything would be cut or dropped")


def _group(parser: argparse.ArgumentParser, title: str) -> _Add:
    group = parser.add_argument_group(title)
    defaults = {item.name: item.default for item in dataclasses.fields(TrainOptions)}

    def add(
        flag: str, kind: Callable[[str], Any] | None, text: str, default: str | None = None, *, also: str = "",
        **options: Any,
    ) -> None:  # fmt: skip
        flags = [flag, also] if also else [flag]
        # What is not given is not in the namespace, so that a config file can tell.
        if kind is None:
            group.add_argument(*flags, action="store_true", default=argparse.SUPPRESS, help=text)
            return
        shown = default or defaults.get(flag[2:])
        help_text = text if shown is None else documented_default(text, shown)
        if "metavar" not in options and "choices" not in options:
            options["metavar"] = {int: "N", float: "X"}.get(kind, "NAME")  # type: ignore[call-overload]
        group.add_argument(*flags, type=kind, default=argparse.SUPPRESS, help=help_text, dest=flag[2:], **options)

    return add


def _add_trainer_flags(parser: Parser) -> None:
    """Add the fields of TrainingArguments, with transformers' own types."""
    from transformers import HfArgumentParser, TrainingArguments

    known = parser._option_string_actions
    for action in HfArgumentParser(TrainingArguments)._actions:
        if action.dest != "help" and not any(flag in known for flag in action.option_strings):
            action.default = argparse.SUPPRESS
            action.required = False
            parser._add_action(action)


def _options(given: Mapping[str, Any]) -> TrainOptions:
    """The options of a namespace, over those of its config file."""
    values = dict(given)
    if (config := values.pop("config", None)) is not None:
        values = _read_config(config) | values
    for name in ("debug", "run"):
        values.pop(name, None)
    overrides = {name: values.pop(name) for name in ("model_type", *_NEW_MODEL_FLAGS) if name in values}
    if "target_modules" in values:
        values["target_modules"] = tuple(values["target_modules"])
    own = {item.name for item in dataclasses.fields(TrainOptions)}
    if overrides and values.get("task") != "pretrain":
        raise SettingsError(f"--{next(iter(overrides))} makes a new model; it needs --task pretrain.")
    return TrainOptions(
        **{name: value for name, value in values.items() if name in own},
        model_overrides=overrides,
        hf={name: value for name, value in values.items() if name not in own},
    )


def _read_config(path: Path) -> dict[str, Any]:
    """Parse a YAML file as if its entries were flags. Raises SettingsError."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"--config {path}: not readable as YAML ({error}).") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise SettingsError(f"--config {path}: expected lines such as `learning_rate: 1e-4`, found a {kind}.")
    parser = Parser(prog=f"parallelmind train --config {path}", add_help=False)
    add_arguments(parser)
    _add_trainer_flags(parser)
    known = parser._option_string_actions
    argv: list[str] = []
    for key, value in content.items():
        flag = "--" + str(key).replace("-", "_")
        if flag not in known or flag == "--config":
            close = difflib.get_close_matches(flag, known, n=1)
            hint = f"did you mean {close[0][2:]}?" if close else "entries are flags, without the dashes."
            raise SettingsError(f"--config {path}: unknown entry {key!r}; {hint}")
        if value is None:
            continue
        if known[flag].nargs == 0:
            if not isinstance(value, bool):
                raise SettingsError(f"--config {path}: {key} is {value!r}; it must be true or false.")
            if flag == "--patch_rope" and not value:
                argv.append("--no_patch_rope")
            elif value:
                argv.append(flag)
            continue
        argv.append(flag)
        items = value if isinstance(value, list) else [value]
        argv += [json.dumps(item) if isinstance(item, dict | bool) else str(item) for item in items]
    return vars(parser.parse_args(argv))


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
