"""The settings of a server: what each means, and which values are valid."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Gt, Le

from parallelmind.errors import SettingsError
from parallelmind.settings.model import ModelOptions
from parallelmind.settings.setting import ENVIRONMENT_PREFIX, Flag, Setting

_SERVER = "server"
_LIMITS = "limits"


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ModelOptions):
    """Everything `parallelmind serve` can be told; the names are the flags.

    Raises:
        SettingsError: a value is out of range.
    """

    lora_path: Annotated[
        tuple[str, ...],
        Setting(
            "adapter: a .pth file or a PEFT folder; requests choose it by NAME. A PATH without a NAME is part of the "
            "model for all requests",
            "model",
            flag=Flag(metavar="NAME=PATH"),
        ),
    ] = ()
    host: Annotated[str, Setting("address to listen on", _SERVER, flag=Flag(metavar="ADDRESS"))] = "127.0.0.1"
    port: Annotated[int, Ge(0), Le(65535), Setting("port to listen on; 0: any free one", _SERVER)] = 8000
    api_key: Annotated[
        str | None,
        Setting(
            f"require this key; prefer to set {ENVIRONMENT_PREFIX}API_KEY, which no process list shows", _SERVER,
            default="no key", secret=True, flag=Flag(metavar="KEY"),
        ),
    ] = field(default=None, repr=False)  # fmt: skip
    cors_origin: Annotated[
        tuple[str, ...],
        Setting("allow pages from this web origin to call the API", _SERVER, flag=Flag(metavar="ORIGIN")),
    ] = ()
    allowed_host: Annotated[
        tuple[str, ...],
        Setting(
            "name by which a server on 127.0.0.1 without a key may be called", _SERVER,
            default="localhost and its address", flag=Flag(metavar="NAME"),
        ),
    ] = ()  # fmt: skip
    shutdown_timeout: Annotated[
        float, Ge(0), Setting("seconds that running requests have to finish in after SIGTERM", _SERVER)
    ] = 30.0
    max_queue: Annotated[
        int, Ge(0), Setting("branches that may wait for a free place; more are refused with 429", _LIMITS)
    ] = 256
    max_connections: Annotated[
        int, Ge(2), Setting("connections at a time; a client has half of them at most", _LIMITS)
    ] = 1024
    max_request_bytes: Annotated[int, Ge(1024), Setting("bytes in a request", _LIMITS)] = 8 * 2**20
    max_branches: Annotated[int, Ge(1), Setting("branches in a request", _LIMITS)] = 128
    max_main_tokens: Annotated[
        int | None, Ge(1), Setting("tokens in a shared text", _LIMITS, default="what the model takes")
    ] = None
    max_new_tokens: Annotated[int, Ge(1), Setting("tokens a branch may ask for", _LIMITS)] = 4096
    max_logprobs: Annotated[
        int, Ge(0), Setting("log-probabilities in an answer: choices × tokens × likeliest tokens", _LIMITS)
    ] = 2**19
    max_running_branches: Annotated[int, Ge(1), Setting("branches decoded at once", _LIMITS)] = 64
    max_batched_tokens: Annotated[int, Ge(1), Setting("tokens in one forward pass", _LIMITS)] = 2048
    kv_cache_gb: Annotated[
        float | None,
        Gt(0),
        Setting("memory for keys and values, GiB", _LIMITS, default="half of what is free"),
    ] = None
    prefix_cache_gb: Annotated[
        float | None,
        Ge(0),
        Setting("the part of it that keeps shared texts for later requests, GiB", _LIMITS, default="half of it"),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
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
