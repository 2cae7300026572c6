"""The server under load: against the engine alone, and against other servers, on work with shared texts.

    python benchmarks/serving.py --save

Clients work at the same time, each with a text of its own and several branches under it, over HTTP in streams. Peers
get every branch as a request of its own, all of a client's requests beginning with its text, as their APIs ask for.
The engine alone gets the same requests in one call. All decode greedily to the full length, on a CPU in float32.
The models: the bundled one (1M parameters), and a random one of 387M parameters.

Peers: `transformers serve` with and without continuous batching (pip install 'transformers[serving]'), and the server
of llama-cpp-python (pip install 'llama-cpp-python[server]' gguf). A peer that cannot run is printed as such.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # for all peers: see parallelmind.cli.main

import torch
from decoding import SHAPES, VOCABULARY
from gguf_model import write_gguf
from machine import describe, save
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from parallelmind import Engine, Request, SamplingParams

PROMPT_WORDS = 8
PEER_TIMEOUT = 150
CHAT_TEMPLATE = "{{ messages[0]['content'] }}"


@dataclass(frozen=True)
class Load:
    """What the clients ask for."""

    clients: int
    branches: int
    main_words: int
    new_tokens: int
    stories: bool = False
    """Texts that the bundled model understands; of others it makes nothing that can be seen to arrive."""

    @property
    def tokens(self) -> int:
        return self.clients * self.branches * self.new_tokens

    def requests(self, seed: int) -> list[tuple[str, list[str]]]:
        """(main, prompts) of each client; another seed shares no text."""
        rng = random.Random(seed)
        if self.stories:
            sentences = self.main_words // 5
            prices = [[rng.randrange(10, 99) for _ in range(sentences)] for _ in range(self.clients)]
            mains = ["".join(f" The hat costs {price} dollars." for price in each) for each in prices]
            return [(f"Story:{main}\n", ["How much does the hat cost?"] * self.branches) for main in mains]

        def words(count: int) -> str:
            return " ".join(f"w{rng.randrange(VOCABULARY - 1)}" for _ in range(count))

        return [
            (words(self.main_words), [f" {words(PROMPT_WORDS)}" for _ in range(self.branches)])
            for _ in range(self.clients)
        ]


def save_model(folder: Path) -> None:
    """A random model of the llama architecture, with a tokenizer of whole words."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        bos_token_id=None,
        eos_token_id=None,
        **SHAPES["387m"],
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary = {f"w{number}": number for number in range(VOCABULARY - 1)} | {"<unk>": VOCABULARY - 1}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<unk>")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)


def offline(engine: Engine, load: Load, seed: int) -> tuple[float, float]:
    """(seconds to the first token of the first request alone, tokens a second of all requests together)."""
    params = SamplingParams(max_new_tokens=load.new_tokens, temperature=0, ignore_eos=True)
    main, prompts = load.requests(seed + 1)[0]
    started = time.perf_counter()
    for _ in engine.stream([Request(main=main, branches=prompts)], params):
        first = time.perf_counter() - started
        break
    requests = [Request(main=main, branches=prompts) for main, prompts in load.requests(seed)]
    started = time.perf_counter()
    results = engine.generate(requests, params)
    seconds = time.perf_counter() - started
    assert sum(len(branch.token_ids) for result in results for branch in result.branches) == load.tokens
    return first, load.tokens / seconds


@contextmanager
def server(command: list[str], ready: str, port: int) -> Iterator[None]:
    """A server process, from when it answers until the end of the block."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 120
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}{ready}", timeout=5)
                    break
                except (urllib.error.URLError, OSError):
                    if process.poll() is not None or time.monotonic() > deadline:
                        log.seek(0)
                        said = log.read().decode(errors="replace").strip().splitlines()
                        raise RuntimeError(said[-1] if said else "no answer") from None
                    time.sleep(0.2)
            yield
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def streamed(port: int, path: str, body: Any) -> tuple[float, bytes]:
    """(seconds to the first token, the whole answer) of a request."""
    raw = json.dumps(body).encode()
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
    pieces: list[bytes] = []
    first = 0.0
    while piece := await reader.read(2**16):
        pieces.append(piece)
        if not first and (b'"token"' in piece or b'"content":"w' in piece):
            first = time.perf_counter() - started
    writer.close()
    return first, b"".join(pieces)


async def ours(port: int, load: Load, seed: int) -> tuple[float, float]:
    """As `offline`, over HTTP."""

    def body(main: str, prompts: list[str]) -> dict[str, Any]:
        return {
            "main": main,
            "branches": [{"prompt": prompt} for prompt in prompts],
            "max_tokens": load.new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }

    first, _ = await streamed(port, "/v1/branches", body(*load.requests(seed + 1)[0]))
    started = time.perf_counter()
    answers = await asyncio.gather(*(streamed(port, "/v1/branches", body(*r)) for r in load.requests(seed)))
    seconds = time.perf_counter() - started
    done = sum(int(re.findall(rb'"completion_tokens":(\d+)', answer)[-1]) for _, answer in answers)
    assert done == load.tokens, f"{done} of {load.tokens} tokens came"
    return first, load.tokens / seconds


async def peers(port: int, model: str, load: Load, seed: int) -> float:
    """Tokens a second, every branch a chat completion of its own."""
    bodies = [
        {
            "model": model,
            "messages": [{"role": "user", "content": main + prompt}],
            "max_tokens": load.new_tokens,
            "temperature": 0,
        }
        for main, prompts in load.requests(seed)
        for prompt in prompts
    ]
    started = time.perf_counter()
    async with asyncio.timeout(PEER_TIMEOUT):
        answers = await asyncio.gather(*(streamed(port, "/v1/chat/completions", body) for body in bodies))
    seconds = time.perf_counter() - started
    done = 0
    for _, answer in answers:
        if b" 200 " not in answer.split(b"\r\n", 1)[0]:
            raise RuntimeError(answer[-300:].decode(errors="replace"))
        found = re.search(rb'"completion_tokens":\s*(\d+)', answer)
        done += int(found[1]) if found else 0
    if done != load.tokens:
        raise RuntimeError(f"it generated {done} tokens of the {load.tokens} asked for")
    return load.tokens / seconds


def measure(name: str, base_model: str, load: Load, rounds: int, port: int) -> list[str]:
    """Rows of the first table."""
    engine = Engine.from_pretrained(base_model, device="cpu", dtype="float32")
    offline(engine, load, -10)
    command = [sys.executable, "-m", "parallelmind", "serve", "--base_model", base_model, "--dtype", "float32"]
    alone, served = [], []
    with server([*command, "--device", "cpu", "--port", str(port)], "/health", port):
        asyncio.run(ours(port, load, -10))
        for number in range(rounds):  # in turns, since the speed of a machine drifts
            alone.append(offline(engine, load, 100 + 2 * number))
            served.append(asyncio.run(ours(port, load, 100 + 2 * number)))
    first_alone, rate_alone = (statistics.median(column) for column in zip(*alone, strict=True))
    first_served, rate_served = (statistics.median(column) for column in zip(*served, strict=True))
    return [
        f"| {name}: {load.clients} × {load.branches}, text {load.main_words} words, {load.new_tokens} new "
        f"| {rate_alone:.0f} | {rate_served:.0f} | {rate_served / rate_alone:.2f} "
        f"| {1000 * first_alone:.1f} ms | {1000 * first_served:.1f} ms | {1000 * (first_served - first_alone):.1f} ms |"
    ]


def compare(base_model: str, load: Load, port: int) -> list[str]:
    """Rows of the second table."""
    python = [sys.executable, "-m"]
    transformers = [str(Path(sys.executable).parent / "transformers"), "serve", base_model, "--device", "cpu"]
    transformers += ["--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    mine = [*python, "parallelmind", "serve", "--base_model", base_model, "--dtype", "float32", "--device", "cpu"]
    commands: dict[str, tuple[list[str], str] | str] = {
        "parallelmind serve": ([*mine, "--port", str(port)], "/health"),
        "transformers serve": (transformers, "/health"),
        "transformers serve --continuous-batching": ([*transformers, "--continuous-batching"], "/health"),
        "llama-cpp-python": "not run: llama-cpp-python or gguf is not installed",
    }
    if find_spec("llama_cpp") is not None and find_spec("gguf") is not None:
        words = [f"w{number}" for number in range(VOCABULARY - 1)] + ["<unk>"]
        file = Path(base_model) / "model.gguf"
        write_gguf(Path(base_model), file, words=words, chat_template=CHAT_TEMPLATE)
        llama = [*python, "llama_cpp.server", "--model", str(file), "--host", "127.0.0.1", "--port", str(port)]
        # As many threads for prompts and for single tokens as the others have.
        llama += ["--n_threads", str(torch.get_num_threads()), "--n_threads_batch", str(torch.get_num_threads())]
        commands["llama-cpp-python"] = (llama, "/v1/models")
    rows, best = [], 0.0
    for name, command in commands.items():
        if isinstance(command, str):
            rows.append(f"| {name} | {command} | – |")
            continue
        try:
            with server(*command, port):
                if name == "parallelmind serve":
                    asyncio.run(ours(port, load, 900))
                    _, rate = asyncio.run(ours(port, load, 902))
                    best = rate
                else:
                    rate = asyncio.run(peers(port, base_model, load, 902))
            rows.append(f"| {name} | {rate:.1f} | {best / rate:.1f}× |")
        except TimeoutError:
            rows.append(f"| {name} | below {load.tokens / PEER_TIMEOUT:.1f} (stopped after {PEER_TIMEOUT} s) | – |")
        except (RuntimeError, OSError) as error:
            rows.append(f"| {name} | did not run: {str(error).strip()[:160]} | – |")
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure both models, then the peers on the larger one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--branches", type=int, default=4)
    parser.add_argument("--main", type=int, default=128, help="words of each shared text")
    parser.add_argument("--new_tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer_clients", type=int, default=4)
    parser.add_argument("--models", nargs="+", choices=["tiny", "387m"], default=["tiny", "387m"])
    parser.add_argument("--no_peers", action="store_true")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--save", action="store_true", help="write the result to benchmarks/results/")
    args = parser.parse_args()
    print(describe())
    lines = [
        "| clients × branches | engine, tokens/s | server, tokens/s | ratio | first token, engine | server | more |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        load = Load(args.clients, args.branches, args.main, args.new_tokens)
        if "tiny" in args.models:
            short = Load(args.clients, args.branches, args.main, args.new_tokens, stories=True)
            lines += measure("bundled", "tiny", short, 2 * args.rounds + 1, args.port)
            print(lines[-1], flush=True)
        if "387m" in args.models:
            save_model(Path(folder))
            lines += measure("387M", folder, load, args.rounds, args.port)
            print(lines[-1], flush=True)
            if not args.no_peers:
                lines += [
                    "",
                    f"The same work for {args.peer_clients} clients, 387M:",
                    "",
                    "| server | tokens/s | ParallelMind is |",
                    "|---|---|---|",
                ]
                fewer = Load(args.peer_clients, args.branches, args.main, args.new_tokens)
                lines += compare(folder, fewer, args.port)
    table = "\n".join(lines)
    print("\n" + table)
    if args.save:
        print(
            save("serving", "Serving", table, f"\nfloat32, medians of {args.rounds} rounds (bundled: more), greedy.\n")
        )


if __name__ == "__main__":
    main()
