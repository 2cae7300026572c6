"""docs/cli.md from the parsers of all commands: `python -m tests.docs.help_pages` writes it.

Rendered here rather than by `--help`, whose layout differs between versions of Python and widths of terminals.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from parallelmind.cli.args import Parser
from parallelmind.cli.commands import COMMANDS, GROUPS, prepare_parser
from parallelmind.training.arguments import FIXED, RENAMED

PATH = Path(__file__).parents[2] / "docs" / "cli.md"
SCRIPTS = {
    "batch": "scripts/parallel_inference_hf_lora.py",
    "chat": "scripts/inference_hf_lora.py --mode chat",
    "generate": "scripts/inference_hf_lora.py --mode generate",
    "convert": "scripts/convert_sft_to_pretrain.py",
    "train": "trainer/train_hf_parallel_lora.py",
    "answer": "utils/RAGutils/queryResultByInfer/multi_worker_inference.py",
    "contexts": "utils/RAGutils/queryResultByInfer/batch_context_generator.py",
    "check-workers": "utils/RAGutils/queryResultByInfer/test_multi_worker_inference.py",
    "doctor": "scripts/validate_inference_setup.py",
    "check-pos2d": "scripts/test_pos2d_handling.py",
}
"""The entry script of a checkout that is the same as a command."""

_HEAD = """\
# Commands

All commands and their flags, as `parallelmind COMMAND --help` shows them. This page is written by
`python -m tests.docs.help_pages`; a test compares the two.

Flags may be spelled with hyphens as well (`--max-new-tokens`). Every command also takes `--help`, and `--debug` for
more log lines and the tracebacks of errors. Exit codes: 0 success, 1 an error, 2 wrong usage, 130 interrupted,
143 terminated. In a checkout, scripts are the same as some of the commands.
"""
_FURTHER = """\
**Fields of transformers' TrainingArguments.** Each is a flag too, by its own name and with the values that transformers
documents: <https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments>, or for the
version installed:

```sh
python -c "import transformers; help(transformers.TrainingArguments)"
```

Some have another name here and are spelled either way, and some cannot be chosen freely:
"""


def render() -> str:
    """The page."""
    parsers = {name: parser_of(name) for name in COMMANDS}
    lines = [_HEAD, "| command | | script |", "|---|---|---|"]
    for title, group in GROUPS.items():
        lines.append(f"| **{title}** | | |")
        for name, command in group.items():
            script = f"`{SCRIPTS[name]}`" if name in SCRIPTS else ""
            lines.append(f"| [{name}](#parallelmind-{name}) | {_cell(command.help)} | {script} |")
    for parser in parsers.values():
        lines += ["", *_command(parser, "##")]
    return re.sub("\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def parser_of(name: str) -> Parser:
    """The parser of one command."""
    parser = Parser(prog=f"parallelmind {name}")
    prepare_parser(parser, name)
    return parser


def _command(parser: argparse.ArgumentParser, heading: str) -> Iterator[str]:
    yield from (f"{heading} {parser.prog}", "", _sentence(parser.description or ""), "")
    yield from ("```text", " ".join([parser.prog, *_needed(parser)]), "```", "")
    below: list[argparse.ArgumentParser] = []
    for group in parser._action_groups:
        rows = []
        for action in group._group_actions:
            if isinstance(action, argparse._SubParsersAction):
                for choice in action._choices_actions:
                    below.append(action.choices[choice.dest])
                    below[-1].description = below[-1].description or choice.help
            elif action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction):
                text = (action.help or "") % {**vars(action), "prog": parser.prog}
                rows.append(f"| {_names(action)} | {_cell(text)} |")
        if rows:
            yield from (f"| {group.title} | |", "|---|---|", *rows, "")
    if parser.epilog:
        yield from ("```text", parser.epilog.strip(), "```", "")
    if isinstance(parser, Parser) and parser.more_flags is not None:
        yield from (_FURTHER, "| field | |", "|---|---|")
        yield from (f"| `--{name}` | the same as `--{own}` |" for name, own in RENAMED.items())
        yield from (f"| `--{name}` | {_cell(instead)} |" for name, instead in FIXED.items())
        yield ""
    for sub in below:
        yield from _command(sub, heading + "#")


def _needed(parser: argparse.ArgumentParser) -> Iterator[str]:
    """What a command cannot do without."""
    optional = False
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield "COMMAND"
        elif not action.option_strings:
            more = " ..." if action.nargs in ("+", "*") else ""
            name = f"{action.metavar or action.dest}{more}"
            yield f"[{name}]" if action.nargs in ("?", "*") else name
        elif action.required:
            yield f"{action.option_strings[0]} {_value(action)}".strip()
        else:
            optional = optional or not (isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS)
    if optional:
        yield "[FLAGS]"


def _names(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    first, *others = (name for name in action.option_strings if name.startswith("-"))
    shown = f"`{f'{first} {_value(action)}'.strip()}`"
    return shown + "".join(f", `{name}`" for name in others) + (" (required)" if action.required else "")


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    choices = f"{{{','.join(map(str, action.choices))}}}" if action.choices else None
    value = str(action.metavar or choices or action.dest.upper())
    return f"{value} [{value} ...]" if action.nargs == "+" else value


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
