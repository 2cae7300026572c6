"""Expand a file of queries into one row a query, without duplicates, in a JSONL file that a job can work on."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallelmind.errors import DataError
from parallelmind.retrieval.queries import Query, expand_item
from parallelmind.retrieval.query_files import read_items
from parallelmind.retrieval.version_index import cached_folder

_FORMAT = 2


@dataclass(frozen=True, slots=True)
class Expansion:
    """The queries of a file, one JSON line each."""

    path: Path
    queries: int
    """In the file, or in the part of it that was asked for."""
    duplicates: int
    """Dropped: `queries` - `duplicates` rows are left."""
    repeated_ids: int = 0
    """Rows that have the id of an earlier one; they are kept, each at its place."""
    repeated_id: str = ""
    """The first of these ids."""


def expand_queries(
    queries_file: Path,
    folder: Path,
    *,
    start_index: int = 0,
    max_samples: int | None = None,
    key: Callable[[Query], str] = lambda query: query.dedup_key,
) -> Expansion:
    """Write the expanded rows below `folder`, unless an earlier call did for the same content.

    `start_index` and `max_samples` count queries, before duplicates are dropped. Queries with the same `key` are
    duplicates of the first one; memory is 24 bytes and two set entries for each. Safe with many processes.

    Raises:
        DataError: the file cannot be read, or is not a queries file.
        SettingsError: the rows cannot be written.
    """

    def build(folder: Path) -> None:
        counts: dict[str, Any] = {"queries": 0, "duplicates": 0, "repeated_ids": 0, "repeated_id": ""}
        seen: set[bytes] = set()
        ids: set[bytes] = set()
        with (folder / "queries.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            for query in itertools.islice(_all_queries(queries_file), start_index, _end(start_index, max_samples)):
                counts["queries"] += 1
                # A broken query is no duplicate: its error is told as often as it comes.
                if query.error is None:
                    mark = bytes.fromhex(key(query))
                    if mark in seen:
                        counts["duplicates"] += 1
                        continue
                    seen.add(mark)
                known = hashlib.blake2b(query.id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
                if known in ids:
                    counts["repeated_ids"] += 1
                    counts["repeated_id"] = counts["repeated_id"] or query.id
                ids.add(known)
                file.write(json.dumps(dataclasses.asdict(query), ensure_ascii=False) + "\n")
        (folder / "counts.json").write_text(json.dumps(counts), encoding="utf-8")

    parts = f"{_FORMAT} {start_index} {max_samples} {getattr(key, '__name__', '')}"
    name = hashlib.blake2b(parts.encode() + _digest(queries_file), digest_size=8).hexdigest()
    made = cached_folder(folder / f"queries-{name}", build)
    counts = json.loads((made / "counts.json").read_text(encoding="utf-8"))
    return Expansion(path=made / "queries.jsonl", **counts)


def load_query(line: bytes) -> Query:
    """A row of an expansion."""
    return Query(**json.loads(line))


def remove_other_expansions(kept: Expansion) -> None:
    """Drop what earlier forms of the queries file left beside it."""
    for other in kept.path.parent.parent.glob("queries-*"):
        if other.is_dir() and other != kept.path.parent:
            shutil.rmtree(other, ignore_errors=True)


def _all_queries(queries_file: Path) -> Iterator[Query]:
    for item in read_items(queries_file):
        if item.error:
            yield Query(original_item_id=item.id, query_index=0, error=item.error)
        else:
            yield from expand_item(item.value, item.id, item.where)


def _end(start_index: int, max_samples: int | None) -> int | None:
    return None if max_samples is None else start_index + max_samples


def _digest(queries_file: Path) -> bytes:
    try:
        with queries_file.open("rb") as file:
            return hashlib.file_digest(file, functools.partial(hashlib.blake2b, digest_size=16)).digest()
    except OSError as error:
        raise DataError(
            f"cannot read --queries_file {queries_file}: {error.strerror}; check the path and its permissions."
        ) from error
