"""From a server's options to an engine ready to serve."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from parallelmind.engine.engine import Engine
from parallelmind.errors import SettingsError
from parallelmind.prompts.prompt_encoder import PromptEncoder
from parallelmind.server.options import ServeOptions

_GIB = 2**30


@dataclass(frozen=True)
class Served:
    """An engine and the names its model goes by."""

    engine: Engine
    model: str
    """Name of the model without an adapter."""
    adapters: tuple[str, ...]

    @cached_property
    def prompts(self) -> PromptEncoder:
        """Token ids for the engine."""
        return PromptEncoder(self.engine.tokenizer, max_tokens=self.engine.max_model_len)


def load_served(options: ServeOptions) -> Served:
    """Load model and adapters and make the engine.

    Raises:
        ParallelMindError: something does not fit; see `Engine.from_pretrained`.
    """
    part, named = split_adapters(options)
    engine = Engine.from_pretrained(
        lora_path=named or part,
        **options.loading(),
        max_running_branches=options.max_running_branches,
        max_batched_tokens=options.max_batched_tokens,
        kv_cache_bytes=_bytes(options.kv_cache_gb),
        prefix_cache_bytes=_bytes(options.prefix_cache_gb),
        isolate_failures=True,
    )
    # What is there by now stays to the end. Without this, whenever a request makes many objects, Python would go
    # through all of it for garbage: half a second and more in which nobody is answered.
    gc.collect()
    gc.freeze()
    return Served(engine, _model_name(options.base_model), tuple(named))


def split_adapters(options: ServeOptions) -> tuple[str | None, dict[str, str]]:
    """(the adapter that is part of the model, or None; the adapters to choose from, by name).

    Raises:
        SettingsError: a name is missing, twice, or the model's own.
    """
    named: dict[str, str] = {}
    unnamed: list[str] = []
    for given in options.lora_path:
        name, equals, path = given.partition("=")
        if not equals or Path(given).exists():
            unnamed.append(given)
        elif not name or not path:
            raise SettingsError(f"--lora_path is {given!r}; give NAME=PATH, for example --lora_path math=out/math.pth.")
        elif name in named or name == _model_name(options.base_model) or ":" in name:
            raise SettingsError(
                f"--lora_path {given}: the name {name!r} is taken, or holds a colon; give every adapter its own."
            )
        else:
            named[name] = path
    if len(unnamed) > 1 or (unnamed and named):
        raise SettingsError(
            f"--lora_path {unnamed[0]}: one of several adapters needs a name, so that requests can choose it: "
            f"--lora_path NAME={unnamed[0]}"
        )
    return (unnamed[0] if unnamed else None), named


def _model_name(base_model: str) -> str:
    """A folder has its last part as its name, so that clients do not learn where it is on the server."""
    path = Path(base_model)
    return path.resolve().name if path.is_dir() else base_model


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * _GIB)
