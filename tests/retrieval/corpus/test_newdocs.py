"""Every shape of `add_newdoc`, with its text."""

from __future__ import annotations

from pathlib import Path

from parallelmind.retrieval.corpus.newdocs import find_newdocs
from tests.retrieval.corpus.wheels import write_package

FILES = {
    "num/__init__.py": "",
    "num/like.py": 'LIKE = "like : array"\n',
    "num/docs.py": '''
        import textwrap
        from .like import LIKE

        TEXT = "part " "and part"
        subst = {"PARAMS": "x : input", "OTHER": textwrap.dedent("""\\
            other""").strip()}

        add_newdoc("num.core", "array", """
            array(object)

              Indented.
            """)
        add_newdoc("num.core", "ndarray", ("shape", "Its shape."))
        add_newdoc("num.core", "ndarray", [("T", "Transposed."), ("size", """Its size."""), odd])
        docs.add_newdoc("num.core", "sum", TEXT + "!")
        add_newdoc("num.core", "zeros", "zeros(n)\\n${LIKE}".replace("${LIKE}", LIKE))
        add_newdoc("num.core", "ufunc", "f(x)\\n\\n$PARAMS and $OTHER, not $UNKNOWN")
        add_newdoc("num.core", "templated", "%s of %%s" % compute())
        add_newdoc("num.core", name, "computed name")
        add_newdoc("num.core", "computed", make_doc())
        add_newdoc("elsewhere", "array", "of another package")
        add_newdoc()
        add_newdoc_for_scalar_type("int8", [], "Signed byte.")
        ''',
    "num/special/_add_newdocs.py": 'def add_newdoc(name, doc): pass\nadd_newdoc("airy", "Airy functions. 函数")\n',
    "num/broken.py": "add_newdoc('num', 'x', 'y'\n",
}


def test_every_shape(tmp_path: Path) -> None:
    assert find_newdocs(write_package(tmp_path, FILES), "num") == {
        "num.core.array": "array(object)\n\n  Indented.",
        "num.core.ndarray.shape": "Its shape.",
        "num.core.ndarray.T": "Transposed.",
        "num.core.ndarray.size": "Its size.",
        "num.core.sum": "part and part!",
        "num.core.zeros": "zeros(n)\nlike : array",
        "num.core.ufunc": "f(x)\n\nx : input and other, not $UNKNOWN",
        "num.core.templated": "%s of %%s",
        "num.int8": "Signed byte.",
        "num.special.airy": "Airy functions. 函数",
    }


def test_texts_that_grow_without_end(tmp_path: Path) -> None:
    doubling = "".join(f"t{n + 1} = t{n} + t{n}\n" for n in range(60))
    text = (
        f't0 = "0123456789"\n{doubling}add_newdoc("num", "x", t60)\nloop = loop + "a"\nadd_newdoc("num", "y", loop)\n'
    )
    assert find_newdocs(write_package(tmp_path, {"num/__init__.py": text}), "num") == {}
