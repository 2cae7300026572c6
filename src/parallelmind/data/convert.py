"""Turn fine-tuning data into records: `{"main": text, "branches": [branch, …]}`, one JSON line each.

Rows are read, grouped (`grouping`) and written one after the other; memory does not grow with the file.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from annotated_types import Ge

from parallelmind.data.grouping import Group, GroupBy, Grouping
from parallelmind.data.sft_files import Container, RawRow, container_of, read_rows
from parallelmind.data.sft_forms import (
    BranchForm,
    BranchSample,
    MainFrom,
    SampleSettings,
    samples_of,
)
from parallelmind.errors import DataError, SettingsError
from parallelmind.io.atomic import refuse_same_file, replacing
from parallelmind.settings.setting import Flag, Setting, Settings

Format = Literal["auto", "conversations", "sharegpt", "messages", "alpaca", "text", "csv", "records"]

_KEPT_SKIPPED = 20
_MEANING = "what a row means"
_GROUPS = "how rows become records"


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(Settings):
    """What to convert, and how rows become records; the names are the flags.

    Raises:
        SettingsError: a value is out of range, or two files are one.
    """

    input: Annotated[Path, Setting("fine-tuning data", "files")]
    output: Annotated[Path, Setting("JSONL of records", "files")]
    max_samples: Annotated[int | None, Ge(1), Setting("the first N rows only", "files", default="all")] = None
    skipped_path: Annotated[Path | None, Setting("JSONL of all skipped rows", "files")] = None
    strict: Annotated[bool, Setting("stop at the first row that cannot be converted", "files")] = False
    overwrite: Annotated[bool, Setting("replace a file of that name that holds something else", "files")] = False
    format: Annotated[Format, Setting("the form of the rows", _MEANING)] = "auto"
    prompt_field: Annotated[
        str | None, Setting("field or column of the question", _MEANING, flag=Flag(metavar="NAME"))
    ] = None
    completion_field: Annotated[
        str | None, Setting("field or column of the answer", _MEANING, flag=Flag(metavar="NAME"))
    ] = None
    main_field: Annotated[
        str | None, Setting("field or column of the context", _MEANING, flag=Flag(metavar="NAME"))
    ] = None
    main_from: Annotated[
        MainFrom,
        Setting(
            "what becomes main, as a system turn: system, the system prompt (a context stays behind the question); "
            "context, both in rows that have a context; auto, both; none, neither",
            _MEANING,
        ),
    ] = "auto"
    branch_form: Annotated[
        BranchForm,
        Setting(
            "auto and messages: the model's chat template writes them, or User: ... Assistant: ... for a model without "
            "one; prompt: texts as they are, with a line end between them, also for chat models (several turns are "
            "written as User: ... Assistant: ... and only the last one is supervised)",
            _MEANING,
        ),
    ] = "auto"
    group_by: Annotated[
        GroupBy,
        Setting(
            "all: rows with the same main, and the others together; main: rows with the same main, and one record for "
            "each other row; none: one record a row",
            _GROUPS,
        ),
    ] = "all"
    branches_per_sample: Annotated[
        int,
        Ge(1),
        Setting(
            "branches of a record at most; 1: one record a row", _GROUPS, flag=Flag(also=("--branches_per_record",))
        ),
    ] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_same_file(self.output, self.input, flag="--output")
        if self.skipped_path is not None:
            refuse_same_file(self.skipped_path, self.input, flag="--skipped_path")
            if self.skipped_path.resolve() == self.output.resolve():
                raise SettingsError(f"--skipped_path is --output ({self.output}); give another name.")

    def sample_settings(self) -> SampleSettings:
        fields = {
            "prompt": self.prompt_field,
            "completion": self.completion_field,
            "context": self.main_field,
        }
        return SampleSettings(
            form=None if self.format == "auto" or self.format == "csv" else self.format,
            branch_form=self.branch_form,
            main_from=self.main_from,
            fields={part: name for part, name in fields.items() if name is not None},
        )

    def container(self) -> Container:
        found = container_of(self.input)
        if self.format == "text":
            return "text"
        if self.format == "csv":
            return "tsv" if found == "tsv" else "csv"
        return found


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that was not converted."""

    line: int
    reason: str


@dataclass(kw_only=True)
class ConvertReport:
    """Every row read is either converted or skipped; every branch stands in one record."""

    rows: int = 0
    converted: int = 0
    records: int = 0
    branches: int = 0
    largest_record: int = 0
    """Branches of the record that has most."""
    shared_records: int = 0
    """Records of several branches under one main."""
    shared_branches: int = 0
    mixed_records: int = 0
    """Records of several branches without a main in common."""
    mixed_branches: int = 0
    cut_turns: int = 0
    """Turns left out since no turn of the assistant followed them."""
    replaced_turns: int = 0
    """System turns left out since their row has a field "system", which took their place."""
    unlearned_turns: int = 0
    """Turns of the assistant that stay, but are not to be learned: those of weight 0."""
    separated: int = 0
    """Branches of texts in which a line end was put between what would have been glued."""
    dropped_fields: Counter[str] = dataclasses.field(default_factory=Counter)
    """Fields of turns that were left out, and in how many rows."""
    skipped_rows: int = 0
    skipped: list[Skipped] = dataclasses.field(default_factory=list)
    """The first of them."""
    unchanged: bool = False
    """The output was there already, with the same records."""


def convert(options: ConvertOptions, on_row: Callable[[ConvertReport], None] | None = None) -> ConvertReport:
    """Write the records; the output appears complete or not at all, and a former one is unchanged until then.

    Without `overwrite` a former file stays: either it holds what would be written, or the conversion ends at the
    first difference. `on_row` is called after every row.

    Raises:
        DataError: the input cannot be read, no row could be converted, or with `strict` any row could not.
        SettingsError: the output cannot be written, or exists already with other content.
    """
    report = ConvertReport()
    rows = itertools.islice(read_rows(options.input, options.container()), options.max_samples)
    with (
        _written(options.output, "--output", options.overwrite) as output,
        _written(options.skipped_path, "--skipped_path", options.overwrite) as skipped,
    ):
        grouping = Grouping(options.group_by, options.branches_per_sample)
        for sample in _samples(rows, options, report, skipped, on_row):
            for group in grouping.add(sample):
                _write_record(output, group, report)
        for group in grouping.rest():
            _write_record(output, group, report)
        if not report.records:
            first = "".join(
                f", the first at line {row.line}: {row.reason.removesuffix('.')}" for row in report.skipped[:1]
            )
            raise DataError(
                f"{options.input}: none of its {report.rows} rows could be converted{first}. Give the right "
                "--format, or the names of its columns with --prompt_field and --completion_field."
            )
        for file in (output, skipped):  # before one of them takes its place
            if file is not None:
                file.end()
        report.unchanged = output is not None and output.unchanged
    return report


def _samples(
    rows: Iterator[RawRow],
    options: ConvertOptions,
    report: ConvertReport,
    skipped: _NewFile | None,
    on_row: Callable[[ConvertReport], None] | None,
) -> Iterator[BranchSample]:
    settings = options.sample_settings()
    for row in rows:
        report.rows += 1
        try:
            if row.error is not None:
                raise DataError(row.error)
            samples = samples_of(row.value, settings)
        except DataError as error:
            if options.strict:
                raise DataError(f"{options.input}, line {row.line}: {error}") from None
            _note_skipped(Skipped(row.line, str(error)), report, skipped)
        else:
            report.converted += 1
            report.cut_turns += sum(sample.cut_turns for sample in samples)
            report.replaced_turns += sum(sample.replaced_turns for sample in samples)
            report.unlearned_turns += sum(sample.unlearned_turns for sample in samples)
            report.separated += sum(sample.separated for sample in samples)
            report.dropped_fields.update({name for sample in samples for name in sample.dropped_fields})
            yield from samples
        if on_row is not None:
            on_row(report)


def _note_skipped(row: Skipped, report: ConvertReport, file: _NewFile | None) -> None:
    report.skipped_rows += 1
    if len(report.skipped) < _KEPT_SKIPPED:
        report.skipped.append(row)
    if file is not None:
        # Reasons quote what was found, which may not be valid text.
        reason = row.reason.encode("utf-8", "replace").decode("utf-8")
        file.write(json.dumps({"line": row.line, "reason": reason}, ensure_ascii=False) + "\n")


def _write_record(file: _NewFile | None, group: Group, report: ConvertReport) -> None:
    assert file is not None
    file.write(json.dumps({"main": group.main, "branches": group.branches}, ensure_ascii=False) + "\n")
    count = len(group.branches)
    report.records += 1
    report.branches += count
    report.largest_record = max(report.largest_record, count)
    if count > 1 and group.main:
        report.shared_records += 1
        report.shared_branches += count
    elif count > 1:
        report.mixed_records += 1
        report.mixed_branches += count


class _NewFile:
    """A file that is written, compared with the one that it would replace."""

    def __init__(self, file: BinaryIO, former: BinaryIO | None, path: Path, flag: str) -> None:
        self.unchanged = former is not None
        self._file = file
        self._former = former
        self._path = path
        self._flag = flag

    def write(self, text: str) -> None:
        content = text.encode("utf-8")
        self._compare(content, len(content))
        self._file.write(content)

    def end(self) -> None:
        """End the file after its last line. Raises SettingsError if the former file has more."""
        self._compare(b"", 1)

    def _compare(self, content: bytes, size: int) -> None:
        if self._former is not None and self._former.read(size) != content:
            raise SettingsError(
                f"{self._flag} {self._path}: a file of this name exists already, and its content is not what this "
                f"conversion writes; choose another {self._flag}, or give --overwrite to replace it."
            )


@contextmanager
def _written(path: Path | None, flag: str, overwrite: bool) -> Iterator[_NewFile | None]:
    """A text file that gets its name only when the block ends without an error; for None there is no file."""
    if path is None:
        yield None
        return
    with replacing(path) as temporary, ExitStack() as opened:
        former = None
        if not overwrite and path.is_file() and path.stat().st_size:
            former = opened.enter_context(path.open("rb"))
        yield _NewFile(opened.enter_context(temporary.open("wb")), former, path, flag)
