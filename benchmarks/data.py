"""How fast, and in how much memory, training data is encoded, planned and loaded.

    python benchmarks/data.py --tokens 20000000 --save

A file of that many tokens is written: records of a main of about 85 tokens (lognormal, from 5 to 1,500) and 1 to 8
branches, in the words of the bundled model. Each case runs in a process of its own, whose memory (with that of its
processes, without shared pages of the file) is looked at ten times: encoding by one process and by two, opening what is
in the cache, and an epoch of batches of 8,192 tokens, planned and loaded without a model.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from machine import describe, save

from parallelmind.data.batches import BatchLimits
from parallelmind.data.cache import SampleCache
from parallelmind.data.dataset import ParallelPretrainDataset
from parallelmind.data.encoder import SampleEncoder
from parallelmind.data.rows import RowLimits
from parallelmind.data.sources import JsonlSource
from parallelmind.models.loader import load_tokenizer_from
from parallelmind.settings.model import TINY_MODEL

WORDS = [
    "the",
    "age",
    "of",
    "Dan",
    "is",
    "Emma",
    "likes",
    "blue",
    "hat",
    "costs",
    "dollars",
    "Tina",
    "counted",
    "coins",
    "story",
    "red",
    "old",
    "much",
    "how",
    "does",
    "who",
    "which",
    "where",
    "city",
    "lives",
    "in",
    "house",
    "cat",
    "dog",
    "green",
    "left",
    "right",
    "number",
    "twelve",
    "forty",
]
TOKENS_OF_A_RECORD = 230
BATCH = 8192
SEEN = 10
CASES: dict[str, dict[str, Any]] = {
    "encoded, 1 process": {"processes": 1},
    "encoded, 2 processes": {"processes": 2},
    "from the cache": {"processes": 1},
    "planned and loaded": {"processes": 1, "load": True},
}


def write(path: Path, records: int) -> None:
    rng = random.Random(0)

    def text(words: float) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(max(1, int(words))))

    with path.open("w", encoding="utf-8") as file:
        for _ in range(records):
            branches = [
                {"prompt": text(rng.randint(3, 12)) + "?", "completion": " " + text(rng.lognormvariate(1.5, 0.9))}
                for _ in range(rng.randint(1, 8))
            ]
            file.write(json.dumps({"main": text(rng.lognormvariate(4.2, 0.8)) + "\n", "branches": branches}) + "\n")


class Memory:
    """Looks at the memory of this process and those that it started, every quarter of a second."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        own = psutil.Process()
        while not self._over.wait(0.25):
            total = 0
            for process in (own, *own.children(recursive=True)):
                try:
                    held = process.memory_info()
                    total += held.rss - held.shared
                except psutil.Error:  # ended meanwhile
                    continue
            self.seen.append(total / 2**20)


def measure(path: Path, cache: Path, *, processes: int, load: bool = False) -> dict[str, Any]:
    """One case, in this process."""
    tokenizer = load_tokenizer_from(TINY_MODEL)
    encoder = SampleEncoder(tokenizer, max_seq_len=512, max_model_len=4096)
    batch = BatchLimits(size=BATCH, by_tokens=True)
    prepare = SampleCache(cache, processes=processes).prepared
    found: dict[str, Any] = {}
    with Memory() as memory:
        began = time.monotonic()
        if load:
            data = ParallelPretrainDataset(
                JsonlSource(path), encoder, limits=RowLimits(most=8), batch=batch, prepare=prepare
            )
            data.store()
            found["seconds_to_plan"] = time.monotonic() - began
            tokens = sum(len(row) for micro in data for row in micro.rows)
            found |= {"padding": data.counts.padding, "fill": tokens / (data.counts.batches * BATCH)}
        else:
            prepared = prepare(JsonlSource(path), encoder)
            assert prepared is not None
            store = prepared[0]
            found["seconds"] = time.monotonic() - began
            tokens = sum(
                sample.main_tokens + sum(branch.tokens for branch in sample.branches)
                for sample in map(store.planned, range(len(store)))
            )
        found = {"seconds": time.monotonic() - began, "tokens": tokens} | found
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    found["cpu"] = sum(one.ru_utime + one.ru_stime for one in used)
    return found | {"memory": memory.seen}


def in_a_process(path: Path, cache: Path, **case: Any) -> dict[str, Any]:
    given = json.dumps({"path": str(path), "cache": str(cache), **case})
    done = subprocess.run([sys.executable, __file__, "--case", given], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def rows(path: Path, folder: Path) -> Iterator[str]:
    for name, case in CASES.items():
        cache = folder / f"cache{case['processes']}"
        found = in_a_process(path, cache, **case)
        seen = found["memory"]
        curve = " ".join(f"{seen[min(len(seen) - 1, len(seen) * at // SEEN)]:.0f}" for at in range(1, SEEN + 1))
        more = f"{found['padding']:.2%} padding, batches {found['fill']:.1%} full" if "padding" in found else ""
        rate = found["tokens"] / found["seconds"]
        times = f"{found['seconds']:.1f} | {found['cpu']:.1f} | {rate:,.0f}"
        yield f"| {name} | {times} | {max(seen):.0f} | {curve} | {more} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        case = json.loads(args.case)
        print(json.dumps(measure(Path(case.pop("path")), Path(case.pop("cache")), **case)))
        return
    logging.basicConfig(level=logging.INFO)
    head = (
        f"| case | seconds | CPU seconds | tokens/s | most MiB | MiB at {SEEN} times | |\n|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.jsonl"
        write(path, args.tokens // TOKENS_OF_A_RECORD)
        about = f"{path.stat().st_size / 2**20:.0f} MiB of JSONL, {args.tokens // TOKENS_OF_A_RECORD:,} records."
        lines = [head]
        print(describe(), about, head, sep="\n")
        for row in rows(path, Path(folder)):
            print(row, flush=True)
            lines.append(row)
    if args.save:
        print(save("data", "Encoding, planning and loading training data", "\n".join(lines), f"\n{about}\n"))


if __name__ == "__main__":
    main()
