"""What it costs that a branch has the same bits in any company: the engine with and without it, timed in turns.

    python benchmarks/deterministic.py --save

Of each main and number of branches: how long prefilling takes, and a step of decoding; the fastest of several. The
model is random, of the shapes given. Without it layers are packed as is fastest and computed with any number of rows.
"""

from __future__ import annotations

import argparse
import os
import time

# As the command line does: see parallelmind.cli.main.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from decoding import DTYPES, SHAPES, VOCABULARY, NoTokenizer, random_model
from machine import describe, save

from parallelmind import Engine, Request, SamplingParams
from parallelmind.models.cpu.optimize import optimize_for_cpu


def engine_of(shape: str, dtype: torch.dtype, *, deterministic: bool) -> Engine:
    """An engine on a random model."""
    model = random_model(shape, dtype)
    optimize_for_cpu(model, deterministic=deterministic)
    engine = Engine(model, NoTokenizer(), max_running_branches=None, prefix_cache_bytes=0, deterministic=deterministic)
    assert engine.deterministic == deterministic
    return engine


def timed(engine: Engine, request: Request, new_tokens: int) -> tuple[float, float]:
    """Seconds until all branches decode, and of the fastest step of all of them."""
    engine.add_request(request, SamplingParams(max_new_tokens=new_tokens, temperature=0, ignore_eos=True))
    started, steps, prefilled = time.perf_counter(), [], 0.0
    while engine.has_unfinished():
        before = time.perf_counter()
        events = engine.step()
        now = time.perf_counter()
        if len(events) == len(request.branches):
            prefilled = prefilled or now - started
            steps.append(now - before)
    return prefilled, min(steps[1:])


def main() -> None:
    """Time both for each main and number of branches, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, nargs="+", default=["387m", "1.5b-part"])
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["bfloat16"])
    parser.add_argument("--main", type=int, nargs="+", default=[128, 1024], help="tokens of main")
    parser.add_argument("--branches", type=int, nargs="+", default=[1, 8, 16, 64])
    parser.add_argument("--new_tokens", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write the result to benchmarks/results/")
    args = parser.parse_args()
    print(describe())
    lines = [
        "| shape, format | main × branches | prefill, without | with | ratio | step, without | with | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    generator = torch.Generator().manual_seed(1)
    for shape in args.shape:
        for dtype in args.dtype:
            engines = [engine_of(shape, DTYPES[dtype], deterministic=wanted) for wanted in (False, True)]
            for length in args.main:
                for count in args.branches:
                    ids = torch.randint(VOCABULARY, (count + 1, max(length, 8)), generator=generator).tolist()
                    request = Request(main=ids[0][:length], branches=[prompt[:8] for prompt in ids[1:]])
                    found = [
                        [timed(engine, request, args.new_tokens) for engine in engines] for _ in range(args.repeats)
                    ]
                    plain, even = (list(map(min, zip(*runs, strict=True))) for runs in zip(*found, strict=True))
                    cells = [
                        f"{a * 1e3:.1f} ms | {b * 1e3:.1f} ms | {b / a:.2f}" for a, b in zip(plain, even, strict=True)
                    ]
                    lines.append(f"| {shape}, {dtype} | {length} × {count} | {' | '.join(cells)} |")
                    print(lines[-1], flush=True)
    if args.save:
        print(save("deterministic", "What the same bits in any company cost", "\n".join(lines) + "\n"))


if __name__ == "__main__":
    main()
