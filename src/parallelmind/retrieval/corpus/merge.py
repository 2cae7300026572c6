"""One object from what the files, the `add_newdoc` calls and the running package say about it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from parallelmind.retrieval.corpus.objects import PackageObject, is_public, split_signature

_VAGUE_TYPES = frozenset({"attribute", "object"})


@dataclass(frozen=True, slots=True)
class Coverage:
    """Objects with a docstring in the running package, and what reading its files alone found of them."""

    runtime_documented: int
    static_documented: int
    """Of these, the ones whose documentation the files or `add_newdoc` calls have."""


def add_newdocs(
    objects: Mapping[str, PackageObject], docs: Mapping[str, str], resolve: Callable[[str], str]
) -> dict[str, PackageObject]:
    """`objects` by path, completed with `add_newdoc` docstrings; `resolve` follows a dotted name to its definition."""
    table = dict(objects)
    for name, doc in sorted(docs.items()):  # a class comes before its members
        if not is_public(name.rpartition(".")[2]):
            continue
        path = resolve(name)
        if path not in table:
            owner = table.get(path.rpartition(".")[0])
            names = {f"{prefix}.{path.rpartition('.')[2]}" for prefix in owner.names} if owner is not None else {name}
            table[path] = PackageObject(path=path, type="attribute", names={n for n in (path, *names) if is_public(n)})
            _mark_as_class(owner, path)
        found = table[path]
        if not found.doc or found.doc.startswith("Re-export of"):
            found.doc, found.source = doc, "add_newdoc"
            found.signature = found.signature or split_signature(doc)
            if found.type == "attribute" and found.signature:
                owner = table.get(path.rpartition(".")[0])
                found.type = "method" if owner is not None and owner.type == "class" else "function"
    return table


def _mark_as_class(owner: PackageObject | None, member_path: str) -> None:
    if owner is not None:
        owner.members.add(member_path.rpartition(".")[2])
        if owner.type in ("attribute", "function"):
            owner.type = "class"


def add_runtime(
    static: Mapping[str, PackageObject], runtime: Iterable[PackageObject]
) -> tuple[dict[str, PackageObject], Coverage]:
    """Objects by path: those of the files, named and documented as the running package does."""
    living = list(runtime)
    owners = {name: item for item in living if item.type != "attribute" for name in (*item.names, item.path)}
    groups, rest = _group(static, owners)
    table: dict[str, PackageObject] = {}
    documented = documented_before = 0
    for item in living:
        if item.type == "attribute":
            continue
        group = groups.get(id(item), [])
        if item.doc and any(map(is_public, item.names)):
            documented += 1
            documented_before += any(found.doc for found in group)
        _insert(table, _merge(item, group))
    for found in rest:
        found.names = {name for name in found.names if name not in owners}
        if found.names:
            _insert(table, found)
    _add_attributes(table, [item for item in living if item.type == "attribute"])
    return table, Coverage(documented, documented_before)


def paths_by_number(table: Mapping[str, PackageObject], runtime: Iterable[PackageObject]) -> list[str]:
    """The path under which each object of the running package, by its number, is in the table; "" if it is not."""
    names = {name: item.path for item in table.values() for name in item.names}
    found: dict[int, str] = {}
    for item in runtime:
        path = item.path if item.path in table else next((names[name] for name in item.names if name in names), "")
        found.update(dict.fromkeys(item.numbers, path))
    for item in table.values():
        found.update(dict.fromkeys(item.numbers, item.path))
    return [found.get(number, "") for number in range(max(found, default=-1) + 1)]


def _group(
    static: Mapping[str, PackageObject], owners: Mapping[str, PackageObject]
) -> tuple[dict[int, list[PackageObject]], list[PackageObject]]:
    """The static objects of each living one, by its id, and those of none."""
    groups: dict[int, list[PackageObject]] = defaultdict(list)
    rest: list[PackageObject] = []
    for found in static.values():
        item = owners.get(found.path)
        if item is None:  # its path is not reachable in the running package: one of its aliases may be
            item = next((owners[name] for name in sorted(found.names) if name in owners), None)
        if item is None or (item.type == "module") != (found.type == "module"):
            rest.append(found)
            continue
        found.names = {name for name in found.names if owners.get(name, item) is item}
        groups[id(item)].append(found)
    return groups, rest


def _merge(item: PackageObject, group: list[PackageObject]) -> PackageObject:
    if not group:
        item.signature = _signature(item.signature, "", split_signature(item.doc))
        return item
    best = max(group, key=lambda found: (bool(found.code), found.type not in _VAGUE_TYPES, bool(found.doc)))
    doc = next((found for found in (best, *group) if found.doc), None)
    is_same = doc is not None and (not item.doc or doc.doc.split() == item.doc.split())
    kept = doc if doc is not None and is_same else item
    # Compiled objects and stubs have no better place than the one they name themselves.
    has_place = best.type not in _VAGUE_TYPES and (best.code or is_public(best.path))
    is_defined = has_place or (best.source == "add_newdoc" and item.type != "class")
    return PackageObject(
        path=best.path if is_defined else item.path,
        type=best.type if item.type in _VAGUE_TYPES and best.type not in _VAGUE_TYPES else item.type,
        doc=kept.doc,
        source=kept.source,
        signature=_signature(item.signature, best.signature, split_signature(kept.doc)),
        members=item.members or best.members,
        names=item.names.union(*(found.names for found in group)),
        code=best.code,
        place=best.place,
        home=item.home,
        deprecated=item.deprecated or best.deprecated,
        parameters=item.parameters,
        numbers=item.numbers,
    )


def _signature(running: str, written: str, documented: str) -> str:
    """The running package's: it is what counts, without the types of stubs; unless a decorator hides it."""
    return running if running and not running.startswith("(*args, **kw") else written or documented or running


def _insert(table: dict[str, PackageObject], item: PackageObject) -> None:
    if item.path in table:  # a module and a function of the same name
        free = sorted(item.names - table.keys())
        if not free:
            return
        item.path = free[0]
    table[item.path] = item


def _add_attributes(table: dict[str, PackageObject], attributes: Iterable[PackageObject]) -> None:
    known = {name for item in table.values() for name in (*item.names, item.path)}
    for item in attributes:
        names = {name for name in item.names if name not in known}
        if names:
            item.names = names
            if item.path not in names:
                item.path = min(names)
            _insert(table, item)
            known |= names
