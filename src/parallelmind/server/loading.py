"""From a server's options to an engine ready to serve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from parallelmind.engine.engine import Engine
from parallelmind.engine.loading import make_engine
from parallelmind.errors import SettingsError
from parallelmind.models.adapters import AdapterSet
from parallelmind.models.loaded import LoadedModel
from parallelmind.models.loader import load_model_with_lora
from parallelmind.server.options import ServeOptions

_GIB = 2**30


@dataclass(frozen=True)
class Served:
    """An engine and the names its model goes by."""

    engine: Engine
    model: str
    """Name of the model without an adapter."""
    adapters: tuple[str, ...]


def load_served(options: ServeOptions) -> Served:
    """Load model and adapters and make the engine.

    Raises:
        ParallelMindError: something does not fit; see `load_model_with_lora`.
    """
    part, named = split_adapters(options)
    loaded, adapters = _load(options, part, named)
    engine = make_engine(
        loaded,
        max_running_branches=options.max_running_branches,
        max_batched_tokens=options.max_batched_tokens,
        kv_cache_bytes=_bytes(options.kv_cache_gb),
        prefix_cache_bytes=_bytes(options.prefix_cache_gb),
        adapters=adapters,
        isolate_failures=True,
    )
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


def _load(options: ServeOptions, part: str | None, named: dict[str, str]) -> tuple[LoadedModel, AdapterSet | None]:
    if not named:
        return load_model_with_lora(lora_path=part, **options.loading()), None
    from parallelmind.models.adapters_load import load_model_with_adapters  # PEFT takes seconds to import

    return load_model_with_adapters(adapters=named, **options.loading())


def _model_name(base_model: str) -> str:
    """A folder has its last part as its name, so that clients do not learn where it is on the server."""
    path = Path(base_model)
    return path.resolve().name if path.is_dir() else base_model


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * _GIB)
