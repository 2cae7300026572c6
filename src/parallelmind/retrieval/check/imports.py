"""Imports: which names they bind to what, and whether the version has it."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from parallelmind.retrieval.check.values import Thing, Value

if TYPE_CHECKING:
    from parallelmind.retrieval.check.expressions import Expressions


def bind_import(at: Expressions, node: ast.Import) -> None:
    """`import a.b` binds a, `import a.b as c` binds c to a.b."""
    for alias in node.names:
        package = alias.name.partition(".")[0]
        value: Value = None
        if at.judge.knows(package):
            module = Thing(package, alias.name)
            absent = at.judge.use(module, alias, at.silent).status == "absent"
            value = None if absent else module if alias.asname else Thing(package, package)
        at.scope.bind(alias.asname or package, value)


def bind_import_from(at: Expressions, node: ast.ImportFrom) -> None:
    """`from a import b as c`; relative imports are of the code's own package, and not judged."""
    package = (node.module or "").partition(".")[0]
    module = Thing(package, node.module or "") if not node.level and at.judge.knows(package) else None
    if module is not None and at.judge.use(module, node, at.silent).status == "absent":
        module = None
    for alias in node.names:
        if alias.name == "*":
            _bind_all(at, module)
            continue
        value: Value = None
        if module is not None and alias.name not in at.survey.touched:
            found = Thing(package, f"{module.name}.{alias.name}")
            value = None if at.judge.use(found, alias, at.silent).status == "absent" else found
        at.scope.bind(alias.asname or alias.name, value)


def _bind_all(at: Expressions, module: Thing | None) -> None:
    """Names from before may be others now, if the module has them too."""
    at.scope.stars.append(module)
    at.scope.names.unset = None
    for name in list(at.scope.ever):
        if module is None or at.judge.verdict(Thing(module.package, f"{module.name}.{name}")).status != "absent":
            at.scope.bind(name, None)
