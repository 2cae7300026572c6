"""What is asked: a query about an API of given versions, and the two forms in which files hold queries.

An item of the nested form holds several queries over the same versions,
`{"queries": [{"query", "target_api"}], "original_data": {"target_dependency": {...}}}`; a flat item is one query,
`{"id", "query", "target_api", "dependencies"}`. Both expand to the same rows.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from parallelmind.errors import DataError
from parallelmind.io.records import field_names, shorten, show_value, text_field

_LONGEST_NAME = 1000
_FORMS = '{"queries": [{"query", "target_api"}], "original_data": {"target_dependency": {...}}} or '
_FLAT = '{"id", "query", "target_api", "dependencies"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One query as it goes through the context stage."""

    original_item_id: str | int
    query_index: int
    query: str = ""
    target_api: str = ""
    """"" if the query names none: then only ranked search can find something."""
    dependencies: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None
    """Why it cannot be served; the other fields are then what could be read."""

    @property
    def id(self) -> str:
        return f"{self.original_item_id}_{self.query_index}"

    @property
    def dedup_key(self) -> str:
        return dedup_key(self.query, self.target_api, self.dependencies)

    def fields(self) -> dict[str, Any]:
        """The fields that a context row begins with."""
        return {
            "id": self.id,
            "original_item_id": self.original_item_id,
            "query_index": self.query_index,
            "dedup_key": self.dedup_key,
            "query": self.query,
            "target_api": self.target_api,
            "dependencies": dict(self.dependencies),
        }


def dedup_key(query: str, target_api: str, dependencies: Mapping[str, str]) -> str:
    """The same for the same question, API and versions, in whatever order and run: 32 hexadecimal digits."""
    text = json.dumps([query, target_api, sorted(dependencies.items())], ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


def is_nested(item: Mapping[str, Any]) -> bool:
    return "queries" in item


def expand_item(item: Any, item_id: str | int, where: str) -> Iterator[Query]:
    """The queries of one item; one that is wrong comes with its `error`, and never less than one comes.

    `item_id` names an item that has no `id` of its own; `where` names its place in error texts.
    """
    if not isinstance(item, dict):
        yield _broken(item_id, 0, f"{where} is {show_value(item)}; expected {_FORMS}{_FLAT}.")
        return
    try:
        item_id = _item_id(item, item_id, where)
        if not is_nested(item):
            yield _query(item, item_id, 0, item.get("dependencies"), where, '"dependencies"')
            return
        queries = item["queries"]
        if not isinstance(queries, list) or not queries:
            raise DataError(
                f'{where}: "queries" is {show_value(queries)}; expected a list of {{"query", "target_api"}}.'
            )
    except DataError as error:
        yield _broken(item_id, 0, str(error), item)
        return
    dependencies, name = _item_dependencies(item)
    for index, query in enumerate(queries):
        place = f'{where}: "queries"[{index}]'
        try:
            if not isinstance(query, dict):
                raise DataError(f'{place} is {show_value(query)}; expected {{"query", "target_api"}}.')
            yield _query(query, item_id, index, dependencies, place, name)
        except DataError as error:
            row = query if isinstance(query, dict) else {}
            yield _broken(item_id, index, str(error), {**row, "dependencies": dependencies})


def _query(
    row: Mapping[str, Any], item_id: str | int, index: int, dependencies: Any, where: str, dependencies_name: str
) -> Query:
    if "query" not in row:
        raise DataError(f'{where} has no "query" (found: {field_names(row)}).')
    query = text_field(row["query"], f'{where}: "query"')
    target = row.get("target_api")
    if isinstance(target, str) and len(target) > _LONGEST_NAME:
        raise DataError(f'{where}: "target_api" has {len(target):,} characters; expected a dotted name.')
    return Query(
        original_item_id=item_id,
        query_index=index,
        query=query,
        target_api=api_name(text_field(target, f'{where}: "target_api"', may_be_empty=True), f'{where}: "target_api"')
        if target is not None
        else "",
        dependencies=_dependencies(dependencies, f"{where}: {dependencies_name}"),
    )


def api_name(text: str, where: str) -> str:
    """The dotted name that is asked for, in whatever form it is written.

    `numpy.array()`, `` `numpy.array` ``, `numpy.array(x, axis=0)`, `from numpy import array`, `import numpy.linalg`,
    and `import numpy as np; np.array`.

    Raises:
        DataError: it names several APIs, or none that can be read.
    """
    text = text.strip().strip("`").strip()
    if not re.match(r"(?:from|import)\s", text):
        return re.sub(r"\(.*\)$", "", text, flags=re.DOTALL).strip()
    try:
        statements = ast.parse(re.sub(r"\s*;\s*", "\n", text)).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise DataError(f"{where} is {shorten(text)!r}, which is not Python; write a dotted name.") from None
    imported: dict[str, str] = {}
    used: set[str] = set()
    for statement in statements:
        if isinstance(statement, ast.ImportFrom) and not statement.level:
            imported |= {alias.asname or alias.name: f"{statement.module}.{alias.name}" for alias in statement.names}
        elif isinstance(statement, ast.Import):
            imported |= {alias.asname or alias.name: alias.name for alias in statement.names}
        elif isinstance(statement, ast.Expr):
            value = statement.value.func if isinstance(statement.value, ast.Call) else statement.value
            used.add(ast.unparse(value))
    names = {_below_import(name, imported) for name in used} or set(imported.values())
    if len(names) != 1 or "*" in str(names):
        raise DataError(f"{where} is {shorten(text)!r}, which names {len(names)} APIs; ask for one in each query.")
    return names.pop()


def _below_import(name: str, imported: Mapping[str, str]) -> str:
    """`np.array` is `numpy.array` below `import numpy as np`."""
    first, dot, rest = name.partition(".")
    return imported.get(first, first) + dot + rest


def _item_dependencies(item: Mapping[str, Any]) -> tuple[Any, str]:
    data = item.get("original_data")
    if isinstance(data, dict) and "target_dependency" in data:
        return data["target_dependency"], '"original_data"."target_dependency"'
    return item.get("dependencies"), '"original_data"."target_dependency"'


def _dependencies(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict):
        found = "missing" if value is None else show_value(value)
        raise DataError(f'{where} is {found}; expected versions by package, such as {{"numpy": "1.26.4"}}.')
    if not value:
        raise DataError(f'{where} is empty; expected versions by package, such as {{"numpy": "1.26.4"}}.')
    versions = {}
    for name, version in value.items():
        if not isinstance(version, str) or not version.strip():
            raise DataError(
                f'{where}: "{name}" is {show_value(version)}; expected a version as text, such as "1.26.4".'
            )
        versions[text_field(name, where)] = text_field(version, f'{where}: "{name}"').strip()
    return versions


def _item_id(item: Mapping[str, Any], default: str | int, where: str) -> str | int:
    value = item.get("id", default)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f'{where}: "id" is {show_value(value)}; expected a text or a whole number.')
    return text_field(value, f'{where}: "id"', may_be_empty=True) if isinstance(value, str) else value


def _broken(item_id: str | int, index: int, error: str, row: Mapping[str, Any] | None = None) -> Query:
    """Keeps the fields that can be read."""
    row = row or {}
    texts = {name: _whole(row[name]) for name in ("query", "target_api") if isinstance(row.get(name), str)}
    given = row.get("dependencies")
    versions = given.items() if isinstance(given, dict) else ()
    dependencies = {_whole(name): _whole(version) for name, version in versions if isinstance(version, str)}
    return Query(original_item_id=item_id, query_index=index, error=error, dependencies=dependencies, **texts)


def _whole(text: str) -> str:
    """Without halves of surrogate pairs, which UTF-8 cannot carry."""
    return text.encode("utf-8", "replace").decode("utf-8")
