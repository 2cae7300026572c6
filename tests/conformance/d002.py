"""Document 002: fine-tuning with LoRA on parallel data."""

from __future__ import annotations

import re
from importlib.util import find_spec

from tests.conformance.blocks import Block, Document, by_design
from tests.conformance.desk import Desk

SCRIPT = "trainer/train_hf_parallel_lora.py"
BASIC = (
    f'python {SCRIPT} --base_model "Qwen/Qwen2.5-0.5B-Instruct" --data_path "dataset/sft_data_parallel.jsonl" '
    "--lora_rank 8 --rope_2d_ratio 0.5 --batch_size 16 --epochs 3 --max_seq_len 512 --branches_per_sample 8"
)
STREAM = (
    f'python {SCRIPT} --base_model "Qwen/Qwen2.5-0.5B-Instruct" --hf_dataset "HuggingFaceFW/fineweb-edu" '
    '--hf_subset "sample-10BT" --use_streaming --lora_rank 8 --batch_size 8 --epochs 1'
)
SEVERAL = (
    f'torchrun --nproc_per_node 4 {SCRIPT} --base_model "Qwen/Qwen2.5-0.5B-Instruct" '
    '--data_path "dataset/sft_data_parallel.jsonl" --lora_rank 8 --batch_size 8 --ddp'
)
QUICK = (
    f'python {SCRIPT} --base_model "Qwen/Qwen2.5-0.5B-Instruct" --data_path "dataset/test_parallel.jsonl" '
    "--lora_rank 4 --batch_size 32 --epochs 1 --max_seq_len 256 --branches_per_sample 4"
)
MEDIUM = (
    f'torchrun --nproc_per_node 4 {SCRIPT} --base_model "Qwen/Qwen2.5-1.5B-Instruct" '
    '--data_path "dataset/full_parallel.jsonl" --lora_rank 16 --batch_size 8 --accumulation_steps 4 --epochs 3 '
    "--max_seq_len 512 --branches_per_sample 8 --ddp"
)
LARGE = (
    f'torchrun --nproc_per_node 8 {SCRIPT} --base_model "Qwen/Qwen2.5-7B-Instruct" --hf_dataset "your-dataset" '
    "--use_streaming --lora_rank 32 --batch_size 2 --accumulation_steps 16 --dtype bfloat16 --max_seq_len 512 "
    "--branches_per_sample 8 --ddp"
)
CONVERT = (
    "python scripts/convert_sft_to_pretrain.py --input dataset/sft_data.jsonl --output dataset/sft_data_parallel.jsonl"
)


def trained(desk: Desk, line: str, *more: str) -> str:
    """The adapter that a run wrote."""
    done = desk.command(line, *more)
    [path] = set(re.findall(r"written: \S*(out/lora/\w+_final\.pth)", done.err))
    assert desk.exists(path)
    return path


def less_memory(desk: Desk) -> str:
    line = BASIC.replace("--batch_size 16", "--batch_size 4 --accumulation_steps 4")
    return trained(
        desk,
        line.replace("--max_seq_len 512", "--max_seq_len 256"),
        "--branches_per_sample",
        "4",
        "--dtype",
        "bfloat16",
    )


LOAD = """
from transformers import AutoModelForCausalLM, AutoTokenizer
from model.model_lora import apply_lora, load_lora
from parallel.columnar import patch_model_with_interleaved_2d_rope
from trainer.train_hf_parallel_lora import auto_pair_indices

model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-0.5B-Instruct")
tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen2.5-0.5B-Instruct")
patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, ratio=0.5))
apply_lora(model, rank=8)
load_lora(model, "out/lora/hf_parallel_lora_final.pth")
model.eval()
"""


def loaded(desk: Desk) -> str:
    names = desk.python(LOAD)
    return f"{sum(hasattr(module, 'lora') for module in names['model'].modules())} layers with weights"


def converted(desk: Desk) -> str:
    (desk.folder / "dataset/sft_data_parallel.jsonl").unlink()  # what stands for it in the other blocks
    desk.command(CONVERT)
    desk.command(CONVERT)  # once more changes nothing
    rows = desk.rows("dataset/sft_data_parallel.jsonl")
    return f"{len(desk.rows('dataset/sft_data.jsonl'))} conversations as {len(rows)} records of several branches"


def medium(desk: Desk) -> str:
    if find_spec("wandb") is None:
        refused = desk.command(MEDIUM, "--use_wandb", code=1).said
        assert "pip install 'parallelmind[wandb]'" in refused
    return trained(desk, MEDIUM)


DOCUMENT = Document(
    "002",
    "Fine-tuning with LoRA on parallel data",
    (
        Block(18, BASIC, "out/lora/hf_parallel_lora_final.pth", lambda desk: trained(desk, BASIC)),
        Block(32, STREAM, "a streamed data set, in a run of its own", lambda desk: trained(desk, STREAM)),
        Block(45, SEVERAL, "data parallel", lambda desk: trained(desk, SEVERAL)),
        Block(
            60,
            '{"main", "branches"} and {"text"}',
            "rows of both kinds in one file",
            lambda desk: trained(desk, QUICK.replace("test_parallel", "pretrain_hq_split")),
        ),
        Block(175, "the adapter loaded by hand", "model.eval() on patched and loaded weights", loaded),
        Block(
            202,
            "out of memory: a lower --batch_size, --max_seq_len, --branches_per_sample, more accumulation, bfloat16",
            "every one of them is taken, also a batch smaller than a row",
            less_memory,
        ),
        Block(223, CONVERT, "records that train packed", converted),
        Block(270, QUICK, "a quick try of rank 4", lambda desk: trained(desk, QUICK)),
        Block(
            283, f"{MEDIUM} --use_wandb", "rank 16 on several processes; without wandb installed it says how to", medium
        ),
        Block(
            299,
            LARGE,
            "a batch of 2 branches from rows of 8, accumulated",
            lambda desk: trained(desk, LARGE),
        ),
        by_design(
            253,
            "columnar causal mask: a branch sees its own tokens only",
            "other branches are invisible",
            "Other branches are invisible by default (isolated), but main is seen, which is what it is for. "
            "--visibility strict is the sentence as written; --visibility columnar lets branches cooperate.",
        ),
    ),
)
