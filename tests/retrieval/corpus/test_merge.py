"""One row per object, with the documentation the running package has."""

from __future__ import annotations

from parallelmind.retrieval.corpus.merge import Coverage, add_newdocs, add_runtime
from parallelmind.retrieval.corpus.objects import PackageObject
from parallelmind.retrieval.corpus.rows import Origin, docstring_rows, source_rows


def found(path: str, *names: str, kind: str = "function", doc: str = "", code: str = "x") -> PackageObject:
    return PackageObject(path=path, type=kind, doc=doc, names=set(names or (path,)), code=code)


def living(path: str, *names: str, kind: str = "function", doc: str = "", signature: str = "") -> PackageObject:
    return PackageObject(
        path=path, type=kind, doc=doc, names=set(names or (path,)), source="runtime", signature=signature
    )


def test_the_running_package_completes_the_files() -> None:
    static = {
        "p._m.f": found("p._m.f", "p.f", doc="As  written."),
        "p._m.g": found("p._m.g", "p.g", doc="Template {klass}."),
        "p._m.h": found("p._m.h", "p.h"),
        "p.only": found("p.only", doc="Not reached at run time."),
    }
    table, coverage = add_runtime(
        static,
        [
            living("p._m.f", "p.f", "p.more.f", doc="As written."),
            living("p._m.g", "p.g", doc="Template DataFrame."),
            living("p._m.h", "p.h", doc="Made by a decorator.", signature="(*args, **kwargs)"),
            living("p.new", doc="new(x)\n\nCompiled."),
        ],
    )
    assert {path: (item.doc, item.source) for path, item in table.items()} == {
        "p._m.f": ("As  written.", "static"),
        "p._m.g": ("Template DataFrame.", "runtime"),
        "p._m.h": ("Made by a decorator.", "runtime"),
        "p.only": ("Not reached at run time.", "static"),
        "p.new": ("new(x)\n\nCompiled.", "runtime"),
    }
    assert table["p._m.f"].names == {"p.f", "p.more.f"}
    assert table["p.new"].signature == "(x)"
    assert coverage == Coverage(runtime_documented=4, static_documented=2)


def test_two_names_the_files_cannot_connect_become_one_row() -> None:
    static = {
        "p.fast.array": found("p.fast.array", "p.fast.array", kind="attribute", code=""),
        "p.core.array": found("p.core.array", "p.core.array", doc="Create."),
    }
    table, _ = add_runtime(static, [living("p.array", "p.array", "p.fast.array", "p.core.array", doc="Create.")])
    assert {path: item.names for path, item in table.items()} == {
        "p.core.array": {"p.array", "p.fast.array", "p.core.array"}
    }


def test_a_name_belongs_to_the_object_it_reaches_at_run_time() -> None:
    static = {
        "p.a.f": found("p.a.f", "p.a.f", "p.f", doc="For Python 2."),
        "p.b.f": found("p.b.f", "p.b.f", doc="For Python 3."),
    }
    table, _ = add_runtime(
        static, [living("p.a.f", doc="For Python 2."), living("p.b.f", "p.b.f", "p.f", doc="For Python 3.")]
    )
    assert table["p.a.f"].names == {"p.a.f"}
    assert table["p.b.f"].names == {"p.b.f", "p.f"}


def test_a_module_and_a_function_of_the_same_name() -> None:
    static = {"p.norm": found("p.norm", kind="module", doc="The module.")}
    table, _ = add_runtime(static, [living("p.norm.norm", "p.norm", doc="The function.")])
    assert {(item.type, item.doc) for item in table.values()} == {("function", "The function.")}


def test_newdocs_of_members_reach_every_name_of_the_class() -> None:
    static = {"p.core.nd": found("p.core.nd", "p.core.nd", "p.nd", kind="attribute", code="")}
    docs = {
        "p.core.nd": "nd(shape)\n\nAn array.",
        "p.core.nd.shape": "Its shape.",
        "p.core.nd.sum": "a.sum(axis=None)\n\nThe sum.",
        "p.core.nd.__array__": "Private.",
    }
    table = add_newdocs(static, docs, lambda name: name)
    assert {path: (item.type, item.names) for path, item in table.items()} == {
        "p.core.nd": ("class", {"p.core.nd", "p.nd"}),
        "p.core.nd.shape": ("attribute", {"p.core.nd.shape", "p.nd.shape"}),
        "p.core.nd.sum": ("method", {"p.core.nd.sum", "p.nd.sum"}),
    }
    assert table["p.core.nd.sum"].signature == "(axis=None)"
    assert all(item.source == "add_newdoc" for item in table.values())
    assert table["p.core.nd"].members == {"shape", "sum"}


def test_rows() -> None:
    origin = Origin(distribution="d", version="1", wheel="d.whl", wheel_sha256="ab")
    table = {
        "p._m.f": found("p._m.f", "p.f", "p.sub.f", "p.g", doc="D \ud800", code="def f(): ..."),
        "p._m.x": found("p._m.x", "p._m.x"),
        "p.c": found("p.c", code=""),
    }
    rows = list(docstring_rows(table, origin))
    assert [(row.path, row.aliases, row.doc) for row in rows] == [
        ("p._m.f", ("p.f", "p.g", "p.sub.f"), "D ?"),
        ("p.c", (), ""),
    ]
    assert [(row.path, row.doc) for row in source_rows(table, origin)] == [("p._m.f", "def f(): ...")]
