"""How well an adapter answers at branch numbers up to 64 that was trained on records of 8, by the way of training.

    python benchmarks/branch_numbers.py --save

Each way is trained for a number of steps on the stories of the training demo (LoRA of rank 8 on the bundled model, in
float32) and asked about held-out ones, greedily: in rows of 8 branches whose numbers begin at 1, 9, 33 and 57, and in
rows of 64 branches, of which the same numbers are counted. "Facts of others" are the demo's second task, in rows of 4
branches, each of which asks for what another one states.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from machine import describe, save

from parallelmind import Branch, Engine, Request, SamplingParams
from parallelmind.demos.train import COOPERATION, RECALL, DemoTask, prepare, train, train_options
from parallelmind.settings.model import TINY_MODEL
from parallelmind.training.callbacks import SilentTraining

NUMBERS = ((1, 8), (9, 16), (33, 40), (57, 64))
RECORDS = 4000
GREEDY = SamplingParams(max_new_tokens=12, temperature=0)


class Way(NamedTuple):
    """A way of training."""

    name: str
    visibility: Any
    steps: int
    flags: dict[str, Any]
    task: DemoTask = RECALL


LOW: dict[str, Any] = {"rope_2d_pairs": "low"}
WAYS = [
    Way("in order", "isolated", 100, {"branch_range": 0}),
    Way("drawn from 1 to 64", "isolated", 100, {"branch_range": 64}),
    Way("shared: 9 stands where 1 does (default)", "isolated", 100, {}),
    Way("in order, pairs low", "columnar", 100, {"branch_range": 0} | LOW),
    Way("drawn, pairs low", "columnar", 100, LOW),
    Way("drawn, pairs low", "columnar", 300, LOW),
    Way("drawn, pairs low, stride 64", "columnar", 300, {"stride": 64} | LOW),
    Way("drawn, pairs low, stride 32", "columnar", 300, {"stride": 32} | LOW),
    Way("drawn, pairs low, stride 16", "columnar", 300, {"stride": 16} | LOW),
    Way("drawn, pairs low, additive", "columnar", 300, {"rope_2d_mode": "additive"} | LOW),
    Way("drawn, pairs interleaved (default)", "columnar", 300, {}),
    Way("facts of others: drawn, pairs low", "columnar", 600, LOW, COOPERATION),
    Way("facts of others: drawn, pairs interleaved (default)", "columnar", 600, {}, COOPERATION),
]


def exact(engine: Engine, rows: Sequence[Any], numbers: Sequence[range]) -> list[list[bool]]:
    """Whether the answer at each place of each row is exact; `numbers` are those of the row's branches."""
    requests = []
    for row, taken in zip(rows, numbers, strict=True):
        asked = [row["branches"][place % len(row["branches"])] for place in range(len(taken))]
        branches = [
            Branch(prompt=one["prompt"], branch_id=number, sampling=GREEDY)
            for one, number in zip(asked, taken, strict=True)
        ]
        requests.append((Request(main=row["main"], branches=branches), [one["completion"].strip() for one in asked]))
    results = engine.generate([request for request, _ in requests])
    return [
        [a.finish_reason == "stop" and a.text.strip() == e for a, e in zip(result.branches, expected, strict=True)]
        for result, (_, expected) in zip(results, requests, strict=True)
    ]


def share(hits: list[bool]) -> str:
    """A share as text."""
    return f"{sum(hits) / len(hits):.1%}"


def measured(way: Way, folder: Path, seed: int) -> list[str]:
    """Train one way; the cells of its line."""
    _, held_out = prepare(way.task, folder, RECORDS)
    options = train_options(way.task, folder, way.visibility, way.steps)
    flags = {"branch_range": None} | way.flags
    options = dataclasses.replace(options, eval_data_path=None, seed=seed, **flags)
    written = train(options, SilentTraining()).report.written
    engine = Engine.from_pretrained(TINY_MODEL, lora_path=written, dtype="float32", device="cpu")
    rows = [json.loads(line) for line in held_out.read_text(encoding="utf-8").splitlines()][:100]
    small = [
        share(
            [hit for row in exact(engine, rows, [range(first, first + way.task.branches)] * len(rows)) for hit in row]
        )
        for first, _ in NUMBERS
    ]
    if way.task is not RECALL:  # whose facts each branch would have to be told 16 times
        return [*small, *("–" for _ in NUMBERS)]
    large = exact(engine, rows[:25], [range(1, 65)] * 25)
    wide = [share([hit for row in large for hit in row[first - 1 : last]]) for first, last in NUMBERS]
    return [*small, *wide]


def main() -> None:
    """Train all ways, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", type=int, nargs="+", default=range(len(WAYS)), help="by their place in the list")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--save", action="store_true", help="write the result to benchmarks/results/")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    print(describe())
    names = [f"{first}–{last}" for first, last in NUMBERS]
    header = [
        "visibility",
        "numbers in training",
        "steps",
        "seed",
        *names,
        *(f"of 64: {n}" for n in names),
    ]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    print("\n".join(lines))
    for place in args.ways:
        way = WAYS[place]
        for seed in args.seeds:
            with tempfile.TemporaryDirectory() as folder:
                cells = [way.visibility, way.name, str(way.steps), str(seed), *measured(way, Path(folder), seed)]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    if args.save:
        print(save("branch-numbers", "Exact answers by branch number, by the way of training", "\n".join(lines) + "\n"))


if __name__ == "__main__":
    main()
