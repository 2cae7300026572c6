"""Examples and mentions of each API of a package, from its pages, its docstrings and its tests."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from parallelmind.retrieval.corpus.narrative.descriptions import Descriptions
from parallelmind.retrieval.corpus.narrative.frequency import Frequency
from parallelmind.retrieval.corpus.narrative.names import PublicNames, excerpt
from parallelmind.retrieval.corpus.narrative.pages import Block, read_page
from parallelmind.retrieval.corpus.narrative.slices import Slicer, imports_of, needed
from parallelmind.retrieval.corpus.narrative.uses import Code, Use, without_prompts
from parallelmind.retrieval.corpus.objects import PackageObject
from parallelmind.retrieval.corpus_rows import Example, Mention
from parallelmind.retrieval.markup import plain
from parallelmind.retrieval.renames import load_renames

MAX_EXAMPLE, MAX_MENTION, MAX_INTRODUCTION = 600, 400, 200
_MOST = 2
_SHORTEST_MENTION = 40
_MOST_LINES = 25
_MOST_CANDIDATES, _ENOUGH_OF_TESTS = 8, 3
_HAS_EXAMPLE = re.compile(r"^\s*>>> |^\s*```|^\s*\.\. (?:code-block|code|sourcecode)::|::\s*\n\s*\n +\S", re.M)
_WORD = re.compile(r"\w+")
_PAGE, _FILE, _DOCSTRING, _TEST = range(4)


@dataclass(frozen=True, slots=True)
class SourceText:
    """A file of the package: a page of its documentation, an example, or a test."""

    name: str
    text: str

    @property
    def is_code(self) -> bool:
        return self.name.endswith(".py")

    @property
    def is_test(self) -> bool:
        return self.is_code and is_test_name(self.name)


def is_test_name(name: str) -> bool:
    """Whether a file of code holds tests."""
    *folders, file = name.split("/")
    return file.startswith("test_") or file.endswith("_test.py") or bool({"tests", "test", "testing"} & {*folders})


@dataclass(frozen=True, slots=True, order=True)
class _Candidate:
    kind: int
    is_reference: bool
    """Not a call."""
    others: int
    """How many other APIs it uses."""
    length: int
    code: str
    source: str
    introduction: str = ""


class Narrative:
    """Reads the texts of a package, and gives its objects what they show."""

    def __init__(self, package: str, objects: Mapping[str, PackageObject], of: str) -> None:
        """`of` is the archive as sources name it, such as `flask 3.1.0`."""
        self._objects, self._of = objects, of
        self._names = PublicNames(package, objects)
        self._descriptions = Descriptions(self._names)
        self._frequency = Frequency(self._names)
        self._package = package
        self._conventions = dict(load_renames().import_conventions)
        self._candidates: dict[str, list[_Candidate]] = defaultdict(list)
        self._unserved: dict[str, set[str]] = defaultdict(set)
        """By last name, those that may need an example from tests."""
        for item in objects.values():
            for name in item.names if item.type != "module" else ():
                self._unserved[name.rpartition(".")[2]].add(item.path)
        self._mentions: dict[str, list[tuple[int, Mention]]] = defaultdict(list)

    def read(self, texts: Iterable[SourceText]) -> None:
        """All texts, and the docstrings of the objects."""
        tests = []
        for one in (kept := list(texts)):
            if one.is_test:
                tests.append(one)
            elif one.is_code:
                self._file(one, _FILE)
            else:
                source = f"{one.name} of {self._of}"
                self._page(read_page(one.name, one.text), source, _PAGE, owner="")
        self._frequency.read(one.text for one in kept)
        for item in self._objects.values():
            if has_example(item.doc):
                source = f"the documentation of {item.path}"
                self._page(read_page("", item.doc), source, _DOCSTRING, owner=item.path)
        for one in tests:
            self._file(one, _TEST)

    def give(self) -> None:
        """Put what was found into the objects."""
        for path, count in self._frequency.counts().items():
            self._objects[path].uses = count
        for path, candidates in self._candidates.items():
            item = self._objects[path]
            if item.type != "module":
                item.examples = tuple(_chosen(candidates, has_own=has_example(item.doc)))
        for path, mentions in self._mentions.items():
            best = sorted(mentions, key=lambda one: one[0])
            unique = {one.text: one for _, one in reversed(best)}
            introduced = {example.introduction for example in self._objects[path].examples}
            kept = [one for text, one in reversed(unique.items()) if text not in introduced]
            self._objects[path].mentions = tuple(kept[:_MOST])
        for item in self._objects.values():
            said, source = self._descriptions.of(item)
            if said and not item.doc.strip():
                item.doc, item.source = said, "pages"
            elif said and item.type != "module":
                first = Mention(excerpt(said, (), MAX_MENTION), source)
                others = [one for one in item.mentions if one.text not in said]
                item.mentions = (first, *others)[:_MOST]

    def _page(self, blocks: Sequence[Block], source: str, kind: int, *, owner: str) -> None:
        code = Code(self._names, self._conventions)
        places: list[tuple[int, Block, str]] = []
        module = before = ""
        for block in blocks:
            if kind == _PAGE:
                self._descriptions.add(block, module, source)
            if block.module:
                module = block.module
            elif block.described or block.is_heading:
                before = ""
            elif not block.is_code:
                before = block.text
                if kind == _PAGE:
                    self._mention(block.text, module, source)
            else:
                first = len(code.lines)
                if code.add(without_prompts(block.text)):
                    places.append((first, block, before))
                before = ""
        self._descriptions.end_page()
        if not places:
            return
        used: dict[int, dict[str, Use]] = defaultdict(dict)
        for use in code.uses(is_complete=False):
            place = max((n for n, (first, _, _) in enumerate(places) if first < use.line), default=0)
            if not use.fails and (use.is_call or use.path not in used[place]):
                used[place][use.path] = use
        slicer = Slicer(code.body, code.lines, in_functions=False)
        imports = imports_of(code.body)
        for place, uses in used.items():
            _, block, introduction = places[place]
            whole = _whole(block.text, imports)
            for path, use in uses.items():
                text = whole or slicer.slice(use.line, MAX_EXAMPLE)
                if text and path != owner:
                    said = _end(plain(introduction), MAX_INTRODUCTION) if kind == _PAGE else ""
                    self._add(path, _Candidate(kind, not use.is_call, len(uses), len(text), text, source, said))

    def _file(self, file: SourceText, kind: int) -> None:
        if self._package not in file.text or (kind == _TEST and not self._may_serve(file.text)):
            return
        code = Code(self._names, self._conventions)
        if not code.add(file.text):
            return
        slicer = Slicer(code.body, code.lines, in_functions=kind == _TEST)
        source = f"{file.name} of {self._of}"
        cut: dict[int, str | None] = {}
        for use in code.uses(is_complete=True):
            if use.fails or (kind == _TEST and self._is_served(use.path)):
                continue
            if use.line not in cut:
                cut[use.line] = slicer.slice(use.line, MAX_EXAMPLE)
            if (text := cut[use.line]) is not None:
                self._add(use.path, _Candidate(kind, not use.is_call, 0, len(text), text, source))

    def _may_serve(self, text: str) -> bool:
        """Whether a test has the name of an object that needs an example."""
        words = set(_WORD.findall(text)) & self._unserved.keys()
        for word in words:
            self._unserved[word] = {path for path in self._unserved[word] if not self._is_served(path)}
        return any(self._unserved[word] for word in words)

    def _is_served(self, path: str) -> bool:
        """Whether an object needs no example from tests."""
        found = self._candidates.get(path, ())
        return (
            len(found) >= _ENOUGH_OF_TESTS
            or any(one.kind != _TEST for one in found)
            or has_example(self._objects[path].doc)
        )

    def _add(self, path: str, candidate: _Candidate) -> None:
        found = self._candidates[path]
        found.append(candidate)
        if len(found) > 2 * _MOST_CANDIDATES:
            found.sort()
            del found[_MOST_CANDIDATES:]

    def _mention(self, text: str, module: str, source: str) -> None:
        items = list(self._names.mentioned(text, module))
        if not items:
            return
        said = plain(text)
        if len(said) < _SHORTEST_MENTION or said.endswith(":"):  # what follows is not part of it
            return
        for item in items:
            names = item.names or {item.path}
            self._mentions[item.path].append((len(items), Mention(excerpt(said, names, MAX_MENTION), source)))


def has_example(doc: str) -> bool:
    """Whether a docstring has code in it."""
    return _HAS_EXAMPLE.search(doc) is not None


def _chosen(candidates: Iterable[_Candidate], *, has_own: bool) -> Iterator[Example]:
    """The best, and a second one from elsewhere; where the docstring has its own, only one more from the pages."""
    most, seen = 1 if has_own else _MOST, set[str]()
    for one in sorted(candidates):
        is_needed = one.kind in (_PAGE, _FILE) or (not has_own and not seen)
        if len(seen) < most and is_needed and one.code not in seen:
            seen.add(one.code)
            yield Example(one.code, one.source, one.introduction)


def _whole(text: str, imports: Mapping[str, str]) -> str:
    """A block with the imports that it needs of the page; "" if that is too long."""
    plain_code = without_prompts(text)
    try:
        body = ast.parse(plain_code).body
    except SyntaxError:
        return ""
    own = imports_of(body).keys()
    wanted = sorted({name for statement in body for name in needed(statement)} - own)
    before = list(dict.fromkeys(imports[name] for name in wanted if imports.get(name)))
    prompt = ">>> " if plain_code != text and text.lstrip().startswith(">>>") else ""
    whole = "\n".join([*(prompt + line for line in before), text])
    return whole if len(whole) <= MAX_EXAMPLE and whole.count("\n") < _MOST_LINES else ""


def _end(text: str, most: int) -> str:
    """The last sentences of a paragraph."""
    kept = ""
    for sentence in reversed(re.split(r"(?<=[.!?])\s+", text)):
        if len(kept) + len(sentence) + 1 > most:
            break
        kept = f"{sentence} {kept}".strip()
    return kept
