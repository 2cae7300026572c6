"""What a package says about its objects when it runs, in a process of its own (`inspector`, `sandbox`).

The output of that process is untrusted: the package could write what it likes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parallelmind.retrieval.corpus.objects import PackageObject, is_public
from parallelmind.retrieval.corpus.sandbox import Limits, run_limited

_INSPECTOR = Path(__file__).with_name("inspector.py")
_MAX_ATTEMPTS = 6  # each leaves out one more module that ends the process
_MAX_OBJECTS = 500_000
_MAX_LINE = 16 * 2**20
_MAX_NAMES = 100_000
_TYPES = frozenset({"module", "class", "function", "method", "property", "attribute", "object", "ufunc"})


@dataclass(slots=True)
class RuntimeReport:
    """What was inspected."""

    objects: list[PackageObject] = field(default_factory=list)
    python: str = ""
    module_errors: dict[str, str] = field(default_factory=dict)
    """Modules that could not be imported, with the reason."""
    failure: str = ""
    """Why there are no objects, or not all."""


def inspect_package(
    python: str, folders: Sequence[Path], import_name: str, scratch: Path, limits: Limits
) -> RuntimeReport:
    """Import `import_name` from `folders` in a process of its own and describe what it offers."""
    skipped: list[str] = []
    output, progress = scratch / "objects.jsonl", scratch / "progress"
    while True:
        output.unlink(missing_ok=True)
        request = {
            "package": import_name,
            "folders": [str(folder) for folder in folders],
            "skipped": skipped,
            "output": str(output),
            "progress": str(progress),
            "limits": limits.rlimits(),
        }
        result = run_limited([python, "-I", "-S", "-B", str(_INSPECTOR), json.dumps(request)], scratch, limits)
        report = read_report(output, import_name) if output.exists() else RuntimeReport(failure="gave no description")
        if not report.failure:
            report.module_errors.update(dict.fromkeys(skipped, "ended the process"))
            return _checked(report, import_name)
        culprit = _read_progress(progress, import_name)
        if culprit in (None, import_name, *skipped) or len(skipped) + 1 >= _MAX_ATTEMPTS:
            where = f" in {culprit}" if culprit else ""
            report.failure = f"the inspection{where} {result.failure or report.failure}"
            return report
        skipped.append(str(culprit))


def read_report(path: Path, import_name: str) -> RuntimeReport:
    """Parse the inspector's output; whatever does not look as it should ends the report with a failure."""
    report = RuntimeReport()
    try:
        with path.open("rb") as file:
            head = _object(file.readline(_MAX_LINE))
            report.python = str(head["python"])[:50]
            report.module_errors = {str(name)[:200]: str(error)[:300] for name, error in dict(head["errors"]).items()}
            for line in iter(lambda: file.readline(_MAX_LINE), b""):
                row = _object(line)
                if row.get("complete") is True:
                    return report
                if len(report.objects) >= _MAX_OBJECTS:
                    raise ValueError(f"more than {_MAX_OBJECTS:,} objects")
                report.objects.append(_package_object(row, import_name))
        raise ValueError("the end is missing")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return RuntimeReport(failure=f"gave an unusable description ({type(error).__name__}: {error})"[:300])


def _checked(report: RuntimeReport, import_name: str) -> RuntimeReport:
    if import_name in report.module_errors:
        report.failure = f"importing {import_name} failed: {report.module_errors[import_name]}"
        report.objects = []
    return report


def _read_progress(path: Path, import_name: str) -> str | None:
    try:
        with path.open("rb") as file:
            name = file.read(1000).decode("utf-8", "replace")
    except OSError:
        return None
    return name if _is_name(name, import_name) else None


def _object(line: bytes) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("a line that is not an object")
    return row


def _package_object(row: dict[str, Any], import_name: str) -> PackageObject:
    names = list(_names(row["names"], import_name))
    if row["type"] not in _TYPES or not names or not _is_name(row["path"], import_name):
        raise ValueError(f"a wrong row: {str(row)[:200]}")
    return PackageObject(
        path=row["path"],
        type=row["type"],
        doc=_text(row["doc"]),
        signature=_text(row["signature"]),
        members={_text(member) for member in row.get("members", ()) if is_public(member)},
        names=set(names),
        source="runtime",
    )


def _names(names: Any, import_name: str) -> Iterator[str]:
    if not isinstance(names, list) or len(names) > _MAX_NAMES:
        raise ValueError("names that are not a list")
    for name in names:
        if _is_name(name, import_name):
            yield name


def _is_name(name: Any, import_name: str) -> bool:
    if not isinstance(name, str) or len(name) > 1000:
        return False
    inside = name == import_name or name.startswith(f"{import_name}.")
    return inside and all(part.isidentifier() for part in name.split("."))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.100} where a text should be")
    return value
