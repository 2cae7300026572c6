"""Whether a call fits the parameters of what it calls."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass

from parallelmind.retrieval.facts import Parameter


@dataclass(frozen=True, slots=True)
class Misfit:
    """Why a call does not fit, and which part of it."""

    message: str
    node: ast.expr | ast.keyword


def misfit(call: ast.Call, parameters: Sequence[Parameter], *, keywords_only: bool = False) -> Misfit | None:
    """The first reason why a call fails, if it is certain to.

    `keywords_only` is for a function of a class that is called by the class's name: whether its first argument is the
    object is not known, so only names of keywords can be judged.
    """
    names = {one.name: one for one in parameters}
    takes_any = {one.kind for one in parameters}
    spread = any(isinstance(one, ast.Starred) for one in call.args)
    spread_names = any(keyword.arg is None for keyword in call.keywords)
    given = [(keyword.arg, keyword) for keyword in call.keywords if keyword.arg is not None]
    if "any keyword" not in takes_any:
        for name, keyword in given:
            known = names.get(name)
            if known is None or known.kind in ("any positional", "any keyword"):
                if keywords_only and name == "self":
                    continue
                return Misfit(f"has no parameter {name!r}", keyword)
            if known.kind == "positional only":
                return Misfit(f"takes {name!r} by position only", keyword)
    if keywords_only:
        return None
    positional = [one for one in parameters if one.kind in ("positional only", "positional or keyword")]
    plain = [one for one in call.args if not isinstance(one, ast.Starred)]
    if len(plain) > len(positional) and "any positional" not in takes_any:
        count = f"at most {len(positional)}" if any(one.has_default for one in positional) else f"{len(positional)}"
        return Misfit(f"takes {count} arguments by position, not {len(plain)}", plain[len(positional)])
    if not spread:
        filled = {one.name for one in positional[: len(plain)] if one.kind == "positional or keyword"}
        for name, keyword in given:
            if name in filled:
                return Misfit(f"is given {name!r} twice, by position and by name", keyword)
    if spread or spread_names:
        return None
    by_name = {name for name, _ in given}
    required = positional[len(plain) :] + [one for one in parameters if one.kind == "keyword only"]
    missing = [
        one.name
        for one in required
        if not one.has_default and (one.kind == "positional only" or one.name not in by_name)
    ]
    if missing:
        return Misfit(f"needs {', '.join(map(repr, missing))}", call)
    return None
