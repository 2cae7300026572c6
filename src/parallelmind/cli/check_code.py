"""`parallelmind check-code`: whether code uses its packages as their versions are."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from parallelmind.cli.flags import add_settings, given
from parallelmind.cli.terminal import tolerate_any_text
from parallelmind.errors import DataError, SettingsError
from parallelmind.retrieval.check.checker import imported_names
from parallelmind.retrieval.check.source import decode_source
from parallelmind.retrieval.documentation import Checked
from parallelmind.retrieval.on_demand import build_now
from parallelmind.retrieval.project.options import ProjectOptions

EPILOG = """\
Reads the code and never runs it. Prints a line for each use of a package that its version does not have (absent), that
it will lose (deprecated), or that it does not take so (arguments):
  FILE:LINE:COLUMN: KIND: what is wrong (the proof); use what takes its place

Only what is certain is told. Nothing is said of a name that may stand for several things, of code below a try statement
or a condition on versions that is written for such a case, or of a test that expects the failure.

Exit codes: 0 nothing was found, 1 something was found or a file cannot be read, 2 wrong usage.
"""

_LOGGER = logging.getLogger(__name__)
_STDIN = "-"
_LEFT_OUT = frozenset(("__pycache__", "node_modules", "site-packages"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="Python files, folders of them, or - for standard input"
    )
    add_settings(parser, ProjectOptions)
    parser.add_argument("--ignore_deprecated", action="store_true", help="say nothing of what is deprecated")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else, to stdout")


def run(args: argparse.Namespace) -> int:
    """0 if nothing was found."""
    tolerate_any_text()
    options = ProjectOptions(**given(args, ProjectOptions))
    if not options.requirements:
        raise SettingsError(
            "--requirements is not given: it says which versions the code is for; give a lockfile, a requirements "
            "file, an environment, or `current`."
        )
    documentation = options.documentation()
    texts, errors = _read(args.files)
    if options.build:
        imported = {name for path, text in texts.items() for name in imported_names(text, path)}
        if requests := documentation.missing(imported):
            build_now(requests, options.corpus_path)
    checked = {}
    for path, text in texts.items():
        try:
            checked[path] = documentation.check(text, path)
        except DataError as error:
            errors.append(str(error))
    documentation.close()
    return _report(checked, errors, as_json=args.json, ignore_deprecated=args.ignore_deprecated)


def _read(files: list[str]) -> tuple[dict[str, str], list[str]]:
    """(texts by path, why others cannot be read)."""
    texts: dict[str, str] = {}
    errors: list[str] = []
    for given_file in files:
        if given_file == _STDIN:
            texts[_STDIN] = decode_source(sys.stdin.buffer.read(), _STDIN)
            continue
        for path in _found(Path(given_file)):
            try:
                texts[str(path)] = decode_source(path.read_bytes(), str(path))
            except OSError as error:
                errors.append(f"cannot read {path}: {error.strerror}; check the path and its permissions.")
            except DataError as error:
                errors.append(str(error))
    return texts, errors


def _found(path: Path) -> Iterator[Path]:
    """A file, or the Python files of a folder; those of environments and hidden folders are left out."""
    if not path.is_dir():
        yield path
        return
    for inside in sorted(path.iterdir()):
        if inside.is_dir():
            is_left_out = inside.name.startswith(".") or inside.name in _LEFT_OUT or (inside / "pyvenv.cfg").exists()
            if not is_left_out and not inside.is_symlink():
                yield from _found(inside)
        elif inside.suffix in (".py", ".pyi"):
            yield inside


def _report(checked: dict[str, Checked], errors: list[str], *, as_json: bool, ignore_deprecated: bool) -> int:
    from parallelmind.retrieval.corpus.sandbox.running import printable

    findings = [
        finding
        for one in checked.values()
        for finding in one.report.findings
        if not (ignore_deprecated and finding.kind == "deprecated")
    ]
    versions = {name: version for one in checked.values() for name, version in one.versions.items()}
    unjudged = {name: reason for one in checked.values() for name, reason in one.unjudged.items()}
    if as_json:
        content = {
            "files": len(checked),
            "findings": [finding.fields() for finding in findings],
            "versions": dict(sorted(versions.items())),
            "not_judged": dict(sorted(unjudged.items())),
            "errors": errors,
        }
        print(json.dumps(content, ensure_ascii=False, indent=2))
    else:
        for finding in findings:
            print(printable(finding.text()))
        for error in errors:
            print(f"error: {error}", file=sys.stderr)
        for name, reason in sorted(unjudged.items()):
            _LOGGER.warning("uses of %s are not judged: %s", name, reason)
        judged = ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) or "no package"
        _LOGGER.info("%d files, %d findings; judged: %s", len(checked), len(findings), judged)
    return 1 if findings or errors else 0
