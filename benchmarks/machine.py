"""What a result must say about where it was measured, and where results go."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from pathlib import Path

import torch
import transformers

RESULTS = Path(__file__).parent / "results"


def describe() -> str:
    """One line: processor, cores, its half-precision instructions, versions."""
    flags, name = "", platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        name, flags = fields.get("model name", name), fields.get("flags", "")
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16")
    found = " ".join(flag for flag in wanted if flag in flags.split()) or "no AVX"
    return (
        f"{name}, {os.cpu_count()} cores ({found}); torch {torch.__version__}, {torch.get_num_threads()} threads; "
        f"transformers {transformers.__version__}; Python {platform.python_version()}"
    )


def save(name: str, title: str, table: str, notes: str = "") -> Path:
    """Write a dated result file with the machine and the command; returns its path."""
    RESULTS.mkdir(exist_ok=True)
    date = datetime.date.today().isoformat()
    path = RESULTS / f"{date}-{name}.md"
    command = "python " + " ".join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    path.write_text(f"# {title}\n\n{date}. {describe()}\n\n```\n{command}\n```\n\n{table}\n{notes}", encoding="utf-8")
    return path
