"""What a run was and what it came to, for its report and its model card."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from parallelmind.models.lora_layers import ADAPTER, current_dropout, lora_layers
from parallelmind.models.sidecar import RopeSettings
from parallelmind.models.whole_modules import trained_whole
from parallelmind.settings.model import TINY_MODEL
from parallelmind.training.evaluation import SampleAnswer

_PACKAGES = ("parallelmind", "torch", "transformers", "peft", "accelerate")
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class BestStep:
    """The step whose evaluation was best."""

    step: int
    metric: str
    value: float
    kept: bool
    """What the run leaves is of this step (`--load_best_model_at_end`), and not of the last."""

    def __str__(self) -> str:
        return f"step {self.step}, {self.metric} {self.value:.4g}"


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """A file or data set of a run, without the folder that it lies in on this machine."""

    flag: str
    name: str
    content: str | None = None
    """A hash of its content (blake2b, 32 digits), where all of it was read beforehand."""
    on_hub: bool = False


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Tables of names and values. A value that is None is not known, as in a run that an older version began."""

    name: str
    base_model: str
    """As it is shown: the name on the Hub, or that of the folder."""
    base_model_on_hub: bool
    rope: RopeSettings | None
    """None: no 2D RoPE."""
    adapter: Mapping[str, Any]
    """Empty where a whole model was trained."""
    branches: Mapping[str, Any]
    run: Mapping[str, Any]
    environment: Mapping[str, Any]
    data: Sequence[DataFile]
    counts: Mapping[str, Any]
    steps: int
    evaluation: Mapping[str, float]
    """Of what the run leaves, without the beginning `eval_`."""
    best: BestStep | None = None
    samples: Sequence[SampleAnswer] = ()


def is_on_hub(base_model: str) -> bool:
    """Whether a name is one of the Hub, such as Qwen/Qwen2.5-0.5B, and not a folder here."""
    owner, slash, name = base_model.partition("/")
    return (
        bool(slash and owner and name)
        and "/" not in name
        and owner not in (".", "..")
        and not Path(base_model).exists()
    )


def shown_model(base_model: str) -> str:
    """A base model without the folder that it lies in on this machine."""
    if base_model == TINY_MODEL or is_on_hub(base_model):
        return base_model
    return Path(os.path.abspath(base_model)).name if Path(base_model).exists() else base_model


def adapter_facts(model: Any) -> dict[str, Any]:
    """The LoRA of a model, as it is."""
    layers = lora_layers(model)
    if not layers:
        return {}
    ranks = {layer.r[ADAPTER] for layer in layers.values()}
    rslora = all(layer.use_rslora[ADAPTER] for layer in layers.values())
    alphas = {
        round(layer.scaling[ADAPTER] * (math.sqrt(layer.r[ADAPTER]) if rslora else layer.r[ADAPTER]), 6)
        for layer in layers.values()
    }
    dora = any(ADAPTER in layer.lora_variant for layer in layers.values())
    return {
        "rank": _several(ranks),
        "alpha": _several(alphas),
        "scaling": "alpha / √rank (rsLoRA)" if rslora else "alpha / rank",
        "target modules": ", ".join(sorted({name.rpartition(".")[2] for name in layers})),
        "adapted layers": len(layers),
        "trained whole": ", ".join(trained_whole(model)) or "none",
        "DoRA": dora,
        "dropout": current_dropout(layers),
    }


def branch_facts(rope: RopeSettings | None, settings: RopeSettings) -> dict[str, Any]:
    """How branches are told apart, as it is in force."""
    facts: dict[str, Any] = {"visibility": settings.visibility, "2D RoPE": rope is not None}
    if rope is not None:
        facts |= {
            "share of the pairs for branches (ratio)": rope.ratio,
            "mode": rope.mode,
            "pairs": rope.pairs,
            "stride": rope.branch_stride,
            "branch numbers (branch_range)": "those of the records" if rope.branch_range is None else rope.branch_range,
        }
    return facts


def environment(*, processes: int, device: str) -> dict[str, Any]:
    """Versions of what trains, and the machine that it trains on."""
    found: dict[str, Any] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a folder that was never installed
            found[name] = None
    found["system"] = f"{platform.system()} {platform.machine()}"
    found["processor"] = f"{_processor()}, {os.cpu_count()} cores"
    found["memory"] = f"{psutil.virtual_memory().total / _GIB:.0f} GiB"
    if torch.device(device).type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / _GIB
        found["GPU"] = f"{torch.cuda.get_device_name(device)}, {memory:.0f} GiB"
    found["processes"] = processes
    return found


def read_environment(path: Path) -> dict[str, Any]:
    """What `environment` found when the run began; every value None where that was not written down."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if isinstance(found, dict):
        return found
    return dict.fromkeys(("python", *_PACKAGES, "processor", "memory", "processes"))


def run_facts(
    model: Any, entries: Sequence[Mapping[str, Any]], *, steps: int, loraplus: float | None
) -> dict[str, Any]:
    """Size and cost of a run, from the entries of its log."""
    trainable, parameters = model.num_parameters(only_trainable=True), model.num_parameters()
    speeds = sorted(float(entry["tokens_per_second"]) for entry in entries if "tokens_per_second" in entry)
    seconds = [entry["seconds"] for entry in entries if "seconds" in entry]
    memory = [entry["peak_memory_bytes"] for entry in entries if "peak_memory_bytes" in entry]
    return {
        "steps": steps,
        "trainable parameters": trainable,
        "parameters in all": parameters,
        "trained share": f"{trainable / parameters:.3%}",
        "LoRA+ ratio": "none" if loraplus is None else loraplus,
        "time": duration_text(seconds[-1]) if seconds else None,
        "tokens/s, median": round(speeds[len(speeds) // 2]) if speeds else None,
        "peak memory of the first process": f"{max(memory) / _GIB:.2f} GiB" if memory else None,
    }


def duration_text(seconds: float) -> str:
    """3 h 5 min, 4 min 10 s, or 7 s."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{seconds:.3g} s"


def _several(values: set[Any]) -> Any:
    plain = sorted(int(value) if value == int(value) else value for value in values)
    return plain[0] if len(plain) == 1 else ", ".join(map(str, plain))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()
