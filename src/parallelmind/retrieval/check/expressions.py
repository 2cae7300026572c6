"""Expressions: what their values are known to be, while the uses in them are judged."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager

from parallelmind.retrieval.check.guards import ALL, NONE, Kind, asks_for_versions
from parallelmind.retrieval.check.judge import Judge
from parallelmind.retrieval.check.scopes import Scope, arguments_of, resolve
from parallelmind.retrieval.check.source import chained
from parallelmind.retrieval.check.survey import Survey, bound_names
from parallelmind.retrieval.check.values import NOTHING, Instance, Names, Thing, Value

_OPTIONAL = frozenset(("Optional", "Annotated", "Final", "ClassVar"))


class Expressions:
    """Goes through the expressions of a file, in the scope that is set."""

    def __init__(self, judge: Judge, survey: Survey) -> None:
        self.judge, self.survey = judge, survey
        self.scope = Scope(None, set())
        self.silent: frozenset[Kind] = survey.silent

    @contextmanager
    def saying_nothing_of(self, kinds: frozenset[Kind]) -> Iterator[None]:
        """Findings of these kinds are not told of what is gone through meanwhile."""
        before, self.silent = self.silent, self.silent | kinds
        try:
            yield
        finally:
            self.silent = before

    @contextmanager
    def within(self, scope: Scope) -> Iterator[None]:
        """What is gone through meanwhile stands in another scope."""
        before, self.scope = self.scope, scope
        try:
            yield
        finally:
            self.scope = before

    def value(self, node: ast.expr | None) -> Value:
        """Go through an expression; returns what is known of its value."""
        if node is None:
            return None
        links = []
        while (before := chained(node)) is not None and not isinstance(node, ast.Await):
            links.append(node)
            node = before
        value = self._first(node)
        while links:
            link = links.pop()
            value = self._link(link, value, is_called=bool(links) and isinstance(links[-1], ast.Call))
        return value

    def annotation(self, node: ast.expr | None) -> Value:
        """What an annotation says about the value of its variable."""
        if node is None:
            return None
        is_evaluated = not self.survey.lazy_annotations
        with self.saying_nothing_of(NONE if is_evaluated else ALL):
            self.value(node)
        with self.saying_nothing_of(ALL):
            return self._meant(node)

    def name(self, name: str) -> Value:
        return resolve(self.scope, name, self.survey, self._is_exported)

    def bind_target(self, target: ast.expr, value: Value) -> None:
        """Give a target of an assignment its value; one that takes values apart gets unknown ones."""
        if isinstance(target, ast.Name):
            self.scope.bind(target.id, value)
        elif isinstance(target, ast.Tuple | ast.List):
            for one in target.elts:
                self.bind_target(one, None)
        elif isinstance(target, ast.Starred):
            self.bind_target(target.value, None)
        else:
            self.value(target.value if isinstance(target, ast.Attribute | ast.Subscript) else target)
            if isinstance(target, ast.Subscript):
                self.value(target.slice)

    def later(self, body: ast.Lambda) -> None:
        """Go through a lambda when everything around it has its values."""
        for default in (*body.args.defaults, *body.args.kw_defaults):
            self.value(default)
        names = {one.arg for one in arguments_of(body)}
        scope = Scope(self.scope, names | bound_names([body.body]))
        silent = self.silent

        def run() -> None:
            for name in names:
                scope.bind(name, None)
            with self.within(scope), self.saying_nothing_of(silent):
                self.value(body.body)

        scope.later.append(run)

    def _first(self, node: ast.expr) -> Value:
        """An expression that does not go on from another one."""
        match node:
            case ast.Name():
                return self.name(node.id)
            case ast.Constant():
                return NOTHING if node.value is None else None
            case ast.Await():
                return self.value(node.value)
            case ast.NamedExpr():
                value = self.value(node.value)
                self.scope.bind(node.target.id, value)
                return value
            case ast.Lambda():
                self.later(node)
            case ast.BoolOp():
                self._one_after_another(node.values)
            case ast.IfExp():
                self.value(node.test)
                with self.saying_nothing_of(ALL if asks_for_versions(node.test, self.survey.flags) else NONE):
                    self.value(node.body)
                    self.value(node.orelse)
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp():
                self._comprehension(node.generators, [node.elt])
            case ast.DictComp():
                self._comprehension(node.generators, [node.key, node.value])
            case _:
                self._parts(node)
        return None

    def _parts(self, node: ast.AST) -> None:
        for part in ast.iter_child_nodes(node):
            if isinstance(part, ast.expr):
                self.value(part)
            elif isinstance(part, ast.keyword):
                self.value(part.value)

    def _one_after_another(self, values: list[ast.expr]) -> None:
        """Of `a and b`, b may run only where a says that there is something to run."""
        kinds: frozenset[Kind] = NONE
        for one in values:
            with self.saying_nothing_of(kinds):
                self.value(one)
            if asks_for_versions(one, self.survey.flags):
                kinds = ALL

    def _comprehension(self, generators: list[ast.comprehension], results: list[ast.expr]) -> None:
        self.value(generators[0].iter)
        targets = bound_names([one.target for one in generators])
        before = self.scope
        # As a scope of its own, which sees the names around it as they are now.
        scope = Scope(before, before.own | targets, is_class=True)
        scope.names = Names(before.names)
        scope.forget(targets)
        kinds: frozenset[Kind] = NONE
        with self.within(scope):
            for place, one in enumerate(generators):
                if place:
                    self.value(one.iter)
                for test in one.ifs:
                    self.value(test)
                    kinds |= ALL if asks_for_versions(test, self.survey.flags) else NONE
            with self.saying_nothing_of(kinds):
                for result in results:
                    self.value(result)
        for name in scope.names.changes.keys() - targets:  # by assignment expressions
            before.bind(name, None)

    def _link(self, node: ast.expr, value: Value, *, is_called: bool) -> Value:
        """What an expression goes on from a value; whether what it comes to is called at once."""
        match node:
            case ast.Attribute():
                return self._attribute(node, value, is_called=is_called)
            case ast.Call():
                return self._call(node, value)
            case ast.Subscript():
                self.value(node.slice)
            case ast.BinOp():
                self.value(node.right)
        return None

    def _attribute(self, node: ast.Attribute, value: Value, *, is_called: bool) -> Value:
        if not isinstance(value, Thing | Instance) or node.attr in self.survey.touched:
            return None
        of_instance = isinstance(value, Instance)
        thing = Thing(value.package, f"{value.name}.{node.attr}", bound=of_instance)
        verdict = self.judge.use(
            thing, node, self.silent, of_instance=of_instance, is_called=is_called, ends_with=node.attr
        )
        if verdict.status == "absent" or (of_instance and verdict.status == "unknown"):
            return None
        if of_instance and verdict.row is not None and verdict.row.type not in ("method", "function"):
            return None
        return thing

    def _call(self, node: ast.Call, value: Value) -> Value:
        for argument in node.args:
            self.value(argument.value if isinstance(argument, ast.Starred) else argument)
        for keyword in node.keywords:
            self.value(keyword.value)
        if not isinstance(value, Thing):
            return None
        if isinstance(node.func, ast.Name):
            self.judge.use(value, node.func, self.silent)
        return self.judge.call(value, node, self.silent)

    def _meant(self, node: ast.expr) -> Value:
        """The value of `x: node`."""
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            sides = [self._meant(side) for side in (node.left, node.right)]
            return sides[0] if sides[1] == NOTHING else sides[1] if sides[0] == NOTHING else None
        if isinstance(node, ast.Constant):
            if node.value is None:
                return NOTHING
            if isinstance(node.value, str) and len(node.value) < 200:
                try:
                    return self._meant(ast.parse(node.value.strip(), mode="eval").body)
                except (SyntaxError, ValueError, RecursionError, MemoryError):
                    return None
        if isinstance(node, ast.Subscript):
            is_wrapper = getattr(node.value, "id", getattr(node.value, "attr", "")) in _OPTIONAL
            inner = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) and node.slice.elts else node.slice
            return self._meant(inner) if is_wrapper else None
        value = self.value(node) if isinstance(node, ast.Name | ast.Attribute) else None
        return self.judge.annotated(value) if isinstance(value, Thing) else None

    def _is_exported(self, module: Thing, name: str) -> bool:
        if name.startswith("_"):
            return False
        return self.judge.verdict(Thing(module.package, f"{module.name}.{name}")).status == "present"
