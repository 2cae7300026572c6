"""The sidecar: the 2D settings an adapter was trained with, as JSON beside its weights.

PEFT drops keys it does not know from `adapter_config.json`, and a `.pth` has no room for settings, so they
live in a file of their own: `x.pth` has `x.parallelmind.json`, a PEFT folder has `parallelmind.json` inside.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parallelmind.columnar.rope import PAIR_CHOICES, ROPE_MODES, PairChoice, RopeMode
from parallelmind.errors import AdapterError, SettingsError
from parallelmind.io.atomic import replacing
from parallelmind.settings.model import DEFAULT_STRIDE, ROPE_FLAGS
from parallelmind.settings.visibility import VISIBILITIES, Visibility

SIDECAR_NAME = "parallelmind.json"
"""In a folder."""
FORMAT_VERSION = 3
"""1 did not say which branch numbers an adapter was trained on, 2 not in how many bits its base was."""
_MAX_BYTES = 1 << 20
_SHOWN = 5
_WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
_CHOICES: dict[str, tuple[str, ...]] = {"mode": ROPE_MODES, "pairs": PAIR_CHOICES, "visibility": VISIBILITIES}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeSettings:
    """How positions and visibility of a row are encoded. Raises SettingsError, naming the flag."""

    ratio: float = 0.5
    """Share of the frequency pairs that turn by branch position, 0 to 1."""
    mode: RopeMode = "split"
    """split: branch pairs turn by branch position only; additive: by time + branch position."""
    pairs: PairChoice = "low"
    """low: the slowest pairs carry the branch; interleaved: pairs spread evenly."""
    branch_stride: int = DEFAULT_STRIDE
    """Branch position = branch id x stride. 0 puts all branches at one position."""
    visibility: Visibility = "isolated"
    """What a branch token sees besides its own branch: main; main and the other branches' past; nothing."""
    branch_range: int | None = None
    """The branch numbers 1 to R that were trained; a number beyond takes the position of one of them. None: unknown,
    so that every number has a position of its own."""

    @property
    def moves_branches(self) -> bool:
        """Whether any token turns otherwise than in the model without 2D RoPE."""
        return self.ratio > 0 and not (self.mode == "additive" and self.branch_stride == 0)

    def __post_init__(self) -> None:
        for flag, name in ROPE_FLAGS.items():
            value = getattr(self, name)
            if problem := _problem(name, value):
                raise SettingsError(f"--{flag} {problem}, not {value!r}")


def _problem(name: str, value: Any) -> str | None:
    if name in _CHOICES:
        return None if value in _CHOICES[name] else f"must be {' or '.join(_CHOICES[name])}"
    if name == "branch_range" and value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name == "ratio":
        return None if number and 0 <= value <= 1 else "must be a number from 0 to 1"
    least = 1 if name == "branch_range" else 0
    return None if number and isinstance(value, int) and value >= least else f"must be an integer of {least} or more"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sidecar:
    """What an adapter's weights do not say about themselves."""

    rope: RopeSettings | None
    """None: trained without 2D RoPE."""
    rank: int
    base_model: str
    """Hub name or path of the model the adapter was trained on; empty if unknown.

    A model folder has a sidecar too, if its own weights need 2D RoPE (merged, or trained whole).
    """
    quantization: str = ""
    """How the base model was quantized while the adapter was trained, see `quantization.quantization_name`; empty if it
    was not, or if that is unknown."""
    format_version: int = FORMAT_VERSION


def is_weights_file(path: str | os.PathLike[str]) -> bool:
    """Whether the path means one file of weights rather than a PEFT folder."""
    path = Path(path)
    return path.is_file() or (path.suffix in _WEIGHT_SUFFIXES and not path.is_dir())


def adapters_in(path: str | os.PathLike[str]) -> str:
    """What an error says of the adapters in the folder of a path that is none: "; in out/lora there is a.pth"."""
    folder = Path(path).parent
    found = sorted(file.name for file in folder.glob("*.pth")) if folder.is_dir() else []
    shown = ", ".join([*found[:_SHOWN], *(["…"] if len(found) > _SHOWN else [])])
    return f"; in {folder} there is {shown}" if found else ""


def sidecar_path(adapter_path: str | os.PathLike[str]) -> Path:
    """Where a sidecar lies: `x.parallelmind.json` beside `x.pth`, `parallelmind.json` in a PEFT folder."""
    path = Path(adapter_path)
    return path.with_suffix(".parallelmind.json") if is_weights_file(path) else path / SIDECAR_NAME


def sidecar_text(sidecar: Sidecar) -> str:
    return json.dumps(dataclasses.asdict(sidecar), indent=2) + "\n"


def write_sidecar(adapter_path: str | os.PathLike[str], sidecar: Sidecar) -> Path:
    """Write the sidecar of the adapter at `adapter_path`, complete or not at all, and return its path.

    Raises AdapterError if it cannot be written.
    """
    path = sidecar_path(adapter_path)
    with replacing(path, _unwritable) as temporary:
        temporary.write_text(sidecar_text(sidecar), encoding="utf-8")
    return path


def _unwritable(path: Path, error: OSError) -> AdapterError:
    return AdapterError(f"{path}: could not be written ({error}); a former file is unchanged")


def read_sidecar(adapter_path: str | os.PathLike[str]) -> Sidecar | None:
    """Read the sidecar of the adapter at `adapter_path`; None if it has none.

    Raises AdapterError, naming the file and the field, if it is not what `write_sidecar` writes.
    """
    path = sidecar_path(adapter_path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise AdapterError(f"{path}: larger than {_MAX_BYTES} bytes, so not a sidecar; delete it to go on without")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(
            f"{path}: not readable as JSON ({error}); restore it, or delete it to go on without"
        ) from error
    return _parse(content, path)


def _parse(content: Any, path: Path) -> Sidecar:
    names = [field.name for field in dataclasses.fields(Sidecar)]
    if isinstance(content, dict) and content.get("format_version") in (1, 2) and "quantization" not in content:
        content = {**content, "quantization": ""}
    fields = _object(content, names, path, "the file")
    version = _typed(fields, "format_version", int, path)
    if not 1 <= version <= FORMAT_VERSION:
        raise AdapterError(
            f"{path}: field 'format_version' is {version}, but this ParallelMind reads 1 to {FORMAT_VERSION}; upgrade "
            "it, or save the adapter again"
        )
    rank = _typed(fields, "rank", int, path)
    if rank < 1:
        raise AdapterError(f"{path}: field 'rank' must be 1 or more, not {rank}")
    rope = None
    if fields["rope"] is not None:
        known = [name for name in ROPE_FLAGS.values() if version > 1 or name != "branch_range"]
        values = _object(fields["rope"], known, path, "field 'rope'")
        for name, value in values.items():
            if problem := _problem(name, value):
                raise AdapterError(f"{path}: field 'rope.{name}' {problem}, not {value!r}")
        rope = RopeSettings(**values)
    return Sidecar(
        rope=rope,
        rank=rank,
        base_model=_typed(fields, "base_model", str, path),
        quantization=_typed(fields, "quantization", str, path),
        format_version=version,
    )


def _object(value: Any, names: list[str], path: Path, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise AdapterError(f"{path}: {where} must be a JSON object, not {type(value).__name__}")
    # Unknown fields are refused: a setting that changes the model's output must not be dropped in silence.
    if missing := [name for name in names if name not in value]:
        raise AdapterError(f"{path}: {where} lacks the field {missing[0]!r}")
    if unknown := [name for name in value if name not in names]:
        raise AdapterError(f"{path}: {where} has an unknown field {unknown[0]!r}; remove it or upgrade ParallelMind")
    return value


def _typed(fields: Mapping[str, Any], name: str, kind: type, path: Path) -> Any:
    value = fields[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise AdapterError(f"{path}: field {name!r} must be of type {kind.__name__}, not {value!r}")
    return value
