"""What a training run is told: one field per flag, checked when made. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from parallelmind.errors import SettingsError
from parallelmind.settings.model import dtype_name

Task = Literal["parallel_lora", "lora", "pretrain"]
TASKS: tuple[Task, ...] = get_args(Task)
_LORA_ONLY = (
    "lora_rank", "load_lora", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora",
    "loraplus_lr_ratio", "load_in_4bit", "load_in_8bit",
)  # fmt: skip
_OF_THE_ADAPTER = ("lora_alpha", "target_modules", "use_rslora", "use_dora")


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The flags of `parallelmind train`.

    Raises:
        SettingsError: a value is out of range, or two flags contradict each other.
    """

    task: Task = "parallel_lora"
    base_model: str | None = None
    tokenizer_path: str | None = None
    """None: the base model's."""
    model_config: Path | None = None
    """Pretraining: a config.json to make the model from."""
    model_overrides: dict[str, Any] = field(default_factory=dict)
    """Pretraining: fields of the model's config."""

    lora_rank: int | None = None
    """None: 8, or with load_lora the adapter's."""
    lora_name: str | None = None
    """None: hf_parallel_lora; with task lora, after the base model's family, such as qwen2_parallel_lora."""
    load_lora: str | None = None
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] = ()
    use_rslora: bool = False
    use_dora: bool = False
    loraplus_lr_ratio: float | None = None
    load_in_4bit: bool = False
    load_in_8bit: bool = False

    patch_rope: bool | None = None
    """None: on."""
    rope_2d_ratio: float | None = None
    rope_2d_mode: str | None = None
    rope_2d_pairs: str | None = None
    stride: int | None = None
    visibility: str | None = None

    data_path: Path | None = None
    hf_dataset: str | None = None
    hf_subset: str | None = None
    hf_split: str = "train"
    use_streaming: bool = False
    shuffle: bool = True
    """False: rows come in the order of the data, in every epoch."""
    shuffle_buffer: int = 10_000
    max_samples: int | None = None
    eval_data_path: Path | None = None
    eval_ratio: float = 0.0
    eval_interval: int | None = None
    """None: as save_interval."""
    eval_samples: int = 100
    max_seq_len: int = 512
    branches_per_sample: int = 8
    max_branches_per_sample: int = 0
    min_branches_per_sample: int = 1
    max_total_tokens: int = 0
    batch_size: int = 16
    batch_by_samples: bool = False
    loss_on_main: bool | None = None
    """None: in pretraining only."""
    strict: bool = False

    epochs: int = 1
    max_steps: int = -1
    learning_rate: float = 1e-4
    accumulation_steps: int = 1
    grad_clip: float = 1.0
    dtype: str = "bfloat16"
    device: str | None = None
    seed: int = 42
    ddp: bool = False

    out_dir: Path = Path("out")
    log_interval: int = 50
    save_interval: int = 500
    resume_from_checkpoint: Path | None = None
    overwrite: bool = False
    use_wandb: bool = False
    hf: dict[str, Any] = field(default_factory=dict)
    """Further fields of transformers' TrainingArguments, by their own names."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", dtype_name(self.dtype))
        self._check_numbers()
        self._check_sources()
        if self.task == "pretrain":
            if given := [name for name in _LORA_ONLY if getattr(self, name) != _default(name)]:
                raise SettingsError(f"--{given[0]} is about LoRA, which pretraining does not use; leave it out.")
            if self.base_model is None and self.tokenizer_path is None:
                raise SettingsError("--tokenizer_path is required: the tokenizer the new model is made for.")
        elif self.base_model is None:
            raise SettingsError("--base_model is required: a hub name, a local folder, or tiny.")
        describing = [*(["model_config"] if self.model_config is not None else []), *self.model_overrides]
        if describing and self.base_model is not None:
            raise SettingsError(
                f"--{describing[0]} describes a new model, and --base_model {self.base_model} is a finished one; "
                "leave one out."
            )
        given = [name for name in _OF_THE_ADAPTER if getattr(self, name) != _default(name)]
        if self.load_lora is not None and given:
            raise SettingsError(
                f"--{given[0]} contradicts --load_lora {self.load_lora}: the adapter has its own; leave it out."
            )
        if self.load_in_4bit and self.load_in_8bit:
            raise SettingsError("--load_in_8bit and --load_in_4bit exclude each other; give one.")

    @property
    def most_branches(self) -> int:
        return self.max_branches_per_sample or self.branches_per_sample

    @property
    def learn_main(self) -> bool:
        return self.task == "pretrain" if self.loss_on_main is None else self.loss_on_main

    def _check_numbers(self) -> None:
        checks = {
            "task": (self.task in TASKS, f"one of {', '.join(TASKS)}"),
            "learning_rate": (0 < self.learning_rate < math.inf, "above 0"),
            "grad_clip": (0 <= self.grad_clip < math.inf, "0 (no clipping) or more"),
            "eval_ratio": (0 <= self.eval_ratio < 1, "from 0 to below 1"),
            "lora_dropout": (0 <= self.lora_dropout < 1, "from 0 to below 1"),
            "max_total_tokens": (self.max_total_tokens >= 0, "0 (no limit) or more"),
            "max_branches_per_sample": (self.max_branches_per_sample >= 0, "0 (fixed mode) or more"),
            "max_steps": (self.max_steps == -1 or self.max_steps >= 1, "1 or more, or -1 (what --epochs takes)"),
            "max_seq_len": (self.max_seq_len >= 2, "2 or more"),
            "lora_name": (self.lora_name is None or _is_file_name(self.lora_name), "a file name without folders"),
        }
        for name in (
            "epochs", "branches_per_sample", "min_branches_per_sample", "batch_size", "accumulation_steps",
            "log_interval", "save_interval", "shuffle_buffer", "eval_samples", "lora_rank", "eval_interval",
            "max_samples",
        ):  # fmt: skip
            value = getattr(self, name)
            checks[name] = (value is None or value >= 1, "1 or more")
        for name, (valid, expected) in checks.items():
            if not valid:
                raise SettingsError(f"--{name} is {getattr(self, name)!r}; it must be {expected}.")
        if self.min_branches_per_sample > self.most_branches:
            raise SettingsError(
                f"--min_branches_per_sample {self.min_branches_per_sample} is above the most branches of a row, "
                f"{self.most_branches}."
            )
        if self.loraplus_lr_ratio is not None and not 0 < self.loraplus_lr_ratio < math.inf:
            raise SettingsError(f"--loraplus_lr_ratio is {self.loraplus_lr_ratio}; it must be above 0.")

    def _check_sources(self) -> None:
        if (self.data_path is None) == (self.hf_dataset is None):
            given = "neither was" if self.data_path is None else "both were"
            raise SettingsError(f"Give the data as --data_path (JSONL) or as --hf_dataset; {given} given.")
        if self.hf_subset is not None and self.hf_dataset is None:
            raise SettingsError("--hf_subset needs --hf_dataset; give both, or neither.")
        for flag, path in (("data_path", self.data_path), ("eval_data_path", self.eval_data_path)):
            if path is not None and not path.is_file():
                raise SettingsError(f"--{flag} {path}: no such file; check the path.")
        if self.eval_data_path is not None and self.eval_ratio:
            raise SettingsError("--eval_ratio and --eval_data_path exclude each other; give one.")
        if self.eval_ratio and self.use_streaming:
            raise SettingsError("--eval_ratio splits data in memory; with --use_streaming give --eval_data_path.")


def _default(name: str) -> Any:
    return next(item.default for item in dataclasses.fields(TrainOptions) if item.name == name)


def _is_file_name(name: str) -> bool:
    return bool(name) and Path(name).name == name and name not in (".", "..")
