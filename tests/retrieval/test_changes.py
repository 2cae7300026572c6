"""What changed between versions, and what takes the place of what is gone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from parallelmind.retrieval.changes import Change, compare, signature_changes
from parallelmind.retrieval.corpus_rows import CorpusRow
from parallelmind.retrieval.renames import RenameTable, _Removal
from parallelmind.retrieval.replacement import find_replacement
from parallelmind.retrieval.store import CorpusStore
from tests.retrieval.small_corpus import row, write_version

TABLE = RenameTable({}, {}, {"box.saw": _Removal("2", "box.tools.cut")})
EITHER, KEYWORD = 1, 3
TAPE = (("a", EITHER, False), ("b", EITHER, True), ("c", KEYWORD, False))
OLD = [
    row("box", "Boxes.", kind="module"),
    row("box.Crate", "A crate.", kind="class"),
    row("box.Crate.dump", "Write it.", kind="method", deprecated="The `dump` method is deprecated; use `model_dump`."),
    row("box.Crate.lid", "Its lid.", kind="property"),
    row("box.impl.stack", "Put one on another.", "box.stack", "box.pile"),
    row("box.weigh", "Weigh a parcel in grams, to the last one."),
    row("box.number", "", kind="class", home="builtins.int"),
    row("box.Inf", "", kind="attribute"),
    row("box.saw", "Cut a box."),
    row("box.burn", "Burn a box."),
    row("box.old", "Old things.", kind="module"),
    row("box.old.thing", "A thing."),
    row("box.tape", "Tape it.", signature="(a, b=1, *, c)", parameters=TAPE),
    row("box.glue", "Glue it."),
]  # fmt: skip
NEW = [
    row("box", "Boxes.", kind="module"),
    row("box.Crate", "A crate.", kind="class"),
    row("box.Crate.model_dump", "Write it.", kind="method"),
    row("box.Crate.lid", "Its lid.", kind="property"),
    row("box.pile", "Put one on another, well."),
    row("box.scales", "Scales.", kind="module"),
    row("box.scales.weight", "Weigh a parcel in grams, to the last one."),
    row("box.inf", "", kind="attribute"),
    row("box.tools", "Tools.", kind="module"),
    row("box.tools.cut", "Cut."),
    row("box.tape", "Tape it.", signature="(b=2, *, d)", parameters=(("b", KEYWORD, True), ("d", KEYWORD, False))),
    row("box.glue", "Glue it.", deprecated="Use tape."),
]  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CorpusStore]:
    for version, rows in (("1", OLD), ("2", NEW)):
        write_version(tmp_path / "corpora", "box", version, rows)
    with contextlib.closing(CorpusStore(tmp_path / "corpora", index_path=tmp_path / "index")) as store:
        yield store


def test_a_version_against_itself(store: CorpusStore) -> None:
    index = store.index("box", "1")
    assert list(compare(index, index, TABLE)) == []


def test_all_kinds(store: CorpusStore) -> None:
    found = {change.name: change for change in compare(store.index("box", "1"), store.index("box", "2"), TABLE)}
    shown = {name: (change.kind, change.new_name) for name, change in found.items()}
    assert shown == {
        "box.Crate.dump": ("renamed", "box.Crate.model_dump"),
        "box.weigh": ("renamed", "box.scales.weight"),
        "box.number": ("renamed", "int"),
        "box.Inf": ("renamed", "box.inf"),
        "box.saw": ("renamed", "box.tools.cut"),
        "box.burn": ("removed", ""),
        "box.old": ("removed", ""),  # and what is in it is not told apart
        "box.tape": ("signature", ""),
        "box.glue": ("deprecated", ""),
        "box.scales": ("added", ""),
        "box.tools": ("added", ""),
    }
    assert "use `model_dump`" in found["box.Crate.dump"].evidence
    assert "release notes" in found["box.saw"].evidence
    assert found["box.glue"].evidence == "Use tape."
    assert found["box.burn"].evidence == "box, as imported with Python 3.11.7, has no burn."
    assert "box.old.thing" not in found
    assert "box.inf" not in found  # it takes the place of another


def test_another_name_of_the_same_object(store: CorpusStore) -> None:
    found = find_replacement(store.index("box", "2"), "box.stack", TABLE, store.index("box", "1"))
    assert found is not None
    assert (found.name, found.evidence) == ("box.pile", "In box 1 it is the same object as box.stack.")


def test_nothing_is_made_up(store: CorpusStore) -> None:
    new, old = store.index("box", "2"), store.index("box", "1")
    assert find_replacement(new, "box.burn", TABLE, old) is None
    # What is advised must be there, must not be deprecated itself, and is not what is gone.
    for words in ("use box.burn instead", "use `ashes` instead", "use glue instead", "use `Crate.dump`"):
        assert find_replacement(new, "box.burn", TABLE, old, words) is None, words


@pytest.mark.parametrize(
    "words",
    [
        "use `tape` instead",
        "Use :func:`box.tape` instead.",
        "Use :func:`~box.tape` instead.",
        "burn is deprecated in favor of tape",
        "burn has been replaced by box.tape.",
        "since 2.0; alternative: tape",
        "See `tape()`.",
    ],
)
def test_advice_is_understood(store: CorpusStore, words: str) -> None:
    found = find_replacement(store.index("box", "2"), "box.burn", TABLE, store.index("box", "1"), words)
    assert found is not None
    assert found.name == "box.tape"
    assert words in found.evidence


def test_how_parameters_differ(store: CorpusStore) -> None:
    before = next(item for item in OLD if item.path == "box.tape")
    after = next(item for item in NEW if item.path == "box.tape")
    assert signature_changes(before, after) == [
        "a is gone",
        "b is given by name only",
        "c is gone",
        "d is new, and must be given",
        "the default of b is 2, was 1",
    ]
    unknown = CorpusRow(path="box.tape", doc="")
    assert signature_changes(before, unknown) == signature_changes(unknown, after) == []
    assert signature_changes(before, before) == []


def test_fields_leave_out_what_is_empty() -> None:
    assert Change(kind="added", name="a.b").fields() == {"kind": "added", "name": "a.b"}
