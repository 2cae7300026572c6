"""The settings of a batch run: what each means, which values are valid, and which make it another job."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from parallelmind.data.rows import RowLimits
from parallelmind.errors import SettingsError
from parallelmind.io.fingerprints import fingerprint_of_folder
from parallelmind.models.identity import fingerprint_of_adapter, real_name, rope_in_effect
from parallelmind.settings.model import ROPE_FLAGS, KvCacheGb, LoraPath, ModelOptions
from parallelmind.settings.rows import (
    BatchBySamples,
    BranchesPerSample,
    MaxBranchesPerSample,
    MaxSamples,
    MinBranchesPerSample,
)
from parallelmind.settings.sampling import SamplingSettings, Seed
from parallelmind.settings.setting import Setting

_IN_EFFECT = {"branches_per_sample", "max_branches_per_sample", "min_branches_per_sample", "max_total_tokens"} | {
    "lora_rank",
    "patch_rope",
    *ROPE_FLAGS,
}
"""What these come to together is in the identity, not how they were spelled."""
_ROWS = "rows and batches"


@dataclass(frozen=True, kw_only=True)
class BatchOptions(ModelOptions, SamplingSettings):
    """Everything `parallelmind batch` can be told; the names are the flags.

    Raises:
        SettingsError: a value is out of range, or two do not go together.
    """

    data_path: Annotated[Path, Setting("input JSONL (.gz, .zst; - is the standard input)", "files", identity=False)]
    out_path: Annotated[Path, Setting("output JSONL; .gz or .zst compresses", "files", identity=False)]
    max_samples: MaxSamples = None
    as_messages: Annotated[
        bool,
        Setting(
            "main is a system turn and each branch a message of the user, as the model's chat template writes them; "
            "without it texts are taken as they are",
            "files",
        ),
    ] = False
    retry_failed: Annotated[bool, Setting("try the records that failed before again", "files", identity=False)] = False
    overwrite: Annotated[
        bool, Setting("drop earlier results and start again (leave it out to continue)", "files", identity=False)
    ] = False
    lora_path: LoraPath = None
    branches_per_sample: BranchesPerSample = 4
    max_branches_per_sample: MaxBranchesPerSample = 0
    min_branches_per_sample: MinBranchesPerSample = 1
    batch_size: Annotated[int, Ge(1), Setting("branches that run at once", _ROWS, identity=False)] = 16
    batch_by_samples: BatchBySamples = False
    max_total_tokens: Annotated[
        int, Ge(0), Setting("at most this many tokens of main and prompts in a row; 0 is no limit", _ROWS)
    ] = 0
    seed: Seed = 0
    num_workers: Annotated[
        int, Ge(0), Setting("threads that read and tokenise ahead; 0 is none", "running", identity=False)
    ] = 1
    kv_cache_gb: KvCacheGb = None

    def __post_init__(self) -> None:
        super().__post_init__()
        least, most = self.min_branches_per_sample, self.max_branches_per_sample
        if not most and least > 1:
            raise SettingsError(
                f"--min_branches_per_sample {least} is for dynamic mode; "
                "give --max_branches_per_sample too, or leave it out."
            )
        if most and least > most:
            raise SettingsError(
                f"--min_branches_per_sample {least} is above --max_branches_per_sample {most}; lower it."
            )

    @property
    def row_limits(self) -> RowLimits:
        if not self.max_branches_per_sample:
            return RowLimits(most=self.branches_per_sample, max_tokens=self.max_total_tokens)
        return RowLimits(
            most=self.max_branches_per_sample,
            least=self.min_branches_per_sample,
            balanced=True,
            max_tokens=self.max_total_tokens,
        )

    def identity(self) -> dict[str, Any]:
        """The settings that make this another job when they differ."""
        settings = {name: value for name, value in super().identity().items() if name not in _IN_EFFECT}
        rows = dataclasses.asdict(self.row_limits)
        names = {"base_model": real_name(self.base_model), "lora_path": real_name(self.lora_path)}
        return settings | names | {"rows": rows} | rope_in_effect(self, self.lora_path)

    def file_prints(self) -> dict[str, str]:
        """Hashes of the local files of model and adapter; edited, they make this another job."""
        prints = {}
        if Path(self.base_model).is_dir():
            prints["base_model"] = fingerprint_of_folder(Path(self.base_model))
        if self.lora_path is not None and Path(self.lora_path).exists():
            prints["lora_path"] = fingerprint_of_adapter(Path(self.lora_path))
        return prints
