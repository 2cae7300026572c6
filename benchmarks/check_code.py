"""How many planted errors check-code finds, and what it says of test suites that pass.

    parallelmind corpus build attrs==26.1.0 click==8.5.1 flask==3.1.3 httpx==0.28.1 networkx==3.6.1 numpy==1.26.4 \\
        pandas==1.5.3 pandas==2.2.2 pydantic==2.14.4 requests==2.34.2 --corpus_path corpora
    python benchmarks/check_code.py --corpus_path corpora --suites click/tests httpx/tests …

Suites are folders of the packages' own source archives, of the versions above. Errors are planted in two ways: in code
that was written for it (benchmarks/wrong_code), and in the suites, one at a time and wherever chance has it: a name
after an import, an attribute of a module, or a keyword of a call is misspelled.
"""

from __future__ import annotations

import argparse
import ast
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from parallelmind.errors import DataError
from parallelmind.retrieval.check.checker import check_code
from parallelmind.retrieval.check.findings import Finding
from parallelmind.retrieval.check.source import decode_source
from parallelmind.retrieval.corpus_facts import CorpusFacts
from parallelmind.retrieval.store import CorpusStore

WRITTEN = Path(__file__).parent / "wrong_code" / "written.py.txt"
SEED = 16
_MARK = re.compile(r"(?m)#! (.+)$")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus_path", type=Path, required=True)
    parser.add_argument("--suites", type=Path, nargs="*", default=[])
    parser.add_argument("--generated", type=int, default=300, help="errors to plant in the suites")
    parser.add_argument("--verbose", action="store_true", help="list what was missed, and every finding in a suite")
    args = parser.parse_args()
    store = CorpusStore(args.corpus_path)
    facts = CorpusFacts(store)
    versions = {package: store.versions(package)[-1] for package in store.packages()}
    files = {suite: dict(_texts(suite)) for suite in args.suites}
    _written(facts, versions, verbose=args.verbose)
    _suites(files, facts, versions, verbose=args.verbose)
    if files:
        texts = [(path, text) for suite in files.values() for path, text in suite.items()]
        _generated(texts, args.generated, facts, versions, verbose=args.verbose)


def _written(facts: CorpusFacts, versions: Mapping[str, str], *, verbose: bool) -> None:
    text = WRITTEN.read_text("utf-8")
    wanted = {
        (number, *one.strip().split())
        for number, line in enumerate(text.splitlines(), start=1)
        for mark in _MARK.findall(line)
        for one in mark.split(",")
        if one.strip().split()[1].partition(".")[0] in versions
    }
    findings = check_code(text, str(WRITTEN), facts, versions).findings
    found = {(one.line, one.kind, _last(one.name)) for one in findings}
    right = {(line, kind, name) for line, kind, name in wanted if (line, kind, _last(name)) in found}
    false = found - {(line, kind, _last(name)) for line, kind, name in wanted}
    print(f"written: {len(right)} of {len(wanted)} found, {len(false)} told that were not planted")
    instead = [one for one in findings if one.kind != "arguments"]
    print(f"  a replacement is named for {sum(bool(one.replacement) for one in instead)} of {len(instead)}")
    for line, kind, name in sorted(wanted - right) if verbose else ():
        print(f"  missed: line {line}: {kind} {name}")
    for line, kind, name in sorted(false) if verbose else ():
        print(f"  not planted: line {line}: {kind} {name}")


def _suites(
    files: Mapping[Path, Mapping[str, str]], facts: CorpusFacts, versions: Mapping[str, str], *, verbose: bool
) -> None:
    for suite, texts in files.items():
        started = time.perf_counter()
        findings = [one for path, text in texts.items() for one in _findings(path, text, facts, versions)]
        seconds = time.perf_counter() - started
        counts = Counter(one.kind for one in findings)
        print(f"{suite}: {len(texts)} files in {seconds:.1f} s: {dict(counts) or 'nothing found'}")
        for one in findings if verbose else ():
            print(f"  {one.text()}")


def _generated(
    texts: list[tuple[str, str]], count: int, facts: CorpusFacts, versions: Mapping[str, str], *, verbose: bool
) -> None:
    chance = random.Random(SEED)
    planted, found = Counter[str](), Counter[str]()
    while planted.total() < count:
        path, text = chance.choice(texts)
        if not (places := list(_places(text, versions))):
            continue
        kind, line, start, end = chance.choice(places)
        lines = text.splitlines(keepends=True)
        lines[line - 1] = lines[line - 1][:end] + "zz" + lines[line - 1][end:]
        before = {(one.line, one.kind, one.name) for one in _findings(path, text, facts, versions)}
        after = {(one.line, one.kind, one.name) for one in _findings(path, "".join(lines), facts, versions)}
        planted[kind] += 1
        if after - before:
            found[kind] += 1
        elif verbose:
            print(f"  missed: {path}:{line}: {kind}: {lines[line - 1].strip()[:100]} ({start})")
    shown = ", ".join(f"{found[kind]} of {total} {kind}" for kind, total in sorted(planted.items()))
    print(f"generated: {found.total()} of {count} found ({shown})")


def _places(text: str, versions: Mapping[str, str]) -> Iterator[tuple[str, int, int, int]]:
    """(kind, line, beginning, end) of names to misspell: imported ones, attributes of packages, keywords of calls."""
    tree = ast.parse(text)
    packages: set[str] = set()
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            packages.update(
                alias.asname or alias.name for alias in node.names if alias.name.partition(".")[0] in versions
            )
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").partition(".")[0] in versions:
            for alias in node.names:
                imported.add(alias.asname or alias.name)
                if alias.name != "*":
                    yield "imported name", alias.lineno, alias.col_offset, alias.col_offset + len(alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in packages:
            if isinstance(node.ctx, ast.Load) and node.end_lineno == node.lineno and node.end_col_offset is not None:
                yield "attribute", node.lineno, node.end_col_offset - len(node.attr), node.end_col_offset
        elif isinstance(node, ast.Call) and _is_of_package(node.func, packages, imported):
            for keyword in node.keywords:
                if keyword.arg:
                    yield "keyword", keyword.lineno, keyword.col_offset, keyword.col_offset + len(keyword.arg)


def _is_of_package(function: ast.expr, packages: set[str], imported: set[str]) -> bool:
    if isinstance(function, ast.Name):
        return function.id in imported
    return (
        isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id in packages
    )


def _findings(path: str, text: str, facts: CorpusFacts, versions: Mapping[str, str]) -> tuple[Finding, ...]:
    return check_code(text, path, facts, versions).findings


def _texts(suite: Path) -> Iterator[tuple[str, str]]:
    """The files that are code of Python; suites have some that are meant not to be."""
    for path in sorted(suite.rglob("*.py")):
        try:
            text = decode_source(path.read_bytes(), str(path))
            ast.parse(text)
        except (DataError, SyntaxError, ValueError):
            continue
        if text.isascii():  # places in lines are counted in bytes
            yield str(path), text


def _last(name: str) -> str:
    return name.rpartition(".")[2]


if __name__ == "__main__":
    main()
