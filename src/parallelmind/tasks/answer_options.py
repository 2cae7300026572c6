"""The settings of an answering run: what each means, which values are valid, and which make it another job."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from parallelmind.answering.backends.openai_compatible import HttpSettings
from parallelmind.answering.backends.retry import RetryPolicy
from parallelmind.engine.request import SamplingParams
from parallelmind.errors import RequestError, SettingsError
from parallelmind.io.fingerprints import fingerprint_of_folder
from parallelmind.models.options import ModelOptions, dtype_name, fingerprint_of_adapter, real_name

InferenceType = Literal["local", "huggingface", "togetherai", "openai"]
ENGINE_TYPES = ("local", "huggingface")
HTTP_TYPES = ("togetherai", "openai")
INFERENCE_TYPES = (*ENGINE_TYPES, *HTTP_TYPES)

# These change where, how fast and how often answers are made, but not which answers the job is for.
_NOT_IDENTITY = {"contexts_file", "output_file", "batch_size", "device", "kv_cache_gb", "retry_failed", "overwrite"} | {
    "max_samples", "lora_rank",  # a rank that is not the file's is refused
    "device_map", "api_key_env", "concurrency", "timeout", "rpm", "tpm", "max_attempts", "max_retry_seconds",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """Everything `parallelmind answer` can be told; the names are the flags.

    Raises:
        SettingsError: a value is out of range, or two do not go together.
    """

    contexts_file: Path
    output_file: Path
    model_path: str | None = None
    """Folder or hub name, or the model's name at the server."""
    inference_type: InferenceType = "local"
    backend: str | None = None
    """`file.py:ClassName` of a user's own backend; `inference_type` is then unused."""
    max_new_tokens: int = 512
    temperature: float = 0.2
    top_p: float = 0.95
    seed: int = 0
    max_samples: int | None = None
    prompt_template: Path | None = None
    no_system_role: bool = False
    lora_path: str | None = None
    lora_rank: int | None = None
    batch_size: int = 16
    """Branches that run at once in the engine."""
    device: str | None = None
    dtype: str = "bfloat16"
    device_map: str | None = None
    load_in_8bit: bool = False
    load_in_4bit: bool = False
    kv_cache_gb: float | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    concurrency: int = 16
    timeout: float = 120.0
    rpm: float | None = None
    tpm: float | None = None
    max_attempts: int = 8
    max_retry_seconds: float = 600.0
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    retry_failed: bool = True
    overwrite: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", dtype_name(self.dtype))
        if self.inference_type not in INFERENCE_TYPES:
            raise SettingsError(
                f"--inference_type is {self.inference_type!r}; it must be one of {', '.join(INFERENCE_TYPES)}."
            )
        if self.backend is None and not self.model_path:
            raise SettingsError("--model_path is missing; it names the model, such as Qwen/Qwen2.5-0.5B-Instruct.")
        if self.base_url is not None and self.inference_type != "openai":
            raise SettingsError(
                f"--base_url is for --inference_type openai, not {self.inference_type}; give that, or leave it out."
            )
        engine_only = "lora_path", "lora_rank", "device", "device_map", "load_in_8bit", "load_in_4bit", "kv_cache_gb"
        http_only = "api_key_env", "rpm", "tpm", "extra_body"
        for names, types, fits in (
            (engine_only, ENGINE_TYPES, self.uses_engine),
            (http_only, HTTP_TYPES, self.uses_http),
        ):
            given = [name for name in names if getattr(self, name) not in (None, False, {})]
            if given and not fits:
                raise SettingsError(f"--{given[0]} is for --inference_type {' and '.join(types)}; leave it out.")
        if self.max_samples is not None and self.max_samples < 1:
            raise SettingsError(f"--max_samples_per_worker gives {self.max_samples} rows; it must be 1 or more.")
        if self.batch_size < 1:
            raise SettingsError(f"--batch_size is {self.batch_size}; it must be 1 or more.")
        if self.kv_cache_gb is not None and not 0 < self.kv_cache_gb < math.inf:
            raise SettingsError(f"--kv_cache_gb is {self.kv_cache_gb}; it must be above 0.")
        try:
            self.sampling()
        except RequestError as error:
            raise SettingsError(f"--{error}") from None
        if self.uses_http:
            self.http(world_size=1)
        if self.uses_engine:
            self.model()

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

    def sampling(self, **changed: Any) -> SamplingParams:
        """How answers are sampled.

        Raises:
            RequestError: a value is out of range.
        """
        settings: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
        }
        return SamplingParams(**(settings | changed))

    def http(self, *, world_size: int) -> HttpSettings:
        """How requests are made; rates are shared by the workers.

        Raises:
            SettingsError: a value is out of range.
        """
        assert self.model_path
        return HttpSettings(
            model=self.model_path,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            extra_body=self.extra_body,
            concurrency=self.concurrency,
            timeout=self.timeout,
            rpm=None if self.rpm is None else self.rpm / world_size,
            tpm=None if self.tpm is None else self.tpm / world_size,
            retry=RetryPolicy(max_attempts=self.max_attempts, max_seconds=self.max_retry_seconds),
        )

    def identity(self) -> dict[str, Any]:
        """The settings that make this another job when they differ."""
        settings = {name: value for name, value in vars(self).items() if name not in _NOT_IDENTITY}
        template = None if self.prompt_template is None else real_name(str(self.prompt_template))
        names = {"lora_path": real_name(self.lora_path), "prompt_template": template}
        if self.uses_engine:
            names["model_path"] = real_name(self.model_path)
        return settings | names | {"extra_body": json.loads(json.dumps(dict(self.extra_body)))}

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
