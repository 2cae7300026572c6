"""The folder in which the documents are read: entry points, models under their hub names, data; and its commands."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from parallelmind.models.identity import bundled_model_path
from tests.programs import run_program

ROOT = Path(__file__).parents[2]
ENTRY_POINTS = ("scripts", "trainer", "utils", "model", "parallel", "parallel_generate.py")
MODELS = (
    "Qwen/Qwen2-0.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-7B-Instruct",
    "Qwen/Qwen2.5-14B-Instruct", "path/to/model",
)  # fmt: skip
"""The bundled model stands for each: weights are not downloaded here."""
ADAPTERS = {
    "qwen2_parallel_lora_hf_final": 8, "xxx": 8, "xxx_final": 8, "qwen2_lora_final": 8, "qwen2_14b_lora_final": 32,
    "writer_lora_hf_final": 16, "code_lora_hf_final": 32,
}  # fmt: skip
"""Adapters that the documents take for granted, with their ranks; the others they train."""
JOBS = ("parallel_inference_hf_lora.py", "multi_worker_inference.py", "batch_context_generator.py")
PROCESSES = 2
"""Instead of the 4 or 8 of the documents."""
FEW_TOKENS = ("--max_new_tokens", "12", "--ignore_eos")
"""Added to commands that answer: 512 tokens take a minute each, and the bundled model would end with none."""
_UNSET = ("PYTHONPATH", "CUDA_VISIBLE_DEVICES", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True, slots=True)
class Done:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        return self.out + self.err


class Desk:
    """A reader's folder.

    Args:
        folder: empty.
        as_printed: commands are processes, and torchrun starts two; else they run in this process, which has imported
            what takes long, and a torchrun line as its one rank.
    """

    def __init__(self, folder: Path, *, as_printed: bool) -> None:
        self.folder = folder
        self.as_printed = as_printed
        self._prepare()

    def command(self, line: str, *more: str, stdin: str = "", code: int = 0, **variables: str) -> Done:
        """Type a command line, and `more` behind it; it must end with this exit code."""
        words = [*_with_few_processes(shlex.split(line)), *more]
        if self.as_printed or words[0] not in ("python", "torchrun"):
            done = self._as_process(words, stdin, variables)
        else:
            done = self._in_this_process(_without_launcher(words), stdin, variables)
        assert done.code == code, f"{shlex.join(words)}\n{done.out[-3000:]}\n{done.err[-5000:]}"
        return done

    def python(self, source: str) -> dict[str, Any]:
        """Run Python code as a script of this folder; its variables."""
        names: dict[str, Any] = {"__name__": "__main__"}
        with self._at_home({}):
            exec(compile(source, "block.py", "exec"), names)
        return names

    def rows(self, path: str) -> list[dict[str, Any]]:
        return rows_of(self.folder / path)

    def write(self, path: str, text: str) -> None:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def exists(self, path: str) -> bool:
        return (self.folder / path).exists()

    def _prepare(self) -> None:
        self.folder.mkdir(exist_ok=True)
        for name in ENTRY_POINTS:
            (self.folder / name).symlink_to(ROOT / name)
        for name in MODELS:
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(bundled_model_path())
        _write_data(self)
        _write_adapters(self)

    @contextlib.contextmanager
    def _at_home(self, variables: dict[str, str]) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in _UNSET:
                patch.delenv(name, raising=False)
            for name, value in variables.items():
                patch.setenv(name, value)
            patch.chdir(self.folder)
            patch.syspath_prepend(str(self.folder))
            yield

    def _as_process(self, words: Sequence[str], stdin: str, variables: dict[str, str]) -> Done:
        environment = {name: value for name, value in os.environ.items() if name not in _UNSET}
        environment |= {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "OMP_NUM_THREADS": "1",
            "PET_STANDALONE": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join([str(self.folder), str(ROOT / "src")]),
        }
        done = subprocess.run(
            words,
            input=stdin,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=environment | variables,
            timeout=600,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def _in_this_process(self, words: Sequence[str], stdin: str, variables: dict[str, str]) -> Done:
        script, *flags = words
        if Path(script).name in JOBS:
            flags += ["--workers", "0"]  # a process of its own would import everything again
        out, err = io.StringIO(), io.StringIO()
        with self._at_home(variables), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run_program(script, *flags, stdin=stdin)
        return Done(code if isinstance(code, int) else int(code is not None), out.getvalue(), err.getvalue())


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _with_few_processes(words: list[str]) -> list[str]:
    if words[0] != "torchrun":
        return words
    if words[1] == "--nproc_per_node":
        return [words[0], f"--nproc_per_node={PROCESSES}", *words[3:]]
    return [words[0], f"--nproc_per_node={PROCESSES}", *words[2:]]


def _without_launcher(words: list[str]) -> list[str]:
    return [word for word in words[2:] if word != "--ddp"] if words[0] == "torchrun" else words[1:]


def _write_data(desk: Desk) -> None:
    def lines(path: str, rows: Sequence[Any]) -> None:
        desk.write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def records(count: int, branches: int) -> list[dict[str, Any]]:
        return [
            {"main": f"故事 {n}: Tom has {n} apples.", "branches": [f"分支 {n}.{b}" for b in range(branches)]}
            for n in range(count)
        ]

    lines("dataset/pretrain_hq_split.jsonl", [*records(2, 3), {"text": "只有主分支的文本"}])
    lines("dataset/test.jsonl", records(3, 2))
    lines("dataset/test_10k.jsonl", records(2, 5))
    lines("dataset/test_100.jsonl", records(3, 2))
    lines("dataset/sft_test.jsonl", records(3, 2))
    lines("dataset/sft_data_parallel.jsonl", records(8, 8))
    lines("dataset/test_parallel.jsonl", records(6, 4))
    lines("dataset/full_parallel.jsonl", records(6, 8))
    turns = [("user", "什么是人工智能？"), ("assistant", "机器的智能。")]
    conversation = [{"role": role, "content": text} for role, text in turns]
    lines("dataset/medical_data.jsonl", [{"conversations": conversation} for _ in range(6)])
    lines("dataset/sft_data.jsonl", [{"conversations": conversation} for _ in range(12)])
    lines(
        "HuggingFaceFW/fineweb-edu/sample/train.jsonl",
        [{"text": f"An educational text, number {n}."} for n in range(9)],
    )
    desk.write(
        "HuggingFaceFW/fineweb-edu/README.md",
        "---\nconfigs:\n- config_name: sample-10BT\n  data_files: sample/train.jsonl\n---\n",
    )
    lines("your-dataset/train.jsonl", [{"text": f"Text {n}."} for n in range(9)])
    lines("data/temp/contexts/batch_contexts.jsonl", [_context(n) for n in range(11)])


def _context(number: int) -> dict[str, Any]:
    return {
        "id": f"item_{number}",
        "original_item_id": f"original_{number}",
        "query_index": 1,
        "dedup_key": f"key_{number}",
        "query": "How old is Dan?",
        "target_api": "numpy.array",
        "dependencies": {"numpy": "1.16.6"},
        "retrieval_method": "exact_api_match",
        "context": f"Story: The age of Dan is {20 + number}.",
        "context_length": 30,
        "retrieval_time": 0.12,
        "success": True,
    }


def _write_adapters(desk: Desk) -> None:
    from parallelmind import load_model_with_lora
    from parallelmind.models.lora import apply_lora, save_lora

    for rank in set(ADAPTERS.values()):
        model = apply_lora(load_model_with_lora("tiny", device="cpu", dtype="float32").model, rank=rank, seed=0)
        for name in (name for name, one in ADAPTERS.items() if one == rank):
            (desk.folder / "out" / "lora").mkdir(parents=True, exist_ok=True)
            save_lora(model, desk.folder / "out" / "lora" / f"{name}.pth")
