"""Names to ask a version for, and why each is asked: drawn from what was found by walking, with a given generator."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

Walked = Sequence[tuple[str, str, str]]
"""(name, type, origin)."""

_CALLED = ("class", "function", "method")
_PER_VERSION = {
    "own": 9,
    "value": 4,
    "module": 2,
    "re-export": 4,
    "foreign": 3,
    "inherited": 4,
    "foreign inherited": 2,
    "dunder": 2,
    "instance": 3,
}
_OTHER_VERSION, _WRONG_CLASS, _WRONG_PLACE, _MISSPELLED = 5, 2, 2, 3


def drawn(walked: Walked, others: Sequence[Walked], chance: random.Random) -> Iterator[tuple[str, str]]:
    """(name, why) of names that exist, and of names made from those so that they probably do not."""
    by_origin: dict[str, list[str]] = {}
    for name, kind, origin in walked:
        group = origin
        if origin == "own" and kind not in _CALLED:
            group = "module" if kind == "module" else "value"
        by_origin.setdefault(group, []).append(name)
    for group, count in _PER_VERSION.items():
        names = by_origin.get(group, [])
        yield from ((name, group) for name in chance.sample(names, min(count, len(names))))
    yield from _of_other_versions(walked, others, chance)
    yield from _made_up(walked, chance)


def _of_other_versions(walked: Walked, others: Sequence[Walked], chance: random.Random) -> Iterator[tuple[str, str]]:
    here = {name for name, _, _ in walked}
    gone = {
        name
        for other in others
        for name, kind, origin in other
        if name not in here and origin in ("own", "re-export") and kind in (*_CALLED, "module")
    }
    yield from ((name, "other version") for name in chance.sample(sorted(gone), min(_OTHER_VERSION, len(gone))))


def _made_up(walked: Walked, chance: random.Random) -> Iterator[tuple[str, str]]:
    own = [(name, kind) for name, kind, origin in walked if origin == "own"]
    modules = [name for name, kind in own if kind == "module"]
    classes = [name for name, kind in own if kind == "class"]
    members = [name for name, kind in own if kind == "method"]
    called = [name for name, kind in own if kind in _CALLED]
    for _ in range(_WRONG_CLASS if classes and members else 0):
        yield f"{chance.choice(classes)}.{_last(chance.choice(members))}", "wrong class"
    for _ in range(_WRONG_PLACE):
        yield f"{chance.choice(modules)}.{_last(chance.choice(called))}", "wrong module"
    for _ in range(_MISSPELLED):
        yield misspelled(chance.choice(called), chance), "misspelled"


def misspelled(name: str, chance: random.Random) -> str:
    """As people get names wrong: another case, plural, a letter too few or two exchanged, a verb before it."""
    parent, _, last = name.rpartition(".")
    words = [word for word in last.split("_") if word]
    ways = [
        last + "s",
        last.rstrip("s") + "er",
        "get_" + last,
        last[:-1],
        last[:1] + last[2:],
        last[:-2] + last[-1:] + last[-2:-1],
    ]
    if len(words) > 1:
        ways += [words[0] + "".join(map(str.capitalize, words[1:])), "_".join(reversed(words)), "".join(words)]
    elif last != last.lower():
        ways += [last.lower(), last[:1].lower() + last[1:]]
    usable = [way for way in ways if way.isidentifier() and way != last]
    return f"{parent}.{chance.choice(usable)}" if usable else f"{parent}.{last}_"


def to_scan(walked: Walked) -> list[str]:
    """Names of which some may be deprecated: all where they are defined, and what the package itself re-exports."""
    wanted = (*_CALLED, "property")
    return [
        name
        for name, kind, origin in walked
        if kind in wanted and (origin == "own" or (origin == "re-export" and name.count(".") == 1))
    ]


def sample_by_module(names: Sequence[str], count: int, chance: random.Random) -> list[str]:
    """At most one in five from the same parent, so that one large class does not make up the sample."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.rpartition(".")[0], []).append(name)
    most = max(2, count // 5)
    kept = [name for group in groups.values() for name in chance.sample(group, min(most, len(group)))]
    return sorted(chance.sample(kept, min(count, len(kept))))


def _last(name: str) -> str:
    return name.rpartition(".")[2]
