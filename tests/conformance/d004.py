"""Document 004: answering over contexts with many workers."""

from __future__ import annotations

import re
from collections import Counter

from tests.conformance.blocks import Block, Document, by_design
from tests.conformance.desk import FEW_TOKENS, PROCESSES, Desk, Done

FOLDER = "utils/RAGutils/queryResultByInfer"
FLAGS = (
    f"{FOLDER}/multi_worker_inference.py --contexts_file data/temp/contexts/batch_contexts.jsonl "
    "--output_file data/temp/inference/results.jsonl --model_path path/to/model --inference_type local "
    "--max_new_tokens 512 --temperature 0.1"
)
SINGLE, SEVERAL = f"python {FLAGS}", f"torchrun --nproc_per_node=4 {FLAGS}"
SCRIPT = f"bash {FOLDER}/run_multi_worker_inference.sh"
RESULTS = "data/temp/inference/results.jsonl"
FIELDS = {
    "id", "original_item_id", "query_index", "dedup_key", "query", "target_api", "dependencies", "retrieval_method",
    "context_length", "answer", "retrieval_time", "inference_time", "total_time", "worker_rank", "success",
}  # fmt: skip
LABELS = (
    "Worker 0 INFERENCE STATISTICS", "Total contexts processed: ", "Successful inferences: ", "Errors: ",
    "Success rate: ", "Average inference time: ", "Results saved to: ",
)  # fmt: skip
CUSTOM = """
from multi_worker_inference import QueryBasedInference


class CustomInference(QueryBasedInference):
    def generate_answer(self, query, context, retrieval_method):
        return f"{query} {retrieval_method} {len(context)}"
"""
SETTINGS = ((298, 2, 4, 2, 100), (306, 4, 8, 2, 1000), (314, 8, 8, 1, 5000), (322, 2, 8, 4, 2000))


def answered(desk: Desk, line: str, *more: str, **variables: str) -> str:
    """Rows of the output, and how they are divided."""
    done = desk.command(line, *more, *FEW_TOKENS, **variables)
    return seen(desk, done)


def seen(desk: Desk, done: Done) -> str:
    rows = desk.rows(RESULTS)
    assert [row["id"] for row in rows] == [f"item_{n}" for n in range(len(rows))]
    assert all(set(row) >= FIELDS and row["success"] for row in rows)
    again = ", complete already" if "is complete already" in done.said else ""
    return f"{len(rows)} rows in order, all answered{again}"


def divided(desk: Desk) -> str:
    """A small file is divided evenly; one process does it alone."""
    desk.command(SEVERAL, "--overwrite", *FEW_TOKENS)
    shares = Counter(row["worker_rank"] for row in desk.rows(RESULTS))
    workers = PROCESSES if desk.as_printed else 1
    assert sorted(shares.values()) == sorted(11 // workers + (number < 11 % workers) for number in range(workers))
    return "shares that differ by one at most"


def statistics(desk: Desk) -> str:
    done = desk.command(SEVERAL, "--overwrite", *FEW_TOKENS)
    missing = [label for label in LABELS if label not in done.out]
    assert not missing, done.out
    assert re.search(r"^Success rate: 100\.0%$", done.out, re.MULTILINE)
    return "every label of the block"


def gpus(desk: Desk, workers: int, total: int, each: int, samples: int) -> str:
    """The script with the settings of the document, on a machine without GPUs."""
    done = desk.command(
        SCRIPT,
        *FEW_TOKENS,
        MODEL_PATH="path/to/model",
        NUM_WORKERS=str(min(workers, PROCESSES)),
        TOTAL_GPUS=str(total),
        GPUS_PER_WORKER=str(each),
        MAX_SAMPLES_PER_WORKER=str(samples),
    )
    assert "GPU 0" not in done.said
    return seen(desk, done).removesuffix(", complete already")


def most(desk: Desk) -> str:
    """A larger number extends the file that a smaller one made."""
    where = ("--output_file", "data/temp/inference/some.jsonl")
    found = []
    for number in (2, 3, 100):
        desk.command(SINGLE, *where, "--max_samples_per_worker", str(number), *FEW_TOKENS)
        found.append(len(desk.rows("data/temp/inference/some.jsonl")))
    return f"--max_samples_per_worker 2, 3, 100: {', '.join(map(str, found))} of 11 rows, each run going on"


def slicing(desk: Desk) -> str:
    said = desk.command(f"python {FOLDER}/test_multi_worker_inference.py --skip-inference").out
    assert "worker 0: GPU" in said or "CPU" in said
    return said.splitlines()[-1]


def custom(desk: Desk) -> str:
    desk.write("mine.py", CUSTOM)
    where = "data/temp/inference/custom.jsonl"
    desk.command(SINGLE, "--output_file", where, "--backend", "mine.py:CustomInference")
    answers = {row["answer"] for row in desk.rows(where)}
    assert answers == {"How old is Dan? exact_api_match 28"}
    return "11 answers of the subclass"


def pipeline(desk: Desk) -> str:
    from parallelmind.demos.retrieval import ASSETS

    desk.command(
        f"bash {FOLDER}/run_complete_pipeline.sh",
        *FEW_TOKENS,
        MODEL_PATH="path/to/model",
        QUERIES_FILE=str(ASSETS / "queries.json"),
        CORPUS_PATH=str(ASSETS / "corpus"),
        OUTPUT_DIR="data/temp/pipeline",
        CONTEXT_FLAGS="--index_path data/temp/index",
    )
    assert all(row["success"] for row in desk.rows("data/temp/pipeline/answers.jsonl"))
    return "both stages, exit code 0"


DOCUMENT = Document(
    "004",
    "Answering over contexts with many workers",
    (
        Block(47, SINGLE, "a row for each context", lambda desk: answered(desk, SINGLE)),
        Block(59, SEVERAL, "the same file from all workers: it is there already", lambda desk: answered(desk, SEVERAL)),
        Block(63, "contexts are divided evenly over the workers", "11 contexts", divided),
        Block(
            71,
            f"vim {SCRIPT[5:]}; {SCRIPT}",
            "the parameters stand at the top of the script, and in its environment",
            lambda desk: gpus(desk, 2, 0, 1, 5000),
            only_printed=True,
        ),
        Block(81, f"bash {FOLDER}/run_complete_pipeline.sh", "contexts, then answers", pipeline, True),
        Block(107, "a context row", "is taken as printed", lambda desk: seen(desk, Done(0, "", ""))),
        Block(128, "an answer row", "has these fields", lambda desk: seen(desk, Done(0, "", ""))),
        Block(174, "Worker 0 INFERENCE STATISTICS …", "these labels, and a file for each rank", statistics),
        Block(196, "--max_samples_per_worker 100", "at most so many rows for each worker", most),
        by_design(
            190,
            'too few GPUs: export CUDA_VISIBLE_DEVICES="0,1"',
            "fewer workers, or other GPUs",
            "Nothing has to be set: workers share the GPUs there are, and run on the CPU where there is none.",
        ),
        by_design(
            208,
            "pip install torch torchvision torchaudio",
            "a torch that can work distributed",
            "torch alone is needed, and make or pip installs it; there is no process group to initialise in this half.",
        ),
        Block(216, "--verbose", "more log lines", lambda desk: answered(desk, SINGLE, "--verbose")),
        Block(221, "test_multi_worker_inference.py --skip-inference", "the division is checked", slicing),
        Block(235, "class CustomInference(QueryBasedInference)", "its answers are taken", custom),
        *(
            Block(
                line,
                f"NUM_WORKERS={workers} TOTAL_GPUS={total} GPUS_PER_WORKER={each} MAX_SAMPLES_PER_WORKER={samples}",
                "without these GPUs the workers run on the CPU",
                lambda desk, given=(workers, total, each, samples): gpus(desk, *given),
                only_printed=True,
            )
            for line, workers, total, each, samples in SETTINGS
        ),
    ),
)
