"""Statements: which names have which values after them, in whatever way they are left."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from parallelmind.retrieval.check.expressions import Expressions
from parallelmind.retrieval.check.guards import (
    ALL,
    NONE,
    Kind,
    asks_for_versions,
    caught,
    constant_truth,
    expected,
    is_type_checking,
    marked,
)  # fmt: skip
from parallelmind.retrieval.check.imports import bind_import, bind_import_from
from parallelmind.retrieval.check.scopes import Scope, arguments_of
from parallelmind.retrieval.check.survey import bound_names
from parallelmind.retrieval.check.values import NOTHING, Names, joined

_LEAVING = (ast.Return, ast.Raise, ast.Continue, ast.Break)
_SKIPS = frozenset(("skip", "fail", "exit", "skipTest", "xfail", "_exit"))
_Function = ast.FunctionDef | ast.AsyncFunctionDef


class Statements(Expressions):
    """Goes through the statements of a file."""

    def module(self, tree: ast.Module) -> None:
        """Go through a file, and through the functions in it when the rest is known."""
        scope = Scope(None, bound_names(tree.body))
        with self.within(scope):
            self.block(tree.body)
            while scope.later:
                scope.later.popleft()()

    def block(self, body: Sequence[ast.stmt]) -> bool:
        """Go through statements; whether they are never left at their end."""
        before = self.silent
        try:
            return any(self._statement(statement) for statement in body)  # up to one that leaves
        finally:
            self.silent = before

    def _statement(self, node: ast.stmt) -> bool:
        match node:
            case ast.Import():
                bind_import(self, node)
            case ast.ImportFrom():
                bind_import_from(self, node)
            case ast.Assign():
                value = self.value(node.value)
                for target in node.targets:
                    self.bind_target(target, value)
            case ast.AnnAssign():
                meant = self.annotation(node.annotation)
                if node.value is not None:
                    value = self.value(node.value)
                    self.bind_target(node.target, meant if value in (None, NOTHING) else value)
            case ast.AugAssign():
                self.value(node.value)
                self.bind_target(node.target, None)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self._function(node)
            case ast.ClassDef():
                self._class(node)
            case ast.If():
                return self._if(node)
            case ast.For() | ast.AsyncFor() | ast.While():
                self._loop(node)
            case ast.Try() | ast.TryStar():
                return self._try(node)
            case ast.With() | ast.AsyncWith():
                return self._with(node)
            case ast.Match():
                self._match(node)
            case ast.Delete():
                for target in node.targets:
                    self.bind_target(target, None)
            case _:
                self._parts(node)
                return isinstance(node, _LEAVING) or _is_skip(node)
        return False

    def _function(self, node: _Function) -> None:
        for decorator in node.decorator_list:
            self.value(decorator)
        for default in (*node.args.defaults, *node.args.kw_defaults):
            self.value(default)
        parameters = {one.arg: self.annotation(one.annotation) for one in arguments_of(node)}
        for several in (node.args.vararg, node.args.kwarg):
            if several is not None:
                parameters[several.arg] = None
        self.annotation(node.returns)
        self.scope.bind(node.name, None)
        scope = Scope(self.scope, parameters.keys() | bound_names(node.body))
        silent = self.silent | marked(node.decorator_list)

        def run() -> None:
            for name, value in parameters.items():
                scope.bind(name, value)
            with self.within(scope), self.saying_nothing_of(silent):
                self.block(node.body)

        scope.later.append(run)

    def _class(self, node: ast.ClassDef) -> None:
        for one in (*node.decorator_list, *node.bases, *(keyword.value for keyword in node.keywords)):
            self.value(one)
        scope = Scope(self.scope, bound_names(node.body), is_class=True)
        with self.within(scope), self.saying_nothing_of(marked(node.decorator_list)):
            self.block(node.body)
        self.scope.bind(node.name, None)

    def _ways(self, bodies: Sequence[tuple[Sequence[ast.stmt], frozenset[Kind]]], *, also: bool = False) -> bool:
        """Go through blocks of which one runs, or with `also` perhaps none; whether they are never left."""
        before, left = self.scope.names, []
        for body, kinds in bodies:
            self.scope.names = Names(before)
            with self.saying_nothing_of(kinds):
                if not self.block(body):
                    left.append(self.scope.names)
        self.scope.names = before
        if also:
            left.append(Names(before))
        before.take(left)
        return not left

    def _if(self, node: ast.If) -> bool:
        bodies: list[tuple[Sequence[ast.stmt], frozenset[Kind]]] = []
        kinds: frozenset[Kind] = NONE
        rest: Sequence[ast.stmt] = [node]
        leaves = False
        while len(rest) == 1 and isinstance(rest[0], ast.If):
            one = rest[0]
            with self.saying_nothing_of(kinds):
                self.value(one.test)
            truth = constant_truth(one.test)
            of_versions = asks_for_versions(one.test, self.survey.flags)
            kinds = ALL if of_versions else kinds
            if is_type_checking(one.test):
                self._for_type_checkers(one.body)
            elif truth is not False:
                bodies.append((one.body, kinds))
            leaves |= of_versions and bool(one.body) and _is_left(one.body[-1])
            rest = [] if truth is True else one.orelse
            if truth is True:
                break
        else:
            bodies.append((rest, kinds))
        if leaves:  # what follows runs for some versions only
            self.silent |= ALL
        return self._ways(bodies)

    def _for_type_checkers(self, body: Sequence[ast.stmt]) -> None:
        """Names in stubs need not exist when the code runs."""
        names = bound_names(body)
        with self.saying_nothing_of(ALL):
            self._ways([(body, ALL)])
        for name in names:
            self.scope.bind(name, None)

    def _loop(self, node: ast.For | ast.AsyncFor | ast.While) -> None:
        self.value(node.test if isinstance(node, ast.While) else node.iter)
        targets = [] if isinstance(node, ast.While) else [node.target]
        changed = bound_names([*node.body, *targets])
        self.scope.forget(changed)
        for target in targets:
            self.bind_target(target, None)
        is_never = isinstance(node, ast.While) and constant_truth(node.test) is False
        if not is_never:
            kinds = ALL if isinstance(node, ast.While) and asks_for_versions(node.test, self.survey.flags) else NONE
            self._ways([(node.body, kinds)], also=True)
        self.scope.forget(changed)
        self._ways([(node.orelse, NONE)], also=True)

    def _try(self, node: ast.Try | ast.TryStar) -> bool:
        kinds = caught(node.handlers)
        before = self.scope.names
        changed = bound_names(node.body)
        self.scope.names = Names(before)
        with self.saying_nothing_of(kinds):
            ended = self.block(node.body)
        with self.saying_nothing_of(ALL if kinds else NONE):
            ended = self.block(node.orelse) or ended
        left = [] if ended else [self.scope.names]
        # An exception may come before or after any change.
        for handler in node.handlers:
            self.scope.names = Names(before)
            for name in changed:
                value = joined((before.get(name), self.scope.ever.get(name, NOTHING)))
                self.scope.names.set(name, value)
            with self.saying_nothing_of(ALL if kinds else NONE):
                if handler.type is not None:
                    self.value(handler.type)
                if handler.name:
                    self.scope.bind(handler.name, None)
                if not self.block(handler.body):
                    left.append(self.scope.names)
        self.scope.names = before
        before.take(left)
        if not left:
            self.scope.forget(changed)
        return self.block(node.finalbody) or not left

    def _with(self, node: ast.With | ast.AsyncWith) -> bool:
        kinds: frozenset[Kind] = NONE
        for item in node.items:
            with self.saying_nothing_of(kinds):
                value = self.value(item.context_expr)
            kinds |= expected(item.context_expr)
            if item.optional_vars is not None:
                self.bind_target(item.optional_vars, self.judge.entered(value))
        # The context may swallow an exception, so that the rest of the block does not run.
        with self.saying_nothing_of(kinds):
            before = self.scope.names
            self.scope.names = inner = Names(before)
            ended = self.block(node.body)
            self.scope.names = before
        before.take([inner] if ended or not kinds else [inner, Names(before)])
        return ended and not kinds

    def _match(self, node: ast.Match) -> None:
        self.value(node.subject)
        before, left = self.scope.names, []
        for case in node.cases:
            self.scope.names = Names(before)
            for name in bound_names([case.pattern]):
                self.scope.bind(name, None)
            self._parts(case.pattern)
            self.value(case.guard)
            if not self.block(case.body):
                left.append(self.scope.names)
        self.scope.names = before
        before.take([*left, Names(before)])


def _is_skip(node: ast.stmt) -> bool:
    """Whether a statement ends a test or the program."""
    call = node.value if isinstance(node, ast.Expr) else None
    function = call.func if isinstance(call, ast.Call) else None
    return isinstance(function, ast.Attribute) and function.attr in _SKIPS


def _is_left(node: ast.stmt) -> bool:
    return isinstance(node, _LEAVING) or _is_skip(node)
