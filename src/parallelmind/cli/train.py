"""`parallelmind train`: LoRA, or a small model from scratch, on packed rows."""

from __future__ import annotations

import argparse
import difflib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from parallelmind.cli.args import Parser
from parallelmind.cli.flags import add_settings, given
from parallelmind.cli.train_progress import make_train_progress
from parallelmind.errors import SettingsError
from parallelmind.training.new_model_options import NewModelOptions
from parallelmind.training.options import TrainOptions

if TYPE_CHECKING:
    from parallelmind.training.run import TrainReport

EPILOG = """\
Data rows: {"main", "branches": [text or {"prompt", "completion"} or {"messages"}, ...]}, {"text"},
{"prompt", "completion"}, {"messages": [...]} or {"conversations": [...]}. The loss is computed
on completions, on the assistant's turns, and on the whole of a text.

Any field of transformers' TrainingArguments is a flag too, by its own name: --warmup_steps 10,
--weight_decay 0.01, --lr_scheduler_type cosine, --gradient_checkpointing true, --report_to tensorboard ...

Writes OUT_DIR/lora/NAME_stepN.pth and NAME_final.pth, and beside each the same adapter as a PEFT folder; with
--task lora NAME ends in _hf, and NAME.pth is always the newest adapter.
Interrupted at any moment, the same command continues where it was; its state is in OUT_DIR/checkpoints/NAME.
Where a run with other settings has the name, the new one is called NAME_2, NAME_3 ..., and says so.
"""

_LOGGER = logging.getLogger(__name__)
_NOT_LEARNED = {
    "unlearned_turns": "turns of the assistant are not learned: their weight is 0",
    "unanswered_turns": "turns are left out: no turn that is learned follows them",
    "unwritten_turns": "turns of the assistant are not learned: the chat template does not write them, or not their "
    "calls",
    "shortened_turns": "turns of the assistant are learned without thoughts, or words beside a call: the chat template "
    "leaves them out",
    "unwritten_tools": "tools are unknown to the model: the chat template does not write them",
}
"""What counts of the data say besides what is cut."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    if isinstance(parser, Parser):
        parser.more_flags = _add_trainer_flags
        parser.meant = {"--lora_path": "--load_lora", "--out_path": "--out_dir"}
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="YAML file with any of these flags by name; flags on the command line override it",
    )
    add_settings(parser, TrainOptions, NewModelOptions)


def run(args: argparse.Namespace) -> int:
    """Train, and print where the result is; 0 if the run is complete."""
    options = _options(args)
    from parallelmind.training.run import run_training

    report = run_training(options, progress=make_train_progress())
    if report.report is not None:  # the first process, which speaks for all
        _say(report, options)
    return 0


def _say(report: TrainReport, options: TrainOptions) -> None:
    """What was done, and where the result is."""
    counts = report.data_counts
    _LOGGER.info(
        "%d records in %d rows: %d branches, %d tokens, %d of them supervised",
        counts["records"], counts["rows"], counts["branches"], counts["tokens"], counts["supervised_tokens"],
    )  # fmt: skip
    if computed := counts["batch_tokens"] + counts["padding_tokens"]:
        _LOGGER.info(
            "%d batches of %d tokens on average, %.1f%% of them padding",
            counts["batches"], computed / counts["batches"], 100 * counts["padding_tokens"] / computed,
        )  # fmt: skip
    if counts["cut_branches"] or counts["dropped_branches"] or counts["dropped_records"]:
        _LOGGER.warning(
            "cut: %d branches by %d tokens; dropped: %d branches, %d records (--strict makes this an error)",
            counts["cut_branches"], counts["cut_tokens"], counts["dropped_branches"], counts["dropped_records"],
        )  # fmt: skip
    for name, what in _NOT_LEARNED.items():
        if counts[name]:
            _LOGGER.warning("%d %s", counts[name], what)
    for note in counts["notes"]:
        _LOGGER.warning("%s", note)
    if counts["unpredicted_tokens"]:
        _LOGGER.info(
            "the first tokens of %d texts are not supervised: no prompt is before them, and no main that they see",
            counts["unpredicted_tokens"],
        )
    for name, value in report.evaluation.items():
        _LOGGER.info("%s %.4f", name, value)
    if report.stopped_early is not None:
        _LOGGER.info(
            "ended early after step %d: the last %d evaluations were no better (--early_stopping_patience)",
            report.stopped_early, options.early_stopping_patience,
        )  # fmt: skip
    if report.best is not None:
        which = f"was best; what was written is of step {report.steps} (--load_best_model_at_end true keeps the best)"
        if report.best.kept:
            which = "is what was written"
        _LOGGER.info("%s %s", report.best, which)
    if report.pushed is not None:
        _LOGGER.info("pushed to %s", report.pushed)
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


def _add_trainer_flags(parser: Parser) -> None:
    """Add the fields of TrainingArguments, with transformers' own types."""
    from transformers import HfArgumentParser, TrainingArguments

    known = parser._option_string_actions
    for action in HfArgumentParser(TrainingArguments)._actions:
        if action.dest != "help" and not any(flag in known for flag in action.option_strings):
            action.default = argparse.SUPPRESS
            action.required = False
            parser._add_action(action)


def _options(args: argparse.Namespace) -> TrainOptions:
    """The options of a namespace, over those of its config file."""
    if hasattr(args, "config"):
        args = argparse.Namespace(**vars(_read_config(args.config)) | vars(args))
    own = given(args, TrainOptions)
    overrides = given(args, NewModelOptions)
    if overrides and own.get("task") != "pretrain":
        raise SettingsError(f"--{next(iter(overrides))} makes a new model; it needs --task pretrain.")
    NewModelOptions(**overrides)  # checks them
    known = {*own, *overrides, "config", "debug", "run"}
    return TrainOptions(
        **own,
        model_overrides=overrides,
        hf={name: value for name, value in vars(args).items() if name not in known},
    )


def _read_config(path: Path) -> argparse.Namespace:
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
        several = known[flag].nargs in ("+", "*")
        if isinstance(value, list) and not several:
            raise SettingsError(f"--config {path}: {key} is {value!r}; it takes one value, not a list.")
        items = [json.dumps(item) if isinstance(item, dict | bool) else str(item) for item in _listed(value)]
        if several:
            argv += [flag, *items] if items else []
        else:
            argv.append(f"{flag}={items[0]}")  # which may begin with a dash
    return parser.parse_args(argv)


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]
