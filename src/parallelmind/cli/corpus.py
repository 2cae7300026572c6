"""`parallelmind corpus`: documentation of exact versions of packages, as files to retrieve from."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from parallelmind.cli.flags import add_settings, given
from parallelmind.retrieval.change_kinds import KINDS

if TYPE_CHECKING:
    from rich.table import Table

    from parallelmind.retrieval.corpus.build import BuildResult
    from parallelmind.retrieval.corpus.meta import CorpusMeta


BUILD_EPILOG = """\
Writes {corpus_path}/{import name}/{version}.jsonl.gz, a row for each public object of the package:
  {"path", "aliases", "doc", "type", "signature", "members", "source", "place", "examples", "mentions", "distribution",
   "version", "wheel", "wheel_sha256"}
with the docstring as doc, or its source code in {version}.srccodes.jsonl.gz. {version}.meta.json says how it was made.
Examples are from the pages, docstrings and tests of the package; the source archive that has them is fetched, too.

Three sources, of which every row names the one of its doc:
  static       the package's files are read, not run; works for every version, also for another Python
  add_newdoc   documentation that packages attach to compiled objects
  runtime      the package is unpacked apart and imported in a sandbox: without network, with nothing of this machine
               but the interpreter, and with limits (SECURITY.md)

The sandbox is bubblewrap, or Linux namespaces of our own. Where neither can be had nothing is built: give --no_runtime
for descriptions by files alone, each with what it lacks, or --unsafe_inspection to run the code as you.

Release notes are read from the source archive, which is fetched beside the wheel; {version}.notes.jsonl.gz holds what
they say of names. Without one all else works.

Wheels come from pip's configured index. A version without a wheel for this Python is read from a wheel for another one,
or from its source archive; nothing of a source archive is run. Finished versions are kept; interrupted, the same
command goes on.
Exit codes: 0 built, 1 one package or more failed (the others are built), 2 wrong usage.

Example:
  parallelmind corpus build numpy==1.26.4 pandas==2.2.2 --corpus_path corpora --jobs 2
"""
LIST_EPILOG = "Example:\n  parallelmind corpus list --corpus_path corpora\n"
DIFF_EPILOG = """\
Both versions must be in the folder, and were run when they were built: a version that was only read lacks nothing for
sure, and what it does not show is listed as unknown.

  removed      nothing takes its place, as far as is known
  moved        the same last name elsewhere
  renamed      another name
  deprecated   it is now, and was not
  signature    parameters came, went or changed
  added        it is new
  unknown      one version could not be asked for it

Each line ends with what shows it: words of the package or of its release notes, another name of the same object, code
that only calls it, the same documentation.

Example:
  parallelmind corpus diff numpy 1.16.6 1.26.4 --kind removed renamed --corpus_path corpora
"""
SHOW_EPILOG = "Example:\n  parallelmind corpus show numpy.concatenate --version 1.26.4 --corpus_path corpora\n"

_LOGGER = logging.getLogger(__name__)
_SHOWN_ERRORS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="corpus_command")

    def add(name: str, text: str, epilog: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, epilog=epilog)

    build = add("build", "build corpora", BUILD_EPILOG)
    _add_build_arguments(build)
    listing = add("list", "list what a folder holds", LIST_EPILOG)
    show = add("show", "show one object, or one package", SHOW_EPILOG)
    show.add_argument("name", metavar="NAME", help="such as numpy, numpy==1.26.4, numpy.linalg.norm")
    show.add_argument("--version", metavar="V", help="only this version (default: all that the folder holds)")
    diff = add("diff", "show what changed between two versions", DIFF_EPILOG)
    diff.add_argument("package", metavar="PACKAGE", help="by distribution or import name")
    diff.add_argument("from_version", metavar="FROM", help="such as 1.16.6")
    diff.add_argument("to_version", metavar="TO", help="such as 1.26.4")
    diff.add_argument("--kind", nargs="+", choices=KINDS, metavar="KIND", help="only these kinds (default: all)")
    diff.add_argument("--json", action="store_true", help="a JSON object a line")
    for command in (build, listing, show, diff):
        if command is not build:
            command.add_argument("--corpus_path", type=Path, required=True, metavar="DIR", help="folder of corpora")
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def _add_build_arguments(parser: argparse.ArgumentParser) -> None:
    from parallelmind.retrieval.corpus.build import BuildOptions

    parser.add_argument(
        "packages", nargs="*", metavar="PACKAGE", help="such as numpy==1.26.4; by distribution or import name"
    )
    add_settings(parser, BuildOptions)


def run(args: argparse.Namespace) -> int:
    """Build, list, show or compare."""
    commands = {"build": _build, "list": _list, "show": _show, "diff": _diff}
    return commands[args.corpus_command](args)


def _build(args: argparse.Namespace) -> int:
    from rich.console import Console

    from parallelmind.cli.corpus_progress import make_progress
    from parallelmind.retrieval.corpus.build import BuildOptions, build_corpora

    options = BuildOptions(packages=tuple(args.packages), **given(args, BuildOptions))
    results: list[BuildResult] = []
    with make_progress() as progress:
        for result in build_corpora(options, progress.stage):
            progress.done(result)
            results.append(result)
    metas = [meta for result in results for meta in result.metas]
    if metas:
        Console().print(_table(metas))
    for meta in metas:
        _report_loss(meta)
    for result in results:
        if result.error:
            print(f"error: {result.name}: {result.error}", file=sys.stderr)
    return 1 if any(result.error for result in results) else 0


def _report_loss(meta: CorpusMeta) -> None:
    """Say what a description does not have, and why."""
    name = f"{meta.import_name} {meta.version}"
    if meta.texts_failure:
        _LOGGER.warning("%s has no examples: %s", name, meta.texts_failure)
    if meta.loss:
        level = logging.WARNING if meta.runtime_failure else logging.INFO  # else nobody asked for more
        because = f" ({meta.runtime_failure})" if meta.runtime_failure else ""
        _LOGGER.log(level, "%s is described by its files alone%s: %s", name, because, meta.loss)
    elif meta.module_errors:
        modules = ", ".join(list(meta.module_errors)[:_SHOWN_ERRORS])
        words = "%s: %d modules could not be imported and are described by their files alone (%s%s)"
        _LOGGER.warning(
            words, name, len(meta.module_errors), modules, ", …" * (len(meta.module_errors) > _SHOWN_ERRORS)
        )


def _list(args: argparse.Namespace) -> int:
    from rich.console import Console

    from parallelmind.retrieval.corpus.meta import read_metas
    from parallelmind.retrieval.corpus_rows import CORPUS_TYPES, corpus_versions

    metas = read_metas(args.corpus_path)
    known = {(meta.import_name, meta.version) for meta in metas}
    others = {
        (name, version)
        for kind in CORPUS_TYPES
        for name, versions in corpus_versions(args.corpus_path, kind).items()
        for version in versions
    } - known
    Console().print(_table(metas))
    for name, version in sorted(others):
        print(f"{name} {version} was made by other means")
    return 0


def _diff(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.text import Text

    from parallelmind.retrieval.changes import compare
    from parallelmind.retrieval.corpus.sandbox.running import printable
    from parallelmind.retrieval.renames import load_renames
    from parallelmind.retrieval.store import CorpusStore

    store = CorpusStore(args.corpus_path)
    console = Console(soft_wrap=True)
    for package in store.packages_named(args.package):
        old, new = (store.index(package, store.version(package, each)) for each in (args.from_version, args.to_version))
        for change in compare(old, new, load_renames()):
            if args.kind and change.kind not in args.kind:
                continue
            if args.json:
                print(json.dumps(change.fields(), ensure_ascii=False))
                continue
            arrow = f" -> {change.new_name}" if change.new_name else ""
            name = Text(printable(f"{change.name}{arrow}"), "bold")
            console.print(Text(f"{change.kind:10} "), name, Text(printable(change.evidence), "dim"))
    return 0


def _show(args: argparse.Namespace) -> int:
    from rich.console import Console

    from parallelmind.retrieval.context_text import example_text
    from parallelmind.retrieval.corpus.meta import matching_metas
    from parallelmind.retrieval.corpus.sandbox.running import printable
    from parallelmind.retrieval.corpus_rows import find_objects
    from parallelmind.retrieval.sections import SAID_IN

    name, _, version = args.name.partition("==")
    if metas := matching_metas(args.corpus_path, name, version or args.version):
        console = Console()
        console.print(_table(metas))
        for meta in metas:
            _print_errors(meta)
        return 0
    found = find_objects(args.corpus_path, name, args.version)
    for row in found:
        print(f"{row.path}{printable(row.signature)}")
        print(f"  {row.type} of {row.distribution} {row.version}, from {row.source}")
        if row.aliases:
            print(f"  also {', '.join(row.aliases)}")
        parts = [row.doc or "no documentation", *(f"{SAID_IN}{one.source}: {one.text}" for one in row.mentions)]
        parts += map(example_text, row.examples)
        lines = "\n\n".join(parts).expandtabs().splitlines()
        print("\n" + "\n".join(f"  {printable(line)}".rstrip() for line in lines) + "\n")
    return 0


def _print_errors(meta: CorpusMeta) -> None:
    if meta.loss:
        print(f"{meta.version} is described by its files alone: {meta.loss}")
    if meta.runtime_failure:
        print(f"{meta.version}: {meta.runtime_failure}")
    errors = list(meta.module_errors.items())
    for module, error in errors[:_SHOWN_ERRORS]:
        print(f"{meta.version}: {module} could not be imported: {error}")
    if len(errors) > _SHOWN_ERRORS:
        print(f"{meta.version}: and {len(errors) - _SHOWN_ERRORS} more modules")


def _table(metas: list[CorpusMeta]) -> Table:
    from rich.table import Table

    table = Table("package", *_NUMBERS, caption=_CAPTION, caption_justify="left")
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for meta in sorted(metas, key=lambda meta: (meta.import_name, meta.version)):
        counts = [meta.documented.get(source, 0) for source in ("static", "add_newdoc", "runtime")]
        documented = f"{sum(counts):,}"
        running = ("-", "-")
        if meta.runtime_documented:
            share = (meta.static_documented or 0) / meta.runtime_documented
            running = (f"{meta.runtime_documented:,}", f"{share:.0%}")
        rows = f"{max(meta.rows.values(), default=0):,}"
        table.add_row(
            f"{meta.import_name} {meta.version}", rows, documented, *(f"{count:,}" for count in counts), *running
        )
    return table


_NUMBERS = ("rows", "docs", "static", "newdoc", "runtime", "running", "files")
_CAPTION = (
    "docs: rows with documentation, and where it was found. running: objects that the running package documents;"
    " files: the share of them whose documentation the files alone give. -: it was not run"
)
