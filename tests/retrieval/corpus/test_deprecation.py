from __future__ import annotations

import textwrap

import pytest

from parallelmind.retrieval.corpus.deprecation import deprecation_of, in_documentation
from parallelmind.retrieval.corpus.objects import PackageObject


def said(code: str = "", doc: str = "", deprecated: str = "") -> str:
    code = textwrap.dedent(code)
    return deprecation_of(PackageObject(path="p.f", type="function", code=code, doc=doc, deprecated=deprecated))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ('@deprecated("Use g.")\ndef f(): ...', "Use g."),
        ('@utils.deprecated(reason="gone", version="1.2")\nclass F: ...', "gone; version: 1.2"),
        ("@deprecate\ndef f(): ...", "deprecated"),
        ('@_api.deprecated("3.5", alternative="g")\ndef f(): ...', "3.5; alternative: g"),
        ('@deprecate_kwarg(old_arg_name="a")\ndef f(): ...', ""),
        ('@deprecate_nonkeyword_arguments(version="3")\ndef f(): ...', ""),
        ('def f():\n    """D."""\n    warnings.warn("f is " "old", DeprecationWarning, 2)\n    return 1', "f is old"),
        ('def f():\n    warnings.warn(f"{x} is old", category=FutureWarning)', "… is old"),
        ('def f():\n    message = "f is old"\n    warn(message, DeprecationWarning)', "f is old"),
        ('def f():\n    warnings.warn("f {} old".format("is"), DeprecationWarning)', "f {} old"),
        ('def f():\n    deprecate("f", 12, action="Use g.")', "f; Use g."),
        ('def f():\n    _deprecate_positional_args(f)', ""),
        ('def f(a=None):\n    if a:\n        warnings.warn("a is old", DeprecationWarning)', ""),
        ('def f():\n    warnings.warn("careful", UserWarning)', ""),
        ('class F:\n    def __init__(self):\n        warnings.warn("F is old", DeprecationWarning)', "F is old"),
        ('class F:\n    def g(self):\n        warnings.warn("g is old", DeprecationWarning)', ""),
        ("def f(: deprecated", ""),
        ("x = 'deprecated'", ""),
    ],
)  # fmt: skip
def test_by_code(code: str, words: str) -> None:
    assert said(code) == words
    assert said(textwrap.indent(code, "    ")) == words


@pytest.mark.parametrize(
    ("doc", "words"),
    [
        ("F.\n\n.. deprecated:: 1.2\n    Use g,\n    it holds.\n\nMore.", "Deprecated since 1.2: Use g, it holds."),
        ("F.\n\n.. deprecated:: 1.2", "Deprecated since 1.2"),
        ("Deprecated: use g.", "Deprecated: use g."),
        ("**Deprecated** since 2.0.\n\nMore.", "Deprecated** since 2.0."),
        ("F.\n\nDEPRECATED, see g\nand h.\n\nMore.", "DEPRECATED, see g and h."),
        ("F.\n\nParameters\n----------\na : int\n    .. deprecated:: 1.2\n        Not used.", ""),
        ("F.\n\nArgs:\n    deprecated: Whether it is.", ""),
        ("F.\n\n.. deprecated:: 1.2\n   Passing a list is deprecated.", ""),
        ("F.\n\n.. deprecated:: 1.2 *convert*", ""),
        ("Deprecated features are shown by it.", ""),
        ("Whether it is deprecated.", ""),
    ],
)
def test_by_documentation(doc: str, words: str) -> None:
    assert " ".join(in_documentation(doc).split()) == words


def test_a_directive_that_speaks_of_something_else() -> None:
    doc = "F.\n\n.. deprecated:: 18.2.0 ``__lt__`` and ``__gt__`` now raise a warning."
    assert in_documentation(doc, {"f"}) == ""
    assert in_documentation(doc.replace("__lt__", "f"), {"f"}) != ""
    assert in_documentation("F.\n\n.. deprecated:: 1.25\n    `p.f` is gone.", {"f"}) != ""


def test_what_the_running_package_says_comes_first() -> None:
    assert said('@deprecated("by code")\ndef f(): ...', "Deprecated: by doc.", "by\n attribute") == "by attribute"
    assert said('@deprecated("by code")\ndef f(): ...', "Deprecated: by doc.") == "by code"
