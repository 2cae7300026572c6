"""Which model is loaded and how, and the settings of 2D RoPE: shared by all commands with a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from parallelmind.errors import SettingsError
from parallelmind.settings.setting import Flag, Setting, Settings, names
from parallelmind.settings.visibility import RULES, Visibility

_GROUP = "model"
_LOADING = "loading"

TINY_MODEL = "tiny"
"""The name of the bundled model."""

LARGEST_STRIDE = 2**20
"""Positions of many branches beyond it would lose precision."""
LARGEST_RANGE = 2**16
"""Branch numbers that can be trained: as many branches as one row may have."""
DEFAULT_RANGE = 64
"""Branch numbers that are trained where branches see one another."""
DEFAULT_STRIDE = 128
"""Branch position = branch id × stride."""

ROPE_FLAGS = {
    "rope_2d_ratio": "ratio",
    "rope_2d_mode": "mode",
    "rope_2d_pairs": "pairs",
    "branch_stride": "branch_stride",
    "visibility": "visibility",
    "branch_range": "branch_range",
}
"""The flags of a row's 2D settings, and the field of `RopeSettings` that each one is about."""

BaseModel = Annotated[
    str, Setting("Hub name, local folder, or tiny: the bundled model", _GROUP, flag=Flag(metavar="MODEL"))
]
LoraPath = Annotated[str | None, Setting("adapter: a .pth file or a PEFT folder", _GROUP, flag=Flag(metavar="PATH"))]
LoraRank = Annotated[
    int | None,
    Ge(1),
    Setting("the rank that the adapter must have, as a check", _GROUP, default="the adapter's own", identity=False),
]
PatchRope = Annotated[
    bool | None, Setting("turn 2D RoPE on", _GROUP, default="as the adapter was trained", flag=Flag(form="pair"))
]
RopeRatio = Annotated[
    float | None,
    Ge(0),
    Le(1),
    Setting(
        "share of frequency pairs that encode the branch",
        _GROUP,
        default="the adapter's, else 0.5",
        flag=Flag(metavar="R"),
    ),
]
RopeMode = Annotated[
    Literal["split", "additive"] | None,
    Setting(
        "how those pairs turn: by the branch alone, or by time + branch", _GROUP, default="the adapter's, else split"
    ),
]
RopePairs = Annotated[
    Literal["low", "interleaved"] | None,
    Setting("which pairs: the slowest, or spread evenly", _GROUP, default="the adapter's, else low"),
]
BranchStride = Annotated[
    int | None,
    Ge(0),
    Le(LARGEST_STRIDE),
    Setting("branch position = branch id x stride", _GROUP, default=f"the adapter's, else {DEFAULT_STRIDE}"),
]
BranchRange = Annotated[
    int | None,
    Ge(1),
    Le(LARGEST_RANGE),
    Setting(
        "the branch numbers 1 to R that the adapter was trained on; a branch beyond stands where one of them does",
        _GROUP,
        default="the adapter's, else all",
        flag=Flag(metavar="R"),
    ),
]
VisibilityOption = Annotated[
    Visibility | None,
    Setting(
        f"what a branch sees: {'; '.join(rule.help for rule in RULES.values())}",
        _GROUP,
        default="the adapter's, else isolated",
    ),
]
Device = Annotated[
    str | None,
    Setting(
        "such as cuda, cuda:1, cpu",
        _LOADING,
        default="cuda, or cpu without a GPU",
        identity=False,
        flag=Flag(metavar="DEVICE"),
    ),
]  # fmt: skip
Dtype = Annotated[
    Literal["float32", "float16", "bfloat16", "auto"],
    Setting("number format of the weights; auto is the checkpoint's own", _LOADING),
]
DeviceMap = Annotated[
    str | None,
    Setting(
        "auto spreads the model over all GPUs", _LOADING, default="one device", identity=False, flag=Flag(metavar="MAP")
    ),
]
LoadIn8Bit = Annotated[bool, Setting("8-bit weights (bitsandbytes)", _LOADING)]
LoadIn4Bit = Annotated[bool, Setting("4-bit weights (bitsandbytes)", _LOADING)]
Deterministic = Annotated[
    bool | None,
    Setting(
        "give a branch the same bits whatever runs beside it: not possible on a GPU, slower on a CPU with AMX",
        _LOADING,
        default="on a CPU",
        identity=False,
        flag=Flag(form="pair"),
    ),
]
KvCacheGb = Annotated[
    float | None,
    Gt(0),
    Setting("memory for keys and values, GiB", "running", default="half of what is free", identity=False,
            flag=Flag(metavar="GB")),
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LoadingSettings(Settings):
    """How a model is loaded: what every command that loads one can be told.

    A new way to load is a field here, and what `models/loader.py` does with it: all these commands then have it.
    """

    device: Device = None
    dtype: Dtype = "bfloat16"

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", dtype_name(self.dtype))
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class QuantizedLoadingSettings(LoadingSettings):
    """The same for the commands that also take weights of fewer bits."""

    load_in_8bit: LoadIn8Bit = False
    load_in_4bit: LoadIn4Bit = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.load_in_8bit and self.load_in_4bit:
            raise SettingsError("--load_in_8bit and --load_in_4bit exclude each other; give one.")


@dataclass(frozen=True, kw_only=True)
class EngineLoadingSettings(QuantizedLoadingSettings):
    """The same for the commands that load a model for an engine."""

    deterministic: Deterministic = None


@dataclass(frozen=True, kw_only=True)
class AdaptedModelSettings(LoadingSettings):
    """Which model, and how the positions of its branches are encoded: what its adapter was trained with."""

    base_model: BaseModel
    lora_rank: LoraRank = None
    patch_rope: PatchRope = None
    rope_2d_ratio: RopeRatio = None
    rope_2d_mode: RopeMode = None
    rope_2d_pairs: RopePairs = None
    branch_stride: BranchStride = None
    branch_range: BranchRange = None
    visibility: VisibilityOption = None


@dataclass(frozen=True, kw_only=True)
class ModelOptions(AdaptedModelSettings, EngineLoadingSettings):
    """Which model to load and how. Which adapter to load is each command's own to say.

    Raises:
        SettingsError: a value is out of range.
    """

    device_map: DeviceMap = None

    @classmethod
    def of(cls, options: object, **others: Any) -> ModelOptions:
        """The settings of this class among those of a command; `others` are what it names otherwise."""
        named = {name: getattr(options, name) for name in names(ModelOptions) if hasattr(options, name)}
        return ModelOptions(**(named | others))

    def loading(self) -> dict[str, Any]:
        """The arguments of `Engine.from_pretrained`, but for the adapter."""
        return {name: getattr(self, name) for name in names(ModelOptions)}

    def rope_flags(self) -> dict[str, Any]:
        """What was said about 2D RoPE: the arguments of `resolve_rope`."""
        return {name: getattr(self, name) for name in ("patch_rope", *ROPE_FLAGS)}


def dtype_name(dtype: object) -> str:
    """The name of a number format that is given as text or as torch's dtype: "float32" for `torch.float32`."""
    return str(dtype).removeprefix("torch.")
