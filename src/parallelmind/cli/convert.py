"""`parallelmind convert`: fine-tuning data of the usual forms into records."""

from __future__ import annotations

import argparse
import json
import logging
import time

from parallelmind.cli.flags import add_settings, given
from parallelmind.data.convert import ConvertOptions, ConvertReport, convert

EPILOG = """\
What is read (each row by its own fields, unless --format says otherwise):
  conversations  {"conversations": [{"role": "user", "content": "..."}, ...]}
  sharegpt       {"conversations": [{"from": "human", "value": "..."}, ...], "system": "..."}
  messages       {"messages": [{"role": "user", "content": "..."}, ...]}, also "tools" or "functions"
  alpaca         {"instruction", "input", "output"}, also "system" and "history"; instruction may be called
                 prompt, question or query, output completion, response or answer, input context;
                 prompt and completion may be lists of turns
  text           {"text": "..."}, or any file whose lines are plain text (.txt)
  csv            a header, then rows with columns as in alpaca or text (.csv; .tsv with tabs)
  records        {"main", "branches"}, to group them anew
as JSONL, one big JSON list, CSV, TSV or text, always UTF-8. Files of any size: they are streamed.

What is written: {"main": ..., "branches": [...]}, one JSON line a record; every branch is one of
  {"messages": [...]}            conversations, alpaca, question and answer; the assistant's turns are supervised
  "..."                          plain text; all of it is supervised
  {"prompt", "completion"}       with --branch_form prompt; the completion is supervised
main is a system turn, [{"role": "system", "content": "..."}], with the system prompt and the context (alpaca's
"input"): a chat model's template writes it in place of a persona of its own, and the branches are what the user asks
under it, as under the system prompt, or the shared text, of a chat. Conversations with tools are whole in their
branches. Turns of the assistant with "weight": 0 stay, and are not learned.

How rows become records:
  Rows with the same main share a record, also when other rows lie between them, as long as fewer than 10,000
  branches or 64 million characters wait for more. All others fill records together; a main that only one row
  has stands in its branch then: {"main", "messages"}. The same file always gives the same records.
  To share a long instruction of many inputs: --main_field instruction --prompt_field input.
  In the default visibility, isolated, the branches of a record do not see each other, so each is trained as it
  would be alone. columnar lets them: before you train with it, convert with --group_by main or
  --branches_per_sample 1, and make sure that rows with the same main belong together.

Rows that cannot be converted are skipped, counted and listed with line and reason.
A file that is there already is never replaced, unless with --overwrite: if it is what the conversion makes, all is
well, and otherwise that is an error.
Exit codes: 0 converted (some rows may have been skipped), 1 nothing converted or an error, 2 wrong usage.
"""

_LOGGER = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 10.0
_NAMED_FIELDS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add_settings(parser, ConvertOptions)


def run(args: argparse.Namespace) -> int:
    """Convert and print the counts."""
    options = ConvertOptions(**given(args, ConvertOptions))
    report = convert(options, on_row=_Progress())
    _LOGGER.info(
        "%d rows read = %d converted + %d skipped; %d records with %d branches, %.1f on average (at most %d in one)",
        report.rows,
        report.converted,
        report.skipped_rows,
        report.records,
        report.branches,
        report.branches / report.records,
        report.largest_record,
    )
    _LOGGER.info(
        "%d records of one main (%d branches) + %d of unrelated rows (%d branches) + %d of one branch",
        report.shared_records,
        report.shared_branches,
        report.mixed_records,
        report.mixed_branches,
        report.records - report.shared_records - report.mixed_records,
    )
    if report.mixed_records:
        _LOGGER.info(
            "unrelated rows are trained as if alone with --visibility isolated, the default; for columnar convert "
            "with --group_by main"
        )
    if report.cut_turns:
        _LOGGER.warning(
            "%d turns at the end of conversations were left out: no answer of the assistant follows them",
            report.cut_turns,
        )
    if report.replaced_turns:
        _LOGGER.warning(
            '%d system turns were left out: the field "system" of their row took their place', report.replaced_turns
        )
    if report.unlearned_turns:
        _LOGGER.warning("%d turns of the assistant are not learned: their weight is 0", report.unlearned_turns)
    for name, rows in report.dropped_fields.most_common(_NAMED_FIELDS):
        _LOGGER.warning("the field %s of turns was left out in %d rows", json.dumps(name, ensure_ascii=False), rows)
    if report.separated:
        _LOGGER.warning(
            "%d branches got a line end between main, question and answer, which would have been glued: it stands in "
            "main and in the completion, so that models are asked without it",
            report.separated,
        )
    for row in report.skipped:
        _LOGGER.warning("skipped: line %d %s", row.line, row.reason)
    if more := report.skipped_rows - len(report.skipped):
        path = options.skipped_path
        where = f"all are in {path}" if path else "--skipped_path FILE lists all"
        _LOGGER.warning("skipped: %d more; %s", more, where)
    there = " (they were there already: the file is unchanged)" if report.unchanged else ""
    _LOGGER.info("records are in %s%s", options.output, there)
    return 0


class _Progress:
    """A line now and then."""

    def __init__(self) -> None:
        self._shown = time.monotonic()

    def __call__(self, report: ConvertReport) -> None:
        if (now := time.monotonic()) - self._shown >= _SECONDS_BETWEEN_LINES:
            self._shown = now
            _LOGGER.info("%d rows, %d records, %d skipped", report.rows, report.records, report.skipped_rows)
