"""Judges model types, a process for each variant: python -m tests.models.walk phimoe doge; without names all types."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
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
from tests.models.registry import PLAIN, TYPES, variants

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
    """The rows of all variants, of those whose name a pattern is found in if there is one, in order of the types."""

    def of_type(model_type: str) -> list[Row]:
        return list(_rows(model_type, only))

    with ThreadPoolExecutor(processes) as pool:
        for rows in pool.map(of_type, types):
            yield from rows


def _rows(model_type: str, only: str | None) -> Iterator[Row]:
    """The rows of a type, in one process, and where that ends or stands still in another one for the variants left.

    Variants that its config takes and its model does not are left out.
    """
    context = multiprocessing.get_context("fork")
    done = 0
    while True:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(there, model_type, only, done), daemon=True)
        process.start()
        there.close()
        name = ""
        try:
            while True:
                if not here.poll(_SECONDS):
                    raise TimeoutError
                message = here.recv()
                if message is None:
                    return
                if isinstance(message, Row):
                    done += 1
                    if message.outcome != NOT_BUILT or message.variant == PLAIN:
                        yield message
                else:
                    name = message
        except EOFError:
            process.join()
            yield Row(model_type, name, CRASHED, f"the process ended with {process.exitcode}")
        except TimeoutError:
            yield Row(model_type, name, CRASHED, f"no answer within {_SECONDS} seconds")
        finally:
            process.kill()
            process.join()
        done += 1


def _run(connection: Connection, model_type: str, only: str | None, done: int) -> None:
    """Send the name of each variant that is left, then its row; None at the end."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
    asked = [one for one in variants(model_type) if only is None or re.search(only, one.name)]
    for variant in asked[done:]:
        connection.send(variant.name)
        try:
            verdict = judge(model_type, variant)
        except MemoryError:
            verdict = Verdict(NOT_BUILT, "more than 8 GiB of memory")
        connection.send(Row(model_type, variant.name, verdict.outcome, verdict.detail))
        if variant.name == PLAIN and verdict.outcome == NOT_BUILT:
            break  # nor can another variant
    connection.send(None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="model types; none: all")
    parser.add_argument("--only", help="variants in whose name this regular expression is found")
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
