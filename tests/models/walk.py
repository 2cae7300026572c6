"""Judges model types, a process for each variant: python -m tests.models.walk phimoe doge; without names all types."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

# Before torch is imported: models are asked for by name only to be made from nothing.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

from tests.models.judge import CRASHED, NOT_BUILT, Verdict, judge
from tests.models.registry import TYPES, Variant, variants

_MEMORY = 8 << 30
_SECONDS = 300


class Row(NamedTuple):
    """The verdict on a variant of a model type."""

    model_type: str
    variant: str
    outcome: str
    detail: str

    def __str__(self) -> str:
        return f"{self.model_type:24} {self.variant:28} {self.outcome:10} {self.detail}"


def walk(types: Sequence[str], *, only: str | None = None, processes: int = 1) -> Iterator[Row]:
    """The rows of all variants, of those whose name contains a text if one is given, in order of the types."""
    context = multiprocessing.get_context("fork")

    def of_type(model_type: str) -> list[Row]:
        names = _apart(context, _names, model_type)
        if isinstance(names, Verdict):
            return [Row(model_type, "plain", *_fields(names))]
        rows = []
        for index, name in enumerate(names):
            if only is None or only in name:
                rows.append(Row(model_type, name, *_fields(_apart(context, _verdict, model_type, index))))
        return rows

    with ThreadPoolExecutor(processes) as pool:
        for rows in pool.map(of_type, types):
            yield from rows


def _fields(verdict: Verdict) -> tuple[str, str]:
    return verdict.outcome, verdict.detail


def _names(model_type: str) -> list[str]:
    return [variant.name for variant in variants(model_type)]


def _verdict(model_type: str, index: int) -> Verdict:
    variant: Variant = variants(model_type)[index]
    return judge(model_type, variant)


def _apart(context: multiprocessing.context.BaseContext, function, *arguments):  # type: ignore[no-untyped-def]
    """What a function returns in a process with a limit of memory and time, or the verdict that it did not."""
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(there, function, arguments), daemon=True)  # type: ignore[attr-defined]
    process.start()
    there.close()
    try:
        if not here.poll(_SECONDS):
            return Verdict(CRASHED, f"no answer within {_SECONDS} seconds")
        return here.recv()
    except EOFError:
        process.join()
        return Verdict(CRASHED, f"the process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _run(connection: Connection, function, arguments) -> None:  # type: ignore[no-untyped-def]
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
    try:
        connection.send(function(*arguments))
    except MemoryError:
        connection.send(Verdict(NOT_BUILT, "more than 8 GiB of memory"))
    except Exception as error:
        connection.send(Verdict(CRASHED, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="model types; none: all")
    parser.add_argument("--only", help="variants whose name contains this")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", type=Path, help="append the rows to this file, one JSON list a line")
    options = parser.parse_args()
    for row in walk(options.types or TYPES, only=options.only, processes=options.processes):
        print(row, flush=True)
        if options.json is not None:
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
