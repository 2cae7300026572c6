"""Examples and mentions: from pages, docstrings and tests, by names that are certain."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import pytest

from parallelmind.retrieval.corpus.narrative.examples import MAX_EXAMPLE, MAX_MENTION, Narrative, SourceText
from parallelmind.retrieval.corpus.narrative.pages import Block, read_page
from parallelmind.retrieval.corpus.narrative.texts import is_wanted
from parallelmind.retrieval.corpus.objects import PackageObject

CODE = "class Kite:\n    def __enter__(self):\n        return self\n"
OBJECTS = {
    "kite": ("module", {"kite"}, "", ""),
    "kite._core.Kite": ("class", {"kite.Kite"}, "A kite.", CODE),
    "kite._core.Kite.fly": ("method", {"kite.Kite.fly"}, "Let it fly.", ""),
    "kite._core.Kite.land": ("method", {"kite.Kite.land"}, "Bring it down.", ""),
    "kite.wind": ("function", {"kite.wind"}, "The wind.\n\n>>> kite.wind()\n3", ""),
    "kite.tail.fly": ("function", {"kite.tail.fly"}, "Tails.", ""),
}


def narrative(texts: Mapping[str, str], docs: Mapping[str, str] | None = None) -> dict[str, PackageObject]:
    objects = {
        path: PackageObject(path=path, type=kind, names=names, doc=(docs or {}).get(path, doc), code=code)
        for path, (kind, names, doc, code) in OBJECTS.items()
    }
    found = Narrative("kite", objects, "kite 1.0")
    found.read([SourceText(name, textwrap.dedent(text)) for name, text in texts.items()])
    found.give()
    return objects


def codes(item: PackageObject) -> list[str]:
    return [one.code for one in item.examples]


PAGE = """
Flying
======

.. currentmodule:: kite

To begin, make a :class:`Kite` and let it go::

    from kite import Kite

    red = Kite("red")

It rises by :meth:`Kite.fly` until the string ends. See `other <https://x.invalid>`_.

.. code-block:: python
   :caption: up

   red.fly(3)

.. code-block:: console

   $ kite.wind
"""


def test_pages() -> None:
    found = narrative({"docs/start.rst": PAGE})
    kite, fly = found["kite._core.Kite"], found["kite._core.Kite.fly"]
    (example,) = kite.examples
    assert example.code == 'from kite import Kite\n\nred = Kite("red")'
    assert example.source == "docs/start.rst of kite 1.0"
    assert example.introduction == "To begin, make a Kite and let it go:"
    assert codes(fly) == ["red.fly(3)"], "the class of red is certain, from the block before"
    said = "It rises by Kite.fly until the string ends. See other."
    assert fly.examples[0].introduction == said
    assert [kite.mentions, fly.mentions] == [(), ()], "what introduces an example is not said twice"
    assert not found["kite.tail.fly"].examples
    assert not found["kite.wind"].examples, "a console is no code of Python"


def test_markdown_and_sessions() -> None:
    page = """
    # Kites

    Ask for `wind()` first, or for `kite.Kite`, not for `fly()` or `anything`.

    ```python
    >>> with kite.Kite("blue") as blue:
    ...     blue.land()
    'down'
    ```
    """
    found = narrative({"README.md": page})
    assert codes(found["kite._core.Kite.land"]) == [
        ">>> with kite.Kite(\"blue\") as blue:\n...     blue.land()\n'down'"
    ], "the class itself says that it is what with binds"
    said = "Ask for wind() first, or for kite.Kite, not for fly() or anything."
    assert found["kite.wind"].mentions[0].text == said
    assert not found["kite.tail.fly"].mentions, "fly may be either of two"
    assert not found["kite._core.Kite.fly"].mentions


def test_tests_give_what_stands_by_itself() -> None:
    tests = """
    import pytest
    from kite import Kite, wind
    from tests.tools import helper

    COLOURS = ["red", "green"]

    class TestKite:
        def test_fly(self):
            unrelated = 3
            one = Kite(COLOURS[0])
            one.name = "Al"
            assert unrelated
            assert one.fly(wind()) == 3

    def test_land(made):
        made.land()
        helper(Kite("no")).land()

    def test_fails():
        with pytest.raises(ValueError):
            Kite("red").land(-1)
    """
    found = narrative({"tests/test_kite.py": tests})
    assert codes(found["kite._core.Kite.fly"]) == [
        'from kite import Kite\nfrom kite import wind\nCOLOURS = ["red", "green"]\n\n'
        'one = Kite(COLOURS[0])\none.name = "Al"\nassert one.fly(wind()) == 3'
    ]
    assert not found["kite._core.Kite.land"].examples, "fixtures, helpers of the tests and failures are no examples"
    assert not found["kite.wind"].examples, "it has one in its own documentation"


def test_derived_classes_and_overriding() -> None:
    code = """
    from kite import Kite

    class Own(Kite):
        size = 3

    class Other(Kite):
        def land(self):
            return 1

    Own("a").fly(1)
    Other("b").land()
    """
    found = narrative({"examples/own.py": code})
    assert codes(found["kite._core.Kite.fly"]) == [
        'from kite import Kite\n\nclass Own(Kite):\n    size = 3\nOwn("a").fly(1)'
    ]
    assert not found["kite._core.Kite.land"].examples


def test_other_docstrings_and_the_order_of_sources() -> None:
    docs = {"kite.tail.fly": "Tails.\n\n>>> kite.Kite('x').land()\n"}
    test = "from kite import Kite\n\ndef test_it():\n    Kite('t').land()\n"
    found = narrative({"tests/test_it.py": test}, docs)
    (example,) = found["kite._core.Kite.land"].examples
    assert (example.code, example.source) == (">>> kite.Kite('x').land()", "the documentation of kite.tail.fly")


def test_what_is_not_certain_or_too_long_is_no_example() -> None:
    page = "Text.\n\n::\n\n    k = kite.Kite('a')\n    if x:\n        k = other()\n    k.fly()\n"
    assert not narrative({"docs/a.rst": page})["kite._core.Kite.fly"].examples
    long = "Text.\n\n::\n\n    kite.wind(" + ", ".join(["'long'"] * 200) + ")\n"
    assert not narrative({"docs/a.rst": long})["kite.wind"].examples
    broken = "Text.\n\n::\n\n    kite.wind(\n\n::\n\n    kite.wind(2)\n"
    assert codes(narrative({"docs/a.rst": broken})["kite.wind"]) == ["kite.wind(2)"]


def test_bounds() -> None:
    page = "".join(f"Of :func:`kite.wind` number {n}. {'Words are long. ' * 60}\n\n" for n in range(9))
    page += "".join(f"::\n\n    kite.wind({n})\n\nNext.\n\n" for n in range(9))
    item = narrative({"docs/a.rst": page}, {"kite.wind": "The wind."})["kite.wind"]
    assert [len(item.examples), len(item.mentions)] == [2, 2]
    assert all(len(one.code) <= MAX_EXAMPLE for one in item.examples)
    assert all(len(one.text) <= MAX_MENTION for one in item.mentions)


ODD = ["(" * 5000, "    " * 200 + "x", "`" * 3000, ":func:`" * 2000, ".. a::\n" * 999, "```\n>>> (\n"]


@pytest.mark.parametrize("text", ODD)
def test_odd_pages(text: str) -> None:
    narrative({"docs/a.rst": text, "docs/b.md": text, "tests/test_a.py": f"kite\n{text}"})


def test_nothing_is_included() -> None:
    page = ".. include:: /etc/passwd\n\n.. literalinclude:: secret.py\n\n.. raw:: html\n   :file: secret\n\nText.\n"
    assert read_page("a.rst", page) == [Block("Text.")]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("docs/quickstart.rst", True), ("README.md", True), ("doc/source/api.md", True), ("tests/test_a.py", True),
        ("kite/tests/test_a.py", True), ("examples/plot.py", True), ("docs/changes.rst", False),
        ("kite/core.py", False), ("doc/release/notes.rst", False), ("docs/_templates/a.rst", False),
    ],
)  # fmt: skip
def test_which_files_are_read(name: str, wanted: bool) -> None:
    assert is_wanted(name) is wanted


REFERENCE = """
=========
Reference
=========

.. module:: kite

.. class:: Kite(colour)
           Kite()

   What children let rise on a windy day, **made** of paper.

   .. method:: land(slowly=True)
      :since: 2

      Wind the string up until it is on the ground.

.. autofunction:: wind

``kite.tail.fly``
-----------------

How ribbons behave at the end.

More of it.
"""


def test_what_reference_pages_say_is_the_documentation_of_what_has_none() -> None:
    found = narrative({"docs/api.rst": REFERENCE}, {"kite._core.Kite.land": "", "kite.tail.fly": ""})
    land, kite, fly = (found[path] for path in ("kite._core.Kite.land", "kite._core.Kite", "kite.tail.fly"))
    assert (land.doc, land.source) == ("Wind the string up until it is on the ground.", "pages")
    assert (kite.doc, kite.source) == ("A kite.", "static")
    assert kite.mentions[0].text == "What children let rise on a windy day, made of paper."
    assert kite.mentions[0].source == "docs/api.rst of kite 1.0"
    assert fly.doc == "How ribbons behave at the end. More of it.", "below a heading that is its name"
    assert found["kite.wind"].source == "static", "a directive without a text says nothing"


def test_markdown_headings() -> None:
    page = "# Kites\n\nOn kites.\n\n## The `Kite.land` method\n\nBrings it back safely.\n\n## Other\n\nThings.\n"
    found = narrative({"docs/api.md": page}, {"kite._core.Kite.land": ""})
    assert found["kite._core.Kite.land"].doc == "Brings it back safely."


def test_uses_are_counted_by_text() -> None:
    page = "Call ``Kite()`` and then `wind()`.\n\n    kite.Kite().land()\n"
    test = "import kite\n\ndef test() -> None:\n    red = kite.Kite()\n    red.land()\n    red.land()\n    red.fly()\n"
    found = narrative({"docs/a.rst": page, "tests/test_a.py": test, "tests/test_b.py": test})
    uses = {path.removeprefix("kite."): item.uses for path, item in found.items()}
    shared = {"tail.fly": 1, "_core.Kite.fly": 1}
    assert uses == {"kite": 0, "_core.Kite": 3, "_core.Kite.land": 3, "wind": 1} | shared


def test_tables_and_sentences_that_lead_on_are_no_mentions() -> None:
    table = "=========== =====\n``Kite()``  paper and two sticks of wood\n=========== =====\n"
    page = f"{table}\nThe kites that children like most are made by `kite.Kite()`, such as:\n\n* red ones\n"
    assert narrative({"docs/a.rst": page})["kite._core.Kite"].mentions == ()
