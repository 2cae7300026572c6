"""The settings of an answering run: what each means, which values are valid, and which make it another job."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Lt

from parallelmind.answering.backends.openai_compatible import HttpSettings
from parallelmind.answering.backends.retry import RetryPolicy
from parallelmind.errors import SettingsError
from parallelmind.io.fingerprints import fingerprint_of_folder
from parallelmind.io.urls import shown_url
from parallelmind.models.identity import fingerprint_of_adapter, real_name
from parallelmind.settings.http import (
    ApiKeyEnv,
    BaseUrl,
    Concurrency,
    ExtraBody,
    MaxAttempts,
    MaxRetrySeconds,
    Rpm,
    Timeout,
    Tpm,
)
from parallelmind.settings.model import (
    DeviceMap,
    EngineLoadingSettings,
    KvCacheGb,
    LoraPath,
    LoraRank,
    ModelOptions,
)
from parallelmind.settings.sampling import SamplingSettings, Temperature, TopP
from parallelmind.settings.setting import Flag, Setting, names, values_of

InferenceType = Literal["local", "huggingface", "togetherai", "openai"]
ENGINE_TYPES = ("local", "huggingface")
HTTP_TYPES = ("togetherai", "openai")
_ENGINE_ONLY = (
    "lora_path",
    "lora_rank",
    *(name for name in names(EngineLoadingSettings) if name != "dtype"),
    "device_map",
    "kv_cache_gb",
)
_HTTP_ONLY = "api_key_env", "rpm", "tpm", "extra_body"


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(EngineLoadingSettings, SamplingSettings):
    """Everything `parallelmind answer` can be told; the names are the flags.

    Raises:
        SettingsError: a value is out of range, or two do not go together.
    """

    contexts_file: Annotated[
        Path, Setting("the contexts, JSONL (.gz, .zst; - is the standard input)", "files", identity=False)
    ]
    output_file: Annotated[Path, Setting("the answers, JSONL; .gz or .zst compresses", "files", identity=False)]
    max_samples_per_worker: Annotated[
        int | None,
        Ge(1),
        Setting("the first N rows for each worker only", "files", default="all", identity=False),
    ] = None
    max_samples: Annotated[int | None, Ge(1), Setting("the first N rows", "files", identity=False, flag=None)] = None
    retry_failed: Annotated[bool, Setting("do not try failed answers again", "files", identity=False)] = True
    overwrite: Annotated[bool, Setting("drop earlier answers and start again", "files", identity=False)] = False
    model_path: Annotated[
        str | None,
        Setting("local folder, Hub name, or the model's name at the server", "model", flag=Flag(metavar="MODEL")),
    ] = None
    inference_type: Annotated[
        InferenceType, Setting("what answers: the engine here (local, huggingface) or a server", "model")
    ] = "local"
    backend: Annotated[
        str | None,
        Setting(
            "your own subclass of parallelmind.QueryBasedInference, in place of --inference_type",
            "model",
            flag=Flag(metavar="FILE:CLASS"),
        ),
    ] = None
    prompt_template: Annotated[Path | None, Setting("YAML", "model", default="the built-in prompts")] = None
    no_system_role: Annotated[bool, Setting("put the instructions into the user's turn", "model")] = False
    lora_path: LoraPath = None
    lora_rank: LoraRank = None
    batch_size: Annotated[int, Ge(1), Setting("answers that the engine decodes at once", "running", identity=False)] = (
        16
    )
    device_map: DeviceMap = None
    kv_cache_gb: KvCacheGb = None
    temperature: Temperature = 0.2
    top_p: TopP = 0.95
    seed: Annotated[
        int | None,
        Ge(-(2**63)),
        Lt(2**64),
        Setting(
            "same seed, same answers", "sampling", default="0 for the engine here, none for a server",
            expected="a whole number of 64 bits",
        ),
    ] = None  # fmt: skip
    base_url: BaseUrl = None
    api_key_env: ApiKeyEnv = None
    concurrency: Concurrency = 16
    timeout: Timeout = 120.0
    rpm: Rpm = None
    tpm: Tpm = None
    max_attempts: MaxAttempts = 8
    max_retry_seconds: MaxRetrySeconds = 600.0
    extra_body: ExtraBody = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backend is None and not self.model_path:
            raise SettingsError("--model_path is missing; it names the model, such as Qwen/Qwen2.5-0.5B-Instruct.")
        if self.base_url is not None and self.inference_type != "openai":
            raise SettingsError(
                f"--base_url is for --inference_type openai, not {self.inference_type}; give that, or leave it out."
            )
        for group, types, fits in (
            (_ENGINE_ONLY, ENGINE_TYPES, self.uses_engine),
            (_HTTP_ONLY, HTTP_TYPES, self.uses_http),
        ):
            given = [name for name in group if getattr(self, name) not in (None, False, {})]
            if given and not fits:
                raise SettingsError(f"--{given[0]} is for --inference_type {' and '.join(types)}; leave it out.")
        if self.uses_engine:
            self.model()

    @property
    def engine_seed(self) -> int:
        """The seed from which the engine makes that of every row."""
        return self.seed or 0

    @property
    def uses_engine(self) -> bool:
        return self.backend is None and self.inference_type in ENGINE_TYPES

    @property
    def uses_http(self) -> bool:
        return self.backend is None and self.inference_type not in ENGINE_TYPES

    def model(self) -> ModelOptions:
        """The model to load, for answers of our engine."""
        assert self.model_path
        return ModelOptions.of(self, base_model=self.model_path)

    def http(self, *, world_size: int) -> HttpSettings:
        """How requests are made; rates are shared by the workers.

        Raises:
            SettingsError: a value is out of range.
        """
        assert self.model_path
        return HttpSettings(
            **values_of(SamplingSettings, self) | {"seed": self.seed},
            model=self.model_path,
            extra_body=self.extra_body,
            concurrency=self.concurrency,
            timeout=self.timeout,
            rpm=None if self.rpm is None else self.rpm / world_size,
            tpm=None if self.tpm is None else self.tpm / world_size,
            retry=RetryPolicy(max_attempts=self.max_attempts, max_retry_seconds=self.max_retry_seconds),
        )

    def identity(self) -> dict[str, Any]:
        """The settings that make this another job when they differ."""
        template = None if self.prompt_template is None else real_name(str(self.prompt_template))
        names: dict[str, Any] = {"lora_path": real_name(self.lora_path), "prompt_template": template}
        if self.uses_engine:
            names |= {"model_path": real_name(self.model_path), "seed": self.engine_seed}
        if self.base_url is not None:
            names["base_url"] = shown_url(self.base_url.rstrip("/"))
        settings = super().identity() | names
        idle = () if self.uses_engine else (*_ENGINE_ONLY, "dtype")
        return {name: value for name, value in settings.items() if name not in idle}

    def file_prints(self) -> dict[str, str]:
        """Hashes of the local files that change the answers; edited, they make this another job."""
        prints = {}
        if self.uses_engine and self.model_path and Path(self.model_path).is_dir():
            prints["model_path"] = fingerprint_of_folder(Path(self.model_path))
        if self.lora_path is not None and Path(self.lora_path).exists():
            prints["lora_path"] = fingerprint_of_adapter(Path(self.lora_path))
        if self.prompt_template is not None and self.prompt_template.is_file():
            prints["prompt_template"] = _fingerprint_of_file(self.prompt_template)
        code = Path(self.backend.rpartition(":")[0]) if self.backend else None
        if code is not None and code.is_file():
            prints["backend"] = _fingerprint_of_file(code)
        return prints


def _fingerprint_of_file(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
