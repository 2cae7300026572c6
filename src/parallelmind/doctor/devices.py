"""Whether the GPUs and the CPU compute, and what they can do."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import torch

from parallelmind.doctor.check import Check, CheckFailedError, NotApplicableError, Subject
from parallelmind.models.cpu.instructions import has_native
from parallelmind.models.loader import resolve_device

_GIB = 2**30
_INSTALL_CUDA = (
    "Install a torch that is built for this driver (nvidia-smi names the CUDA version it supports): "
    "https://pytorch.org/get-started/locally/"
)


def checks(subject: Subject) -> list[Check]:
    gpus = range(torch.cuda.device_count())
    return [
        Check("cpu", _cpu, "Install torch again: pip install --force-reinstall torch"),
        Check("cuda", partial(_cuda, subject.driver), _INSTALL_CUDA),
        *(Check(f"cuda:{n}", partial(_gpu, n), _INSTALL_CUDA) for n in gpus),
        Check(
            "device in use", partial(_chosen, subject.options.device), "Give another --device, such as cpu or cuda:0"
        ),
    ]


def _cpu() -> str:
    _compute("cpu", torch.float32)
    _compute("cpu", torch.bfloat16)
    bfloat16 = "bfloat16 in hardware" if has_native(torch.bfloat16) else "bfloat16 is computed in float32"
    threads, cores = torch.get_num_threads(), os.cpu_count()
    return f"{threads} threads on {cores} cores, {torch.backends.cpu.get_cpu_capability()}, {bfloat16}"


def _cuda(driver: Path) -> str:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if count := torch.cuda.device_count():
        return f"{count} GPU{'s' if count > 1 else ''}, CUDA {torch.version.cuda}"
    if hidden is not None and hidden.strip() in ("", "-1"):
        raise NotApplicableError(f"CUDA_VISIBLE_DEVICES={hidden!r} hides all GPUs: the CPU is used")
    if not driver.exists():
        raise NotApplicableError("no GPU: the CPU is used")
    built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
    raise CheckFailedError(f"this machine has an NVIDIA driver, but torch {torch.__version__} {built} and sees no GPU")


def _gpu(number: int) -> str:
    device = f"cuda:{number}"
    properties = torch.cuda.get_device_properties(number)
    _compute(device, torch.float32)
    with torch.cuda.device(number):
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if bfloat16:
        _compute(device, torch.bfloat16)
    free, total = torch.cuda.mem_get_info(number)
    memory = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    kind = "bfloat16" if bfloat16 else "no bfloat16: use --dtype float16"
    return f"{properties.name}, {memory}, compute capability {properties.major}.{properties.minor}, {kind}"


def _chosen(device: str | None) -> str:
    chosen, note = resolve_device(device)
    return chosen if note is None else f"{chosen} ({note})"


def _compute(device: str, dtype: torch.dtype) -> None:
    """Compare a product of matrices with the same one in float64 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(64, 64, generator=generator).to(dtype) for _ in range(2))
    expected = left.double() @ right.double()
    actual = (left.to(device) @ right.to(device)).double().cpu()
    difference = float((actual - expected).abs().max() / expected.abs().max())
    # Half the last bit of the format at least; TF32 has as few bits as float16.
    if not difference < 0.02:
        raise CheckFailedError(f"a product of matrices in {dtype} on {device} is wrong by {difference:.2g} of its size")
