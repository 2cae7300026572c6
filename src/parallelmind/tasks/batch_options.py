"""The settings of a batch run: what each means, which values are valid, and which make it another job."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallelmind.data.rows import RowLimits
from parallelmind.engine.request import SamplingParams
from parallelmind.errors import SettingsError
from parallelmind.io.fingerprints import fingerprint_of_folder
from parallelmind.models.options import ROPE_FLAGS, ModelOptions, fingerprint_of_adapter, real_name, rope_in_effect

# These change where, how fast, how often and how many answers are made, but not which answers the job is for.
_NOT_IDENTITY = {"data_path", "out_path", "batch_size", "batch_by_samples", "device", "device_map", "num_workers"} | {
    "kv_cache_gb",
    "max_samples",
    "retry_failed",
    "overwrite",
}
_IN_EFFECT = {"branches_per_sample", "max_branches_per_sample", "min_branches_per_sample", "max_total_tokens"} | {
    "lora_rank",
    "patch_rope",
    *ROPE_FLAGS,
}
"""What these come to together is in the identity, not how they were spelled."""


@dataclass(frozen=True, kw_only=True)
class BatchOptions(ModelOptions):
    """Everything `parallelmind batch` can be told; the names are the flags.

    Raises:
        SettingsError: a value is out of range, or two do not go together.
    """

    data_path: Path
    out_path: Path
    lora_path: str | None = None
    branches_per_sample: int = 4
    max_branches_per_sample: int | None = None
    """Given: dynamic mode."""
    min_branches_per_sample: int = 1
    batch_by_samples: bool = False
    """`batch_size` counts rows instead of branches."""
    batch_size: int = 16
    max_total_tokens: int = 0
    max_new_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    seed: int = 0
    num_workers: int = 1
    """Threads that read ahead and tokenise; 0: none besides the main one."""
    kv_cache_gb: float | None = None
    """Memory for keys and values, GiB; None: half of what is free."""
    max_samples: int | None = None
    retry_failed: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least("branches_per_sample", self.branches_per_sample, 1)
        _at_least("min_branches_per_sample", self.min_branches_per_sample, 1)
        _at_least("batch_size", self.batch_size, 1)
        _at_least("max_total_tokens", self.max_total_tokens, 0, "0 is no limit")
        _at_least("max_new_tokens", self.max_new_tokens, 1)
        _at_least("temperature", self.temperature, 0, "0 is greedy")
        _at_least("top_k", self.top_k, 0, "0 keeps all tokens")
        _at_least("seed", self.seed, 0)
        _at_least("num_workers", self.num_workers, 0, "0 reads without threads")
        _at_least("max_branches_per_sample", self.max_branches_per_sample, 1)
        _at_least("max_samples", self.max_samples, 1)
        if self.kv_cache_gb is not None and not 0 < self.kv_cache_gb < math.inf:
            raise _wrong("kv_cache_gb", self.kv_cache_gb, "above 0")
        if not 0 < self.top_p <= 1:
            raise _wrong("top_p", self.top_p, "above 0 and at most 1 (1 keeps all tokens)")
        if not 0 <= self.min_p <= 1:
            raise _wrong("min_p", self.min_p, "from 0 (off) to 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise _wrong("repetition_penalty", self.repetition_penalty, "above 0 (1 is no penalty)")
        if not all(self.stop):
            raise _wrong("stop", "", "a text that is not empty")
        least, most = self.min_branches_per_sample, self.max_branches_per_sample
        if most is None and least > 1:
            raise SettingsError(
                f"--min_branches_per_sample {least} is for dynamic mode; "
                "give --max_branches_per_sample too, or leave it out."
            )
        if most is not None and least > most:
            raise SettingsError(
                f"--min_branches_per_sample {least} is above --max_branches_per_sample {most}; lower it."
            )

    @property
    def sampling(self) -> SamplingParams:
        """How every branch is sampled; the seed is set for each branch."""
        return SamplingParams(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            stop=self.stop,
            ignore_eos=self.ignore_eos,
        )

    @property
    def row_limits(self) -> RowLimits:
        if self.max_branches_per_sample is None:
            return RowLimits(most=self.branches_per_sample, max_tokens=self.max_total_tokens)
        return RowLimits(
            most=self.max_branches_per_sample,
            least=self.min_branches_per_sample,
            balanced=True,
            max_tokens=self.max_total_tokens,
        )

    def identity(self) -> dict[str, Any]:
        """The settings that make this another job when they differ."""
        settings = {name: value for name, value in vars(self).items() if name not in _NOT_IDENTITY | _IN_EFFECT}
        rows = dataclasses.asdict(self.row_limits)
        names = {"base_model": real_name(self.base_model), "lora_path": real_name(self.lora_path)}
        return settings | names | {"stop": list(self.stop), "rows": rows} | rope_in_effect(self, self.lora_path)

    def file_prints(self) -> dict[str, str]:
        """Hashes of the local files of model and adapter; edited, they make this another job."""
        prints = {}
        if Path(self.base_model).is_dir():
            prints["base_model"] = fingerprint_of_folder(Path(self.base_model))
        if self.lora_path is not None and Path(self.lora_path).exists():
            prints["lora_path"] = fingerprint_of_adapter(Path(self.lora_path))
        return prints


def _at_least(name: str, value: float | None, least: int, note: str = "") -> None:
    if value is not None and not least <= value < math.inf:
        raise _wrong(name, value, f"{least} or more" + (f" ({note})" if note else ""))


def _wrong(name: str, value: object, expected: str) -> SettingsError:
    return SettingsError(f"--{name} is {value!r}; it must be {expected}.")
