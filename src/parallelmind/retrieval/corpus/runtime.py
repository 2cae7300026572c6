"""What a package says about its objects when it runs, in a process of its own (`inspection`, `sandbox`).

The output of that process is untrusted: the package could write what it likes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parallelmind.retrieval.corpus.objects import PackageObject, is_public
from parallelmind.retrieval.corpus.sandbox.running import Limits, printable
from parallelmind.retrieval.corpus.sandbox.sandbox import Sandbox
from parallelmind.retrieval.namespaces import Namespace, parse_namespace, printable_namespace

_INSPECTOR = Path(__file__).with_name("inspection")
_MAX_ATTEMPTS = 6  # each leaves out one more module that ends the process
_MAX_OBJECTS = 500_000
_MAX_NAMESPACES = 200_000
_MAX_LINE = 16 * 2**20
_MAX_NAMES = 100_000
_MAX_SAID = 1000
_KINDS = range(5)  # of inspect.Parameter
_TYPES = frozenset({"module", "class", "function", "method", "property", "attribute", "object", "ufunc"})


@dataclass(slots=True)
class RuntimeReport:
    """What was inspected."""

    objects: list[PackageObject] = field(default_factory=list)
    python: str = ""
    namespaces: list[Namespace] = field(default_factory=list)
    module_errors: dict[str, str] = field(default_factory=dict)
    """Modules that could not be imported, with the reason."""
    module_warnings: dict[str, str] = field(default_factory=dict)
    """Modules that say, as they are imported, that they are deprecated."""
    failure: str = ""
    """Why there are no objects, or not all."""


def inspect_package(
    sandbox: Sandbox, python: str, folder: Path, import_name: str, scratch: Path, limits: Limits
) -> RuntimeReport:
    """Import `import_name` from `folder` in a process of its own and describe what it offers."""
    skipped: list[str] = []
    output = scratch / "objects.jsonl"
    while True:
        request = {
            "package": import_name,
            "folders": [str(folder)],
            "skipped": skipped,
            "seconds": limits.seconds,
        }
        arguments = ["-I", "-S", "-B", str(_INSPECTOR / "__main__.py"), json.dumps(request)]
        result = sandbox.run(python, arguments, output, limits, readable=[_INSPECTOR, folder])
        report, culprit = read_report(output, import_name)
        if result.excess:
            report = RuntimeReport(failure=result.failure)
        if not report.failure:
            report.module_errors.update(dict.fromkeys(skipped, "ended the process"))
            return _checked(report, import_name)
        if culprit in ("", import_name, *skipped) or len(skipped) + 1 >= _MAX_ATTEMPTS:
            where = f" in {culprit}" if culprit else ""
            report.failure = f"the inspection{where} {result.failure or report.failure}"
            return report
        skipped.append(culprit)


def read_report(path: Path, import_name: str) -> tuple[RuntimeReport, str]:
    """Parse the inspector's output; whatever does not look as it should ends the report with a failure.

    Returns the report, and the module that was being imported at the end, or "".
    """
    report, importing = RuntimeReport(), ""
    try:
        with path.open("rb") as file:
            for line in iter(lambda: file.readline(_MAX_LINE), b""):
                row = _object(line)
                if "importing" in row:
                    importing = row["importing"] if _is_name(row["importing"], import_name) else ""
                elif not report.python:
                    report.python = printable(str(row["python"])[:50])
                    report.module_errors = _texts(row["errors"])
                    report.module_warnings = _texts(row["warnings"])
                elif row.get("complete") is True:
                    _check_numbers(report)
                    return report, importing
                elif "namespace" in row:
                    if len(report.namespaces) >= _MAX_NAMESPACES:
                        raise ValueError(f"more than {_MAX_NAMESPACES:,} namespaces")
                    report.namespaces.append(printable_namespace(parse_namespace(row["namespace"]), printable))
                elif len(report.objects) >= _MAX_OBJECTS:
                    raise ValueError(f"more than {_MAX_OBJECTS:,} objects")
                else:
                    report.objects.append(_package_object(row["object"], import_name))
        raise ValueError("the end is missing")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        failure = f"gave an unusable description ({type(error).__name__}: {error})"[:300]
        return RuntimeReport(failure=printable(failure)), importing


def _checked(report: RuntimeReport, import_name: str) -> RuntimeReport:
    if import_name in report.module_errors:
        report.failure = f"importing {import_name} failed: {report.module_errors[import_name]}"
        report.objects, report.namespaces = [], []
    return report


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
        members={member for member in map(_text, row.get("members", ())) if is_public(member)},
        names=set(names),
        source="runtime",
        home=_text(row["home"]) if row.get("home") else "",
        deprecated=printable(" ".join(_text(row.get("deprecated") or "")[:_MAX_SAID].split())),
        parameters=_parameters(row.get("parameters")),
        numbers={row["number"]} if type(row.get("number")) is int else set(),
    )


def _parameters(value: Any) -> tuple[tuple[str, int, bool], ...] | None:
    if value is None:
        return None
    return tuple((_text(name), _KINDS[kind], bool(optional)) for name, kind, optional in value)


def _texts(value: Any) -> dict[str, str]:
    return {printable(str(name)[:200]): printable(str(text)[:_MAX_SAID]) for name, text in dict(value).items()}


def _check_numbers(report: RuntimeReport) -> None:
    """What a namespace refers to must be there."""
    objects = {number for item in report.objects for number in item.numbers}
    count = len(report.namespaces)
    for space in report.namespaces:
        targets = [target for target in space.names.values() if target[:1] in ("s", "o")]
        numbers = {int(target[1:]) for target in targets if target[0] == "s"} | {*space.bases, *space.meta}
        described = {int(target[1:]) for target in targets if target[0] == "o"}
        described |= {space.object} if space.object is not None else set()
        if max(numbers, default=0) >= max(count, 1) or not described <= objects:
            raise ValueError(f"{space.name[:100]} refers to what is not there")


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
