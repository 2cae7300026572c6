"""docs/errors.md from the source: `python -m tests.docs.errors` writes it."""

from __future__ import annotations

import inspect
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from parallelmind import errors
from tests.docs.messages import Template, templates

PATH = Path(__file__).parents[2] / "docs" / "errors.md"


class Section(NamedTuple):
    """What a reader was doing, and the modules that raise errors then, each by the beginning of its path."""

    title: str
    text: str
    modules: tuple[str, ...]


SECTIONS = [
    Section("Flags and the command line", "", ("cli/", "settings", "doctor/", "demos/")),
    Section(
        "Files and records",
        "In a job the error of a record stands in its own output row, and the job goes on. The message "
        "begins with the file and the line.",
        ("io/",),
    ),
    Section(
        "Conversion of training data",
        "Rows that cannot be converted are reported with file and line, and left out; `--strict` makes "
        "the first one an error.",
        ("data/convert", "data/grouping", "data/sft_", "cli/convert"),
    ),
    Section("Loading a model", "", ("models/",)),
    Section("Positions and 2D RoPE", "", ("columnar/",)),
    Section("Adapters", "", ("models/adapter", "models/lora", "models/sidecar", "models/merge")),
    Section("Training data", "", ("data/",)),
    Section("Training runs", "", ("training/", "cli/train")),
    Section("Jobs, workers, torchrun and Ray", "", ("jobs/", "tasks/", "cli/job")),
    Section(
        "Engine, chat and generate",
        "A branch that cannot run has its error in its own place; the others go on.",
        ("engine/", "prompts/", "chat.py", "cli/chat", "cli/generate"),
    ),
    Section("Batch inference", "", ("tasks/batch", "cli/batch")),
    Section("Corpus", "", ("retrieval/corpus/", "cli/corpus")),
    Section(
        "Contexts and questions",
        "A question that is wrong, or that the corpus cannot serve, gets a row with "
        '`"success": false`; the job goes on.',
        ("retrieval/", "tasks/context", "cli/contexts", "cli/evaluate"),
    ),
    Section(
        "Answering",
        "Failures of a server are tried again where that can help (timeouts, 408, 409, 425, 429, 5xx). What remains is "
        "an error row, which the next run tries again.",
        ("answering/", "tasks/answer", "cli/answer"),
    ),
    Section("OpenAI batch files", "", ("answering/openai_b",)),
    Section(
        "Service",
        'The body of an answer with an error is `{"error": {"message", "type", "param", "code"}}`. A field that is out '
        "of range is named first: `temperature: Input should be …`.",
        ("server/", "cli/serve"),
    ),
    Section("Pictures", "", ("visuals/", "cli/show")),
]

_HEAD = """\
# Errors

Every error message of the program, grouped by what you were doing. Find yours by searching this page for words of it
that are not yours: names, numbers and paths are shown as `…`. A message names the file, line, field or flag, the value
found, and what to do. What needs more words than a message has is in [troubleshooting.md](troubleshooting.md). This
page is written from the source by `python -m tests.docs.errors`; a test compares the two.

Each message is shown with the module that raises it and with what it becomes:

- **An exception.** In Python all of them are `ParallelMindError`, which `parallelmind` exports. A command prints the
  message and ends with exit code 1; `--debug` adds the traceback.
- **row**: the error of one record, branch or request. It stands in the output in the place of the answer and does not
  stop a job.
- **usage**: wrong usage of a command, exit code 2. Messages that begin with `argument` or `the following arguments are
  required` are those of Python's argparse.
- **HTTP** with the status that the service answers.

The other exit codes are 0 for success, 130 for an interrupt and 143 for SIGTERM.

```text
"""


def render(found: list[Template]) -> str:
    """The page."""
    tree = inspect.cleandoc(errors.__doc__ or "").split("\n\n")[1]
    lines = [_HEAD + inspect.cleandoc(tree), "```", ""]
    by_section: dict[str, list[Template]] = {section.title: [] for section in SECTIONS}
    for template in found:
        by_section[section_of(template.module)].append(template)
    lines += [f"- [{title}](#{_anchor(title)})" for title, raised in by_section.items() if raised]
    for section in SECTIONS:
        if raised := by_section[section.title]:
            lines += ["", f"## {section.title}", "", *([section.text, ""] if section.text else [])]
            lines += ["| message | becomes | raised in |", "|---|---|---|"]
            in_order = sorted(raised, key=lambda template: (template.module, template.text))
            for (module, text), same in groupby(in_order, key=lambda template: (template.module, template.text)):
                kinds = ", ".join(dict.fromkeys(template.kind for template in same))
                lines.append(f"| {_code(text)} | {kinds} | {module} |")
    return "\n".join(lines) + "\n"


def section_of(module: str) -> str:
    """The title of the section for a module: that with the longest beginning of its path."""
    fitting = [
        (len(start), section.title) for section in SECTIONS for start in section.modules if module.startswith(start)
    ]
    assert fitting, f"{module} raises errors, and no section of tests/docs/errors.py is for it"
    return max(fitting)[1]


def _code(text: str) -> str:
    escaped = text.replace("|", "\\|")
    return f"`` {escaped} ``" if "`" in text else f"`{escaped}`"


def _anchor(title: str) -> str:
    return title.lower().replace(",", "").replace(" ", "-")


if __name__ == "__main__":
    PATH.write_text(render(templates()), encoding="utf-8")
