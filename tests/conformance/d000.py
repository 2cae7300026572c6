"""Document 000: parallel inference over files."""

from __future__ import annotations

import re

from tests.conformance.blocks import Block, Document, by_design
from tests.conformance.desk import FEW_TOKENS, PROCESSES, Desk, Done

SCRIPT = "scripts/parallel_inference_hf_lora.py"
QUICK = (
    f"{SCRIPT} --base_model Qwen/Qwen2.5-14B-Instruct --lora_path out/lora/qwen2_parallel_lora_hf_final.pth "
    "--lora_rank 8 --rope_2d_ratio 0.5 --patch_rope --data_path dataset/pretrain_hq_split.jsonl "
    "--out_path out/infer_results.jsonl --batch_size 16 --batch_by_samples --max_branches_per_sample 8 "
    "--min_branches_per_sample 1 --max_new_tokens 512"
)
EIGHT = (
    f"torchrun --nproc_per_node 8 {SCRIPT} --base_model Qwen/Qwen2.5-14B-Instruct --lora_path out/lora/xxx.pth "
    "--data_path dataset/test.jsonl --out_path out/results.jsonl --batch_size 8 --batch_by_samples"
)
MODEL = "--base_model Qwen/Qwen2.5-14B-Instruct"
PLAIN = f"python {SCRIPT} {MODEL} --data_path dataset/test.jsonl --out_path out/results.jsonl"
LARGE = (
    f"torchrun --nproc_per_node 8 {SCRIPT} --base_model Qwen/Qwen2.5-14B-Instruct "
    "--lora_path out/lora/qwen2_14b_lora_final.pth --lora_rank 32 --rope_2d_ratio 0.5 "
    "--data_path dataset/test_10k.jsonl --out_path out/test_10k_results.jsonl --batch_size 8 --batch_by_samples "
    "--max_branches_per_sample 12 --min_branches_per_sample 2 --max_new_tokens 512 --temperature 0.7 --dtype bfloat16"
)
SMALL = (
    f"python {SCRIPT} --base_model Qwen/Qwen2-0.5B-Instruct --lora_path out/lora/qwen2_lora_final.pth --lora_rank 8 "
    "--rope_2d_ratio 0.5 --data_path dataset/test_100.jsonl --out_path out/test_100_results.jsonl --batch_size 16 "
    "--batch_by_samples --max_branches_per_sample 8 --max_new_tokens 256 --max_samples 100"
)
BASE = (
    f"torchrun --nproc_per_node 4 {SCRIPT} --base_model Qwen/Qwen2.5-7B-Instruct --no_patch_rope "
    "--data_path dataset/sft_test.jsonl --out_path out/sft_results.jsonl --batch_size 16 --batch_by_samples "
    "--max_branches_per_sample 4"
)


def seen(desk: Desk, done: Done) -> str:
    """Where the answers went, and how many there are."""
    [where] = re.findall(r"answers are in (\S+)", done.err)
    rows = desk.rows(where)
    assert all(set(row) >= {"input", "output"} for row in rows)
    answered = sum(row["output"] is not None for row in rows)
    again = ", complete already" if "is complete already" in done.err else ""
    return f"{where}: {answered} answers, {len(rows) - answered} errors{again}"


def answers(desk: Desk, line: str, *more: str) -> str:
    return seen(desk, desk.command(line, *more, *FEW_TOKENS))


def formats(desk: Desk) -> str:
    inputs = [row["input"] for row in desk.rows("out/infer_results.jsonl")]
    assert inputs == [f"分支 {n}.{b}" for n in range(2) for b in range(3)] + ["只有主分支的文本"]
    return "6 rows of branches, then the row of the text"


def look_at_results(desk: Desk) -> str:
    first = desk.command("head -n 5 out/infer_results.jsonl").out
    count = int(desk.command("wc -l out/infer_results.jsonl").out.split()[0])
    return f"head: {len(first.splitlines())} rows; wc: {count}"


def ranks(desk: Desk) -> str:
    """The log of a run on several processes; in one process there is one rank."""
    done = desk.command(EIGHT, "--overwrite", *FEW_TOKENS)
    named = sorted({int(rank) for rank in re.findall(r"rank=(\d+)", done.err)})
    assert named == list(range(PROCESSES if desk.as_printed else 1))
    return "every rank logs with its number"


def counts(desk: Desk) -> str:
    log = desk.command(PLAIN, "--overwrite", *FEW_TOKENS).err
    [loaded], [finished] = (
        [line for line in log.splitlines() if words in line] for words in ("数据集加载完成", "生成完成")
    )
    records, generations = (re.search(r"\b(\d+) (?:records|generations)", line) for line in (loaded, finished))
    assert records is not None
    assert generations is not None
    return f"{records[1]} records loaded, {generations[1]} generations finished"


DOCUMENT = Document(
    "000",
    "Parallel inference over files",
    (
        Block(17, f"python {QUICK}", "an answer to each branch", lambda desk: answers(desk, f"python {QUICK}")),
        Block(
            35,
            f"torchrun --nproc_per_node 8 {QUICK}",
            "the same file from all ranks: it is there already",
            lambda desk: answers(desk, f"torchrun --nproc_per_node 8 {QUICK}"),
        ),
        Block(
            111, '{"main", "branches"} and {"text"} → {"input", "output"}', "a row for each, in input order", formats
        ),
        Block(163, EIGHT, "the parts of all ranks in one file", lambda desk: answers(desk, EIGHT)),
        Block(
            182,
            "--batch_size 32 --batch_by_samples; --batch_size 4 --batch_by_samples",
            "another speed and no other answers: the job that stands continues",
            lambda desk: "; ".join(
                answers(desk, EIGHT.replace("--batch_size 8", f"--batch_size {size}")) for size in (32, 4)
            ),
        ),
        Block(
            194,
            "--max_branches_per_sample 16 --min_branches_per_sample 1 --batch_by_samples",
            "another division into rows: a run of its own, with a new name",
            lambda desk: answers(desk, EIGHT, "--max_branches_per_sample", "16", "--min_branches_per_sample", "1"),
        ),
        Block(209, "head -n 5 …; wc -l out/infer_results.jsonl", "the rows, and their number", look_at_results),
        Block(215, "each card logs with rank=X", "every process names its rank in each line", ranks),
        Block(
            225,
            "--max_total_tokens 2048",
            "what is longer gets an error row; nothing is",
            lambda desk: answers(desk, PLAIN, "--max_total_tokens", "2048"),
        ),
        Block(
            235,
            PLAIN,
            "the base model alone, beside the answers with an adapter that stand under this name",
            lambda desk: answers(desk, PLAIN),
        ),
        Block(
            246,
            f"{PLAIN} --no_patch_rope",
            "without an adapter that is what the block before did: nothing to do",
            lambda desk: answers(desk, PLAIN, "--no_patch_rope"),
        ),
        Block(268, LARGE, "rank 32 with --lora_rank 32", lambda desk: answers(desk, LARGE)),
        Block(287, SMALL, "the first 100 records at most", lambda desk: answers(desk, SMALL)),
        Block(304, BASE, "the base model on several processes", lambda desk: answers(desk, BASE)),
        by_design(
            318,
            "samples a second by size of the model and number of GPUs",
            "",
            "The figures are of other machines. Ours, with machine and command, are in benchmarks/results.",
        ),
        Block(
            330,
            "--batch_size 4; --max_branches_per_sample 4; --base_model Qwen/Qwen2-0.5B-Instruct",
            "less memory, each as a flag of any command above",
            lambda desk: answers(
                desk,
                SMALL.replace("test_100_results", "less_memory"),
                *("--batch_size", "4", "--max_branches_per_sample", "4", "--base_model", "Qwen/Qwen2-0.5B-Instruct"),
            ),
        ),
        by_design(
            345,
            "torchrun … is right, python … is wrong",
            "both work",
            "Without torchrun one process does all of the work, or --workers N start here; there is nothing to set up.",
            lambda desk: answers(desk, BASE.replace("torchrun --nproc_per_node 4", "python")),
        ),
        Block(357, "look for 数据集加载完成 and 生成完成 in the log", "both with a count; they reconcile", counts),
    ),
)
