"""What a finding says, and code that is refused."""

from __future__ import annotations

import dataclasses
import time

import pytest

from parallelmind.errors import DataError
from parallelmind.retrieval.changes import Change
from parallelmind.retrieval.check.checker import check_code, imported_names
from parallelmind.retrieval.check.findings import MAX_FINDINGS, Finding
from parallelmind.retrieval.check.source import decode_source
from parallelmind.retrieval.corpus_facts import CorpusFacts
from parallelmind.retrieval.corpus_rows import CorpusRow
from parallelmind.retrieval.facts import Verdict
from parallelmind.retrieval.store import CorpusStore
from tests.retrieval.check.library import VERSIONS, write_library


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> CorpusFacts:
    return CorpusFacts(CorpusStore(write_library(tmp_path_factory.mktemp("library"))))


def only(text: str, facts: CorpusFacts) -> Finding:
    [finding] = check_code(text, "case.py", facts, VERSIONS).findings
    return finding


def test_an_absent_name(facts: CorpusFacts) -> None:
    found = only("import kiln\nx = '日本', kiln.core.stack([])\n", facts)
    assert (found.line, found.column, found.kind) == (
        2,
        21,
        "absent",
    )  # in characters, of the component that is missing
    assert found.message == "kiln.core.stack does not exist in kiln 2.0.0"
    assert "kiln.core, as imported with Python 3" in found.proof
    assert found.proof.endswith(", has no stack; kiln 1.9.0 had it")
    assert found.replacement == "kiln.tools.stack"
    assert found.text().startswith("case.py:2:21: absent: kiln.core.stack does not exist in kiln 2.0.0 (kiln.core, as")
    assert "; use kiln.tools.stack" in found.text()


def test_a_deprecated_name(facts: CorpusFacts) -> None:
    found = only("import kiln\nkiln.smoke(1)\n", facts)
    assert (found.kind, found.replacement) == ("deprecated", "kiln.fire")
    assert "Deprecated since 1.8" in found.proof
    assert found.replacement_source.startswith("kiln says of kiln.smoke: Deprecated since 1.8")


def test_wrong_arguments(facts: CorpusFacts) -> None:
    found = only("import kiln\nkiln.fire(\n    1,\n    hour=2)\n", facts)
    assert (found.line, found.column) == (4, 5)
    assert found.message == "kiln.fire of kiln 2.0.0 has no parameter 'hour'"
    assert "(pots, hours=1, *, cone=" in found.proof
    assert not found.replacement


def test_a_place_on_another_line_than_its_beginning(facts: CorpusFacts) -> None:
    found = only("import kiln\n(kiln\n  .core\n  .nothing)\n", facts)
    assert (found.line, found.column) == (4, 4)


@dataclasses.dataclass
class Entering:
    """Facts that also know what `__enter__` of kiln.Kiln returns."""

    facts: CorpusFacts
    returns: str

    def lookup(
        self, package: str, version: str, name: str, *, of_instance: bool = False, is_called: bool = False
    ) -> Verdict:
        if name.endswith((".__enter__", ".__aenter__")):
            row = CorpusRow(path="kiln.core.Kiln.__enter__", doc="", type="method", signature=f"() -> {self.returns}")
            return Verdict(status="present", name=name, evidence="", row=row)
        return self.facts.lookup(package, version, name, of_instance=of_instance, is_called=is_called)

    def diff(self, package: str, old: str, new: str) -> list[Change]:
        return []


@pytest.mark.parametrize(("returns", "found"), [("Self", 2), ("T", 2), ("Kiln", 2), ("kiln.core.Kiln", 2), ("str", 0)])
def test_what_a_with_statement_binds(facts: CorpusFacts, returns: str, found: int) -> None:
    code = """
import kiln
with kiln.Kiln(1) as k, open("x") as f:
    k.cool(), f.cool()
async def g():
    async with kiln.Kiln(2) as h:
        h.load()
"""
    assert len(check_code(code, "case.py", Entering(facts, returns), VERSIONS).findings) == found


def test_packages_without_a_version_are_not_judged(facts: CorpusFacts) -> None:
    assert not check_code("import kiln\nkiln.bake()", "case.py", facts, {"glaze": "1.0"}).findings
    assert check_code("import kiln\nfrom a.b import c", "c.py", facts, {}).imported == {"kiln", "a"}
    assert imported_names("import kiln.x\nfrom . import y", "c.py") == {"kiln"}
    assert imported_names("import (", "c.py") == frozenset()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("x =", "line 1 is not code of Python", id="syntax"),
        pytest.param("x = 1\n  y = 2", "line 2 is not code of Python", id="indent"),
        pytest.param("a\0b", "null bytes", id="null"),
        pytest.param("x = '\ud800'", "take these characters out", id="surrogate"),
        pytest.param("(" * 100_000, "too many nested parentheses", id="parentheses"),
        pytest.param("-" * 100_000 + "1", "nested too deeply", id="signs"),
        pytest.param("not " * 1_000 + "1", "nested too deeply", id="nots"),
        pytest.param("a" + ".b" * 20_000, "nested too deeply", id="attributes"),
        pytest.param("lambda:" * 200 + "1", "nested too deeply", id="lambdas"),
        pytest.param("1 if 1 else " * 500 + "1", "nested too deeply", id="conditions"),
        pytest.param("x = 1\n" * 50_000, "at most 200,000", id="length"),
    ],
)
def test_what_cannot_be_checked_is_refused_at_once(text: str, reason: str, facts: CorpusFacts) -> None:
    started = time.process_time()
    with pytest.raises(DataError, match=reason) as error:
        check_code(text, "case.py", facts, VERSIONS, max_characters=200_000)
    assert time.process_time() - started < 5
    assert str(error.value).startswith("case.py")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("import kiln\nx = " + " + ".join(["kiln.LIMIT"] * 600), id="sum"),
        pytest.param("import kiln\nx = kiln" + ".tools.weigh(1)" * 200, id="chain"),
        pytest.param("import kiln\nif a: pass\n" + "elif b: kiln.fire(1)\n" * 600, id="elif"),
        pytest.param("import kiln\nx = " + "[" * 90 + "kiln.LIMIT" + "]" * 90, id="brackets"),
        pytest.param(
            "import kiln\n" + "".join(f"{' ' * depth}if x:\n" for depth in range(90)) + " " * 90 + "y", id="if"
        ),
        pytest.param("变量 = 1\nimport kiln as ｋ\nｋ.fire(变量)", id="letters"),
        pytest.param("", id="empty"),
        pytest.param("\ufeffimport kiln", id="mark"),
    ],
)
def test_what_is_long_but_ordinary_is_checked(text: str, facts: CorpusFacts) -> None:
    assert not check_code(text, "case.py", facts, VERSIONS).findings


def test_many_names_in_many_branches_take_no_time(facts: CorpusFacts) -> None:
    several = "".join(f"elif b: x{place} = kiln.Kiln({place})\n" for place in range(600))
    branches = "".join(f"if b: y{place} = kiln.Kiln({place})\n" for place in range(6_000))
    started = time.process_time()
    assert not check_code(f"import kiln\nif a: pass\n{several}{branches}", "case.py", facts, VERSIONS).findings
    assert time.process_time() - started < 20


def test_after_many_findings_the_rest_is_not_judged(facts: CorpusFacts) -> None:
    code = "import kiln\n" + "".join(f"kiln.nothing{place}\n" for place in range(2 * MAX_FINDINGS))
    assert len(check_code(code, "case.py", facts, VERSIONS).findings) == MAX_FINDINGS


def test_encodings() -> None:
    assert decode_source("# coding: latin-1\nx = 'é'".encode("latin-1"), "a.py").endswith("'é'")
    assert decode_source(b"\xef\xbb\xbfx = 1", "a.py") == "x = 1"
    for content in (b"x = '\xff'", b"# coding: nothing\n"):
        with pytest.raises(DataError, match=r"a\.py is not a text"):
            decode_source(content, "a.py")
