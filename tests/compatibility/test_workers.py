"""Many workers: the scripts as they are written, the division of records and GPUs, and a slow worker."""

from __future__ import annotations

import itertools
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from parallelmind.demos.retrieval import ASSETS
from parallelmind.jobs.gpus import assign_gpus, visible_gpus
from parallelmind.jobs.leases import slice_bounds
from tests.compatibility.command_lines import link_checkout, run_line
from tests.compatibility.contract import proves
from tests.tasks.answering import context_row, read_rows, write_rows

FOLDER = "utils/RAGutils/queryResultByInfer"
WORKERS = f"bash {FOLDER}/run_multi_worker_inference.sh"
PIPELINE = f"bash {FOLDER}/run_complete_pipeline.sh"
UPPER = """
from multi_worker_inference import QueryBasedInference

class Upper(QueryBasedInference):
    def generate_answer(self, query, context, retrieval_method):
        return f"{query.upper()} | {context} | {retrieval_method}"
"""
SLOW = """
import os, time
from pathlib import Path
from parallelmind import QueryBasedInference

class Slow(QueryBasedInference):
    def setup(self):
        self.done, self.begun = Path("done"), False
        self.done.mkdir(exist_ok=True)

    def wait_for(self, pattern, count):
        until = time.monotonic() + 120
        while len(list(self.done.glob(pattern))) < count:
            assert time.monotonic() < until, f"{pattern}: {list(self.done.iterdir())}"
            time.sleep(0.02)

    def generate_answer(self, query, context, retrieval_method):
        if not self.begun:
            self.begun = True
            (self.done / f"worker-{os.getpid()}").touch()
            self.wait_for("worker-*", 4)
        if query == "slow":
            self.wait_for("answer-*", 48)
        (self.done / f"answer-{query}").touch()
        return os.environ["CUDA_VISIBLE_DEVICES"]
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return link_checkout(tmp_path)


def fake_program(folder: Path, name: str, body: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)
    return path


@proves("workers", "run_multi_worker_inference.sh", "NUM_WORKERS", "a slow worker")
@proves("workers", "gpus_per_worker = total_gpus // num_workers", "slicing")
def test_four_workers_on_eight_gpus(checkout: Path) -> None:
    """Four processes own two each of eight GPUs (listed by a stand-in of nvidia-smi) and answer 60 questions once; the
    slowest ends when 48 are answered by the others, which help with its slice.
    """
    fake_program(checkout / "bin", "nvidia-smi", 'for n in {0..7}; do echo "GPU $n: A"; done')
    (checkout / "slow.py").write_text(SLOW)
    questions = ["slow", *(f"q{n}" for n in range(1, 60))]
    write_rows(checkout / "contexts.jsonl", [context_row(n, text, "c") for n, text in enumerate(questions)])
    variables = {"NUM_WORKERS": "4", "MODEL_PATH": "none"}
    variables |= {"CONTEXTS_FILE": "contexts.jsonl", "OUTPUT_FILE": "answers.jsonl", "PATH": str(checkout / "bin")}
    done = run_line(f"{WORKERS} --backend slow.py:Slow", cwd=checkout, **variables)
    rows = read_rows(checkout / "answers.jsonl")
    assert [row["id"] for row in rows] == list(range(60))
    assert {row["worker_rank"] for row in rows} == {0, 1, 2, 3}
    assert all(row["answer"] == f"{2 * row['worker_rank']},{2 * row['worker_rank'] + 1}" for row in rows)
    for worker in range(4):
        assert f"worker {worker}: GPU {2 * worker}, {2 * worker + 1}" in done.stderr
        assert f"Worker {worker} INFERENCE STATISTICS" in done.stdout
    assert "TOTAL INFERENCE STATISTICS (4 workers)" in done.stdout
    assert "60 records = 60 successful + 0 errors" in done.stdout


@proves("workers", "TOTAL_GPUS", "GPUS_PER_WORKER", "NUM_WORKERS", "MAX_SAMPLES_PER_WORKER", "CUDA_VISIBLE_DEVICES")
@proves("workers", "no GPU")
def test_the_variables(checkout: Path) -> None:
    """The flags that the script gives for variables, and that it leaves CUDA_VISIBLE_DEVICES as it is."""
    show = fake_program(checkout / "bin", "show", 'echo "${CUDA_VISIBLE_DEVICES-all}|$*"')
    (checkout / "in").touch()
    common = {"CONTEXTS_FILE": "in", "OUTPUT_FILE": "out", "MODEL_PATH": "m", "PYTHON": str(show)}

    def started(**variables: str) -> tuple[str, list[str]]:
        gpus, _, line = run_line(WORKERS, cwd=checkout, **common, **variables).stdout.strip().partition("|")
        words, answer = line.split()[5:], ["--max_new_tokens", "512", "--temperature", "0.1"]
        assert words[-4:] == answer
        return gpus, words[:-4]  # between the two files and how it answers

    def local(workers: str) -> list[str]:
        return ["--inference_type", "local", "--workers", workers, "--model_path", "m"]

    assert started() == ("all", local("1"))
    assert started(NUM_WORKERS="4", TOTAL_GPUS="8") == ("all", [*local("4"), "--total_gpus", "8"])
    assert started(TOTAL_GPUS="2", CUDA_VISIBLE_DEVICES="4,5,6,7") == ("4,5,6,7", [*local("1"), "--total_gpus", "2"])
    assert started(TOTAL_GPUS="0") == ("all", [*local("1"), "--total_gpus", "0"])
    assert started(GPUS_PER_WORKER="3", MAX_SAMPLES_PER_WORKER="5") == (
        "all", [*local("1"), "--gpus_per_worker", "3", "--max_samples_per_worker", "5"]
    )  # fmt: skip


@proves("workers", f"bash {FOLDER}/run_multi_worker_inference.sh")
def test_a_bare_script(checkout: Path) -> None:
    """Without a context file it says so, and how to make one; with the file at its documented place it runs."""
    (checkout / "upper.py").write_text(UPPER)
    with pytest.raises(AssertionError, match=r"batch_contexts\.jsonl does not exist: set CONTEXTS_FILE"):
        run_line(WORKERS, cwd=checkout)
    data, out = (checkout / "data" / "temp" / name for name in ("contexts", "inference"))
    data.mkdir(parents=True)
    write_rows(data / "batch_contexts.jsonl", [context_row(0, "q", "c")])
    run_line(f"{WORKERS} --backend upper.py:Upper", cwd=checkout)
    assert [row["answer"] for row in read_rows(out / "results.jsonl")] == ["Q | c | exact_api_match"]


@proves("workers", "TOTAL_GPUS", "GPUS_PER_WORKER", "CUDA_VISIBLE_DEVICES", "fewer GPUs than workers", "no GPU")
def test_too_few_gpus_are_shared_and_none_is_the_cpu(checkout: Path) -> None:
    """Two of eight GPUs may be used and four workers want two each: all have both. Without a GPU: the CPU."""
    fake_program(checkout / "eight", "nvidia-smi", 'for n in {0..7}; do echo "GPU $n: A"; done')
    fake_program(checkout / "none", "nvidia-smi", "exit 9")
    (checkout / "upper.py").write_text(UPPER)
    write_rows(checkout / "contexts.jsonl", [context_row(n, f"q{n}", "c") for n in range(8)])
    variables = {"CUDA_VISIBLE_DEVICES": "0,1", "NUM_WORKERS": "4", "TOTAL_GPUS": "8", "GPUS_PER_WORKER": "2"}
    variables |= {"CONTEXTS_FILE": "contexts.jsonl", "OUTPUT_FILE": "answers.jsonl"}
    for programs, share, reason in (
        ("eight", "GPU 0, 1 (shared)", "4 workers with --gpus_per_worker 2 need 8 GPUs, 2 are there: they share them"),
        (
            "none",
            "CPU",
            "no GPU is visible: the workers run on the CPU in spite of --gpus_per_worker 2 and --total_gpus",
        ),
    ):
        path = {"PATH": str(checkout / programs)}
        done = run_line(f"{WORKERS} --backend upper.py:Upper --overwrite", cwd=checkout, **variables, **path)
        assert all(f"worker {worker}: {share}\n" in done.stderr for worker in range(4))
        assert done.stderr.count(reason) == 1
        assert len(read_rows(checkout / "answers.jsonl")) == 8


@proves("workers", "gpus_per_worker = total_gpus // num_workers", "GPUS_PER_WORKER", "CUDA_VISIBLE_DEVICES", "no GPU")
@proves("workers", "fewer GPUs than workers")
def test_shares_of_gpus(caplog: pytest.LogCaptureFixture) -> None:
    """8 GPUs and 4 workers: [0, 1], [2, 3], …; within a restricted set; shared, which the log says; and none."""

    def shares(workers: int, gpus: list[str], **more: Any) -> list[str]:
        return [str(assign_gpus(worker, workers, gpus, **more)) for worker in range(workers)]

    eight = visible_gpus({}, 8)
    assert shares(4, eight) == ["GPU 0, 1", "GPU 2, 3", "GPU 4, 5", "GPU 6, 7"]
    assert shares(3, eight) == ["GPU 0, 1", "GPU 2, 3", "GPU 4, 5"]
    assert shares(2, eight, gpus_per_worker=3) == ["GPU 0, 1, 2", "GPU 3, 4, 5"]
    assert shares(2, visible_gpus({"CUDA_VISIBLE_DEVICES": "2,5,6,7"}, 8)) == ["GPU 2, 5", "GPU 6, 7"]
    assert shares(3, ["0", "1"]) == ["GPU 0 (shared)", "GPU 1 (shared)", "GPU 0 (shared)"]
    assert shares(2, visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, 8)) == ["CPU", "CPU"]
    assert assign_gpus(1, 4, eight).environment == {"CUDA_VISIBLE_DEVICES": "2,3"}
    with caplog.at_level(logging.INFO):
        _log_of_shared_gpus()
    assert "worker 1: GPU 5 (shared)" in caplog.messages


def _log_of_shared_gpus() -> None:
    from parallelmind.jobs.options import RunOptions
    from parallelmind.jobs.ranks import Rank
    from parallelmind.jobs.transports.local import gpu_share

    gpu_share(Rank(1, 2), RunOptions(workers=2), visible_gpus({"CUDA_VISIBLE_DEVICES": "5"}, 8))


@proves("workers", "slicing", "test_multi_worker_inference.py --skip-inference")
def test_slices(checkout: Path) -> None:
    """The checking script passes; for up to 60 records and 9 workers, slices hold every record once and are even."""
    line = f"python {FOLDER}/test_multi_worker_inference.py --skip-inference"
    done = run_line(line, cwd=checkout)
    assert done.stdout.splitlines()[-1] == "all checks passed"
    assert "worker 3: records 78 to 103, 25 of them" in done.stdout
    assert "workers wrote" not in done.stdout
    for records, workers in itertools.product(range(61), range(1, 10)):
        slices = [range(start, stop) for start, stop in slice_bounds(records, workers)]
        assert list(itertools.chain(*slices)) == list(range(records))
        assert len(slices) == workers
        assert max(map(len, slices)) - min(map(len, slices)) <= 1


@proves("answer", f"torchrun --nproc_per_node=4 {FOLDER}/multi_worker_inference.py", "Worker N INFERENCE STATISTICS")
@proves("answer", "Results saved to: output_rank0.jsonl")
@proves("backends", "from multi_worker_inference import QueryBasedInference")
def test_torchrun_and_a_class_of_the_user(checkout: Path) -> None:
    """Two ranks answer with a class that overrides `generate_answer`: every row once, a block and a file for each rank
    that had rows, the total."""
    (checkout / "upper.py").write_text(UPPER)
    write_rows(checkout / "contexts.jsonl", [context_row(n, f"问q{n}", "c") for n in range(30)])
    flags = "--contexts_file contexts.jsonl --output_file answers.jsonl --backend upper.py:Upper"
    line = f"torchrun --nproc_per_node=2 {FOLDER}/multi_worker_inference.py {flags}"
    done = run_line(line, cwd=checkout)
    rows = read_rows(checkout / "answers.jsonl")
    assert [row["answer"] for row in rows] == [f"问Q{n} | c | exact_api_match" for n in range(30)]
    titles = [line for line in done.stdout.splitlines() if "STATISTICS" in line]
    each = [f"Worker {rank} INFERENCE STATISTICS" for rank in range(2)]
    assert titles == [*each, "TOTAL INFERENCE STATISTICS (2 workers)"]
    for rank in {row["worker_rank"] for row in rows}:
        own = read_rows(checkout / f"answers_rank{rank}.jsonl")
        assert own == [row for row in rows if row["worker_rank"] == rank]
        block = f"Worker {rank} INFERENCE STATISTICS\n{'=' * 60}\nTotal contexts processed: {len(own)}\n"
        assert f"{block}Successful inferences: {len(own)}\nErrors: 0\nSuccess rate: 100.0%\n" in done.stdout
        assert f"Results saved to: answers_rank{rank}.jsonl\n" in done.stdout


@proves("workers", "run_complete_pipeline.sh", "NUM_WORKERS", "TOTAL_GPUS", "no GPU")
def test_the_whole_pipeline(checkout: Path) -> None:
    """Queries of the bundled corpus to contexts to answers, with two workers on the CPU.

    The bundled model answers in tests/cli/test_answer_scripts.py; here a class of the user does, which loads faster.
    """
    (checkout / "upper.py").write_text(UPPER)
    variables = {"QUERIES_FILE": str(ASSETS / "queries.json"), "CORPUS_PATH": str(ASSETS / "corpus")}
    variables |= {"MODEL_PATH": "tiny", "NUM_WORKERS": "2", "TOTAL_GPUS": "0", "MAX_SAMPLES_PER_WORKER": "2"}
    variables |= {"CONTEXT_FLAGS": "--max_tokens 100 --index_path index", "MAX_NEW_TOKENS": "4"}
    done = run_line(f"{PIPELINE} --backend upper.py:Upper", cwd=checkout, **variables)
    out = checkout / "data" / "temp"
    contexts, answers = (read_rows(out / name) for name in ("contexts/batch_contexts.jsonl", "inference/results.jsonl"))
    assert len(contexts) == 28
    assert [row["id"] for row in answers] == [row["id"] for row in contexts[:4]]
    assert all(row["success"] and row["answer"].startswith(row["query"].upper()) for row in answers)
    assert all(f"Worker {rank} INFERENCE STATISTICS" in done.stdout for rank in range(2))
    assert json.loads((out / "inference" / "results.jsonl.job" / "stats.json").read_text())["successful"] == 4
