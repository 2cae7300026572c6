"""What a join by turning keys loses against one that recomputes: answers of the bundled model, and KL divergence.

    python benchmarks/joining.py --save

Stories of eight facts. The first half is main; the second half is written by branches, which are joined in both ways.
Then all facts are asked, those of main and those of the branches. In the last case of each model no branch holds a
fact: one begins it and the next one ends it, so that each means something with the other alone.

The models are the bundled one, and the same with 2D RoPE and the adapter that `parallelmind demo-train` trains. How
long a join takes is timed with a random model, from the end of the branches to the first token behind the join.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

# As the command line does: see parallelmind.cli.main.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from decoding import DTYPES, SHAPES, NoTokenizer, random_model
from machine import describe, save

from parallelmind import Branch, BranchResult, Engine, Request, RequestResult, SamplingParams
from parallelmind.demos.stories import recall
from parallelmind.demos.train import RECALL, prepare, train, train_options
from parallelmind.engine.joining import JOIN_WAYS, JoinWay
from parallelmind.models.cpu.optimize import optimize_for_cpu

FACTS = 8
LONGEST_ANSWER = 12


class Silent:
    """Shows nothing of a training."""

    def start(self, *, total: int | None, done: int) -> None:
        """Nothing."""

    def step(self, done: int) -> None:
        """Nothing."""

    def log(self, entry: dict[str, Any]) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""


@dataclass
class Counts:
    """What was found of the questions about main, or about branches."""

    asked: int = 0
    exact: dict[JoinWay, int] = field(default_factory=lambda: dict.fromkeys(JOIN_WAYS, 0))
    equal: int = 0
    divergences: list[float] = field(default_factory=list)

    def cells(self) -> str:
        """As cells of a table."""
        mean, most = sum(self.divergences) / len(self.divergences), max(self.divergences)
        exact = " | ".join(str(self.exact[way]) for way in JOIN_WAYS)
        return f"{self.asked} | {exact} | {self.equal} | {mean:.2g} | {most:.2g}"


def ids(engine: Engine, text: str) -> list[int]:
    """Token ids of a part of a story."""
    return list(engine.tokenizer(text, add_special_tokens=False)["input_ids"])


def divided(sentences: Sequence[list[int]], branches: int, cut: bool) -> list[list[int]]:
    """The second half of a story as the texts of branches: whole sentences, or halves of each."""
    if cut:
        return [part for one in sentences for part in (one[: len(one) // 2], one[len(one) // 2 :])]
    count = len(sentences) // branches
    return [list(chain(*sentences[place * count : (place + 1) * count])) for place in range(branches)]


def measure(engine: Engine, records: int, branches: int, *, cut: bool = False) -> dict[str, Counts]:
    """Ask about all facts after both kinds of join."""
    counts = {"main": Counts(), "branches": Counts()}
    vocabulary = len(engine.tokenizer)
    greedy = SamplingParams(max_new_tokens=LONGEST_ANSWER, temperature=0, logprobs=vocabulary)
    rng = Random("held out")
    for _ in range(records):
        record = recall(rng)
        sentences = re.findall(r".+?[.。]", record["main"].rstrip("\n"))
        main = ids(engine, "".join(sentences[: FACTS // 2]))
        parts = divided([ids(engine, one) for one in sentences[FACTS // 2 :]], branches, cut)
        request = Request(main=main, branches=parts)
        result = RequestResult(branches=[BranchResult(finish_reason="length") for _ in parts])
        questions = [branch["prompt"] for branch in record["branches"]]
        answers: dict[JoinWay, list[BranchResult]] = {}
        for way in JOIN_WAYS:
            joined = engine.join(request, result, branches=questions, join=way)
            assert isinstance(joined.main, list)
            joined = replace(joined, main=[*joined.main, *ids(engine, "\n")])
            answers[way] = engine.generate([joined], greedy)[0].branches
        for place, branch in enumerate(record["branches"]):
            value = branch["completion"].strip()
            found = counts["main" if value in "".join(sentences[: FACTS // 2]) else "branches"]
            recomputed, turned = (answers[way][place] for way in ("recompute", "turned"))
            found.asked += 1
            for way in JOIN_WAYS:
                found.exact[way] += answers[way][place].text.strip() == value
            found.equal += recomputed.token_ids == turned.token_ids
            found.divergences.append(divergence(recomputed, turned))
    return counts


def divergence(recomputed: BranchResult, turned: BranchResult) -> float:
    """KL(recomputed ‖ turned) of the first token, in nats."""
    other = dict(turned.logprobs[0].top)
    return max(0.0, sum(math.exp(logprob) * (logprob - other[token]) for token, logprob in recomputed.logprobs[0].top))


def rows(name: str, engine: Engine, records: int) -> Iterator[str]:
    """The rows of a model."""
    cases = (("2 branches", 2, False), ("4 branches", 4, False), ("8 branches, each half a fact", 8, True))
    for case, branches, cut in cases:
        for where, counts in measure(engine, records, branches, cut=cut).items():
            yield f"| {name} | {case} | {where} | {counts.cells()} |"


def with_2d_rope(folder: Path) -> Engine:
    """The bundled model with the adapter of the demo."""
    prepare(RECALL, folder, 2000)
    report = train(train_options(RECALL, folder, "isolated"), Silent()).report
    return Engine.from_pretrained("tiny", lora_path=report.written, dtype="float32", device="cpu")


def timed(args: argparse.Namespace) -> Iterator[str]:
    """Seconds from the end of the branches to the first token behind the join, and tokens run for it."""
    model = random_model(args.shape, DTYPES[args.dtype])
    optimize_for_cpu(model)
    one = SamplingParams(max_new_tokens=1, temperature=0, ignore_eos=True)
    for length, branches in ((1024, 8), (1024, 64)):
        cells = []
        for way in JOIN_WAYS:
            engine = Engine(model, NoTokenizer(), max_running_branches=None)
            rng = Random(0)
            main = [rng.randrange(1000) for _ in range(length)]
            prompts = [[rng.randrange(1000) for _ in range(8)] for _ in range(branches)]
            request = Request(main=main, branches=prompts)
            result = engine.generate([request], replace(one, max_new_tokens=args.new_tokens))[0]
            engine.join(request, result, join=way)  # which looks at the model when keys are turned for the first time
            read, started = engine.stats.prompt_tokens, time.perf_counter()
            joined = engine.join(request, result, branches=[Branch(prompt=[5])], join=way)
            engine.generate([joined], one)
            cells.append((time.perf_counter() - started, engine.stats.prompt_tokens - read, engine.stats.turned_tokens))
        shown = " | ".join(f"{seconds:.2f} s, {read}" for seconds, read, _ in cells)
        yield f"| {length}, {branches} × {8 + args.new_tokens} | {shown} | {cells[-1][2]} |"


def main() -> None:
    """Measure all cases and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=32, help="stories, of eight questions each")
    parser.add_argument("--shape", choices=SHAPES, default="25m", help="of the random model that is timed")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the random model")
    parser.add_argument("--new_tokens", type=int, default=64, help="that each branch writes before it is joined")
    parser.add_argument("--save", action="store_true", help="write the result to benchmarks/results/")
    args = parser.parse_args()
    print(describe())
    lines = [
        "| model | second half of a story | questions about | asked | exact, recomputed | exact, turned "
        "| answers equal | mean KL | largest KL |",
        "|---|---|---|---|---|---|---|---|---|",
        *rows("tiny", Engine.from_pretrained("tiny", dtype="float32", device="cpu"), args.records),
    ]
    with tempfile.TemporaryDirectory() as folder:
        lines += rows("tiny, 2D RoPE and LoRA", with_2d_rope(Path(folder)), args.records)
    lines += [
        "",
        "| main, branches × tokens | recomputed: time, tokens run | turned: time, tokens run | tokens turned |",
        "|---|---|---|---|",
        *timed(args),
    ]
    table = "\n".join(lines)
    print(table)
    if args.save:
        notes = (
            "\nKL(recomputed ‖ turned) of the answer's first token, in nats. Branches are isolated; those that see one "
            f"another (columnar) are joined by recomputing alone. Timed: {args.shape}, {args.dtype}, random weights.\n"
        )
        print(save("joining", "Joining branches by turning their keys, and by recomputing", table, notes))


if __name__ == "__main__":
    main()
