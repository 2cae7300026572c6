"""The settings of a server: what each means, and which values are valid."""

from __future__ import annotations

import dataclasses
import math
import os
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin, get_type_hints

from parallelmind.errors import SettingsError
from parallelmind.models.options import ModelOptions

ENVIRONMENT_PREFIX = "PARALLELMIND_"
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ModelOptions):
    """Everything `parallelmind serve` can be told; the names are the flags.

    Raises:
        SettingsError: a value is out of range.
    """

    lora_path: tuple[str, ...] = ()
    """NAME=PATH: adapters that requests choose by name. One PATH without a name: part of the model for all requests."""
    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free one."""
    api_key: str | None = dataclasses.field(default=None, repr=False)
    """None: no key is asked for."""
    cors_origin: tuple[str, ...] = ()
    """Web origins whose pages may call the API; none by default."""
    allowed_host: tuple[str, ...] = ()
    """Names, besides its address, by which a server on a loopback address without a key may be called."""
    max_queue: int = 256
    """Branches that may wait for a free place; requests beyond are refused with 429."""
    max_request_bytes: int = 8 * 2**20
    max_branches: int = 128
    """Branches of one request."""
    max_main_tokens: int | None = None
    """None: what the model takes."""
    max_new_tokens: int = 4096
    """Tokens a branch may ask for."""
    max_running_branches: int = 64
    max_batched_tokens: int = 2048
    kv_cache_gb: float | None = None
    """Memory for keys and values, GiB; None: half of what is free."""
    prefix_cache_gb: float | None = None
    """The part of it for mains no request uses at present; None: half."""
    shutdown_timeout: float = 30.0
    """Seconds that running requests have to finish after SIGTERM."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (
            ("max_queue", 0),
            ("max_request_bytes", 1024),
            ("max_branches", 1),
            ("max_main_tokens", 1),
            ("max_new_tokens", 1),
            ("max_running_branches", 1),
            ("max_batched_tokens", 1),
            ("shutdown_timeout", 0),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise SettingsError(f"--{name} is {value!r}; it must be {least} or more.")
        for name in ("kv_cache_gb", "prefix_cache_gb"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise SettingsError(f"--{name} is {value!r}; it must be 0 or more.")
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"--port is {self.port}; it must be from 0 (any free one) to 65535.")
        if self.api_key is not None and not self.api_key.strip():
            raise SettingsError("--api_key is empty; give a key, or leave the flag out for a server without one.")
        for origin in self.cors_origin:
            if origin != "*" and not origin.startswith(("http://", "https://")):
                raise SettingsError(f"--cors_origin is {origin!r}; give an origin such as https://example.org, or *.")

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches the server."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    @property
    def max_unfinished_branches(self) -> int:
        """Branches that run and wait together."""
        return self.max_running_branches + self.max_queue

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> ServeOptions:
        """Options from variables such as PARALLELMIND_BASE_MODEL; several values are separated by commas.

        Raises:
            SettingsError: the base model is not given, or a value is wrong.
        """
        kinds = get_type_hints(cls)
        given = {}
        for field in dataclasses.fields(cls):
            name = ENVIRONMENT_PREFIX + field.name.upper()
            if environment.get(name):
                given[field.name] = _parsed(name, environment[name], kinds[field.name])
        if "base_model" not in given:
            raise SettingsError(
                f"{ENVIRONMENT_PREFIX}BASE_MODEL is not set; set it to a hub name, a local folder, or tiny, the "
                "bundled model. Every flag of `parallelmind serve` has such a variable."
            )
        return cls(**given)


def _parsed(name: str, text: str, kind: Any) -> Any:
    if get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if isinstance(kind, types.UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    if kind is bool:
        if text.lower() in _TRUE + _FALSE:
            return text.lower() in _TRUE
        raise SettingsError(f"{name} is {text!r}; it must be one of {', '.join(_TRUE + _FALSE)}.")
    try:
        return kind(text)
    except ValueError as error:
        raise SettingsError(f"{name} is {text!r}; it must be a number.") from error
