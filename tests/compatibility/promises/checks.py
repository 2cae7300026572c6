"""Checking an installation."""

from __future__ import annotations

from tests.compatibility.contract import Promise, section

section(
    "checks",
    "Checking an installation",
    Promise(
        "python scripts/validate_inference_setup.py",
        "imports, training path, inference path, documents, pos2d flow, files: a table of pass and fail, and each "
        "group as ✅ 通过 or ❌ 失败; the same as `parallelmind doctor`",
    ),
    Promise("exit code", "not zero on any failure"),
    Promise("python scripts/test_pos2d_handling.py", "how pos2d flows through a model, shown and checked"),
    Promise("bash scripts/test_inference.sh BASE_MODEL LORA_PATH LORA_RANK", "the commands of inference, tried"),
    Promise("docs/INFERENCE_GUIDE.md", "document"),
    Promise("docs/TRAIN_HF_LORA_USAGE.md", "document"),
    Promise("docs/POS2D_IMPLEMENTATION_SUMMARY.md", "document"),
    Promise("docs/QUICK_START_LORA.md", "document"),
    Promise("COMPLETION_SUMMARY.md", "document"),
)
