"""Document 003: what the request says is there."""

from __future__ import annotations

from tests.conformance.blocks import Block, Document, by_design
from tests.conformance.d001 import CHAT, GENERATE, chat, from_python, generated
from tests.conformance.d002 import trained
from tests.conformance.desk import ROOT, Desk

TRAIN = (
    "torchrun --nproc_per_node 8 trainer/train_hf_lora.py --base_model Qwen/Qwen2-0.5B-Instruct "
    "--data_path dataset/pretrain_hq_split.jsonl --lora_rank 8 --batch_size 4 --batch_by_samples "
    "--max_branches_per_sample 16 --min_branches_per_sample 1 --rope_2d_ratio 0.5 --epochs 3 --ddp"
)
TEST = "bash scripts/test_inference.sh Qwen/Qwen2-0.5B-Instruct out/lora/qwen2_parallel_lora_hf_final.pth 8"
FILES = (
    "trainer/train_hf_lora.py", "scripts/inference_hf_lora.py", "scripts/test_pos2d_handling.py",
    "scripts/validate_inference_setup.py", "scripts/test_inference.sh", "docs/INFERENCE_GUIDE.md",
    "docs/TRAIN_HF_LORA_USAGE.md", "docs/POS2D_IMPLEMENTATION_SUMMARY.md", "docs/QUICK_START_LORA.md",
    "COMPLETION_SUMMARY.md", "README.md", "parallel_generate.py",
)  # fmt: skip
CHECKED = ("模块导入", "训练脚本", "推理脚本", "文档完整性", "pos2d 工作流程", "文件结构")
HOOK = """
import torch
from transformers import AutoModelForCausalLM
from parallel.columnar import Interleaved2DRoPE, patch_model_with_interleaved_2d_rope
from scripts.inference_hf_lora import _inject_pos2d_hook, _prepare_pos2d, _set_prompt_pos2d, auto_pair_indices

model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2-0.5B-Instruct").eval()
patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, ratio=0.5))
ids = torch.tensor([[5, 6, 7, 8]])
plain = model.generate(ids, max_new_tokens=4, do_sample=False)
_inject_pos2d_hook(model)
hooked = model.generate(ids, max_new_tokens=4, do_sample=False)
patched = sum(isinstance(module, Interleaved2DRoPE) for module in model.modules())
"""


def files(desk: Desk) -> str:
    missing = [name for name in FILES if not (ROOT / name).is_file()]
    assert not missing
    return f"{len(FILES)} files are there"


def hooks(desk: Desk) -> str:
    names = desk.python(HOOK)
    assert names["plain"].tolist() == names["hooked"].tolist()
    assert names["patched"]
    return "the names import; generate with the hook equals generate without"


def unit_test(desk: Desk) -> str:
    desk.command("python scripts/test_pos2d_handling.py")
    return "exit code 0"


def validated(desk: Desk) -> str:
    said = desk.command("python scripts/validate_inference_setup.py").said
    passed = [name for name in CHECKED if any(name in line and "✅" in line for line in said.splitlines())]
    return f"✅ for {len(passed)} of {len(CHECKED)} parts, exit code 0"


def script(desk: Desk) -> str:
    desk.command(TEST)
    return "exit code 0"


DOCUMENT = Document(
    "003",
    "What the request says is there",
    (
        Block(16, "the functions, scripts and documents that are listed", "each is there", files),
        Block(
            24,
            "the flags of the trainer",
            "each is taken",
            lambda desk: trained(
                desk, f"python {TRAIN[len('torchrun --nproc_per_node 8 ') : -len(' --ddp')]}", "--max_steps", "1"
            ),
        ),
        Block(42, "_inject_pos2d_hook, _prepare_pos2d, _set_prompt_pos2d, Interleaved2DRoPE", "they work", hooks),
        Block(121, "the table of the validation", "six parts, each ✅", validated),
        Block(194, TRAIN, "the adapter that is loaded below", lambda desk: trained(desk, TRAIN)),
        Block(209, CHAT, "a chat", lambda desk: chat(desk, CHAT)),
        Block(217, GENERATE, "a completion", lambda desk: generated(desk, GENERATE)),
        Block(228, "load_model_with_lora(…) and generate_text in Python", "three values and a text", from_python),
        by_design(
            254,
            "training data must be records; conversations are not supported",
            "",
            "Conversations train too, as they are or converted: packed as branches, the assistant's turns supervised.",
        ),
        Block(268, "python scripts/test_pos2d_handling.py", "the checks pass", unit_test),
        Block(274, TEST, "the inference commands pass", script, only_printed=True),
    ),
)
