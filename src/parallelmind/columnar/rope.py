"""2D RoPE: some frequency pairs of a model's rotary embedding turn by branch position, the others by time.

RoPE (Su et al., 2021, https://arxiv.org/abs/2104.09864) turns the pair of features i by the angle position × θ_i.
`Interleaved2DRoPE` wraps the model's own rotary module and calls it once per axis, so every scaling type (linear,
dynamic, YaRN, LongRoPE, llama3, proportional) stays the model's own, and chooses per pair:

    split:     angle_i = branch position × θ_i             for branch pairs,   time × θ_i for the others
    additive:  angle_i = (time + branch position) × θ_i    for branch pairs,   time × θ_i for the others

With `additive`, branch position 0 is exactly the unpatched model.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from parallelmind.errors import SettingsError, UnsupportedModelError

RopeMode = Literal["split", "additive"]
ROPE_MODES: tuple[RopeMode, ...] = get_args(RopeMode)
PairChoice = Literal["low", "interleaved"]
PAIR_CHOICES: tuple[PairChoice, ...] = get_args(PairChoice)

_PROBE_POSITIONS = (0, 1, 5, 23, 63)
_NO_ROPE = (
    "The model has no rotary position embedding to patch with 2D RoPE: 未找到 rotary_emb (GPT-2, OPT, BLOOM and MPT, "
    "for example, have none). Run it with --no_patch_rope (patch_rope=False): its branches then differ by visibility "
    "only."
)

_LENGTH_DEPENDENT = {"dynamic", "longrope"}
_USE_RECOMPUTE = 'Join with join="recompute", which runs the joined text through the model.'


class KeyLayout(NamedTuple):
    """Which two features of a head a frequency pair turns, and which entry of cos and sin says how far; each [F]."""

    first: Tensor
    second: Tensor
    entry: Tensor


class KeyTurner:
    """Turns keys that a model has computed to other positions, by the model's own rotary embedding.

    A key is the rotation of what a layer made of a token. So a key of one position, rotated by the difference to
    another one, is the key of that position, as far as the layer saw the same. Which rotary embedding a layer uses, and
    which features of its keys form pairs, is found by `fit`: families differ in both, and some layers turn nothing.

    Raises:
        UnsupportedModelError: the model has no rotary embedding, or one whose frequencies depend on the length.
    """

    def __init__(self, model: nn.Module):
        self._rotaries: list[tuple[nn.Module, str | None]] = []
        """As they are installed, with 2D RoPE around them if the model is patched."""
        try:
            modules = list(_rotary_modules(model))
            for _, _, rotary in modules:
                for layer_type in _layer_types(model, rotary):
                    probe_pairs(rotary, layer_type)
        except UnsupportedModelError as error:
            raise UnsupportedModelError(
                f"Keys of {type(model).__name__} cannot be turned to another place: it has no rotary embedding of one "
                f"position axis that gives cos and sin. {_USE_RECOMPUTE}"
            ) from error
        for parent, attribute, rotary in modules:
            kinds: Any = getattr(rotary, "rope_type", "default")
            kinds = set(kinds.values()) if isinstance(kinds, dict) else {kinds}
            if changing := sorted(kinds & _LENGTH_DEPENDENT):
                raise UnsupportedModelError(
                    f"The frequencies of {type(rotary).__name__} depend on the length of the text ({changing[0]}), so "
                    f"that keys cannot be turned to another place. {_USE_RECOMPUTE}"
                )
            self._rotaries += [(getattr(parent, attribute), kind) for kind in _layer_types(model, rotary)]
        self._layers: dict[int, tuple[int, KeyLayout] | None] = {}

    def angles(self, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        """cos and sin [T, E] of each rotary embedding, for positions [T] or [T, 2]."""
        found = []
        for rotary, layer_type in self._rotaries:
            device = next((buffer.device for buffer in rotary.buffers()), torch.device("cpu"))
            arguments = () if layer_type is None else (layer_type,)
            cos, sin = rotary(torch.zeros(1, 1, device=device), positions[None].to(device), *arguments)
            found.append((cos[0].float(), sin[0].float()))
        return found

    def fit(self, layer: int, keys_HTD: Tensor, angles: Sequence[tuple[Tensor, Tensor]], tolerance: float) -> None:
        """Find out how a layer's keys turn, from those of one token at several positions.

        Raises:
            UnsupportedModelError: they are not one another turned.
        """
        size = float(keys_HTD.abs().max().float().clamp_min(1e-9))
        first_HTD = keys_HTD[:, :1].expand_as(keys_HTD)
        best = float((first_HTD.float() - keys_HTD.float()).abs().max()) / size
        self._layers[layer] = None
        for number, (cos, sin) in enumerate(angles):
            old = (cos[:1].expand_as(cos), sin[:1].expand_as(sin))
            for layout in _key_layouts(cos.shape[-1], keys_HTD.shape[-1]):
                turned = _turned(first_HTD, layout, old, (cos, sin))
                if (difference := float((turned.float() - keys_HTD.float()).abs().max()) / size) < best:
                    best, self._layers[layer] = difference, (number, layout)
        if best > tolerance:
            raise UnsupportedModelError(
                f"The keys of layer {layer} at another position are not those of the first one turned (they differ by "
                f"{best:.2g} of their size), as with positions that are added to what the layers see. {_USE_RECOMPUTE}"
            )

    def turn(
        self,
        layer: int,
        keys_HTD: Tensor,
        old: Sequence[tuple[Tensor, Tensor]],
        new: Sequence[tuple[Tensor, Tensor]],
    ) -> Tensor:
        """A layer's keys from where they stand (`angles` of their positions) to another place."""
        found = self._layers[layer]
        if found is None:
            return keys_HTD
        number, layout = found
        return _turned(keys_HTD, layout, old[number], new[number])


def _key_layouts(width: int, head_size: int) -> Iterator[KeyLayout]:
    """All ways in which families lay out E entries of cos and sin, and the features of a head."""
    half = width // 2
    for entry in (torch.arange(half), torch.arange(0, 2 * half, 2), torch.arange(width)):
        pairs = len(entry)
        if not 0 < 2 * pairs <= head_size:
            continue
        place = torch.arange(pairs)
        for start in sorted({0, head_size - 2 * pairs}):
            yield KeyLayout(start + place, start + place + pairs, entry)
            yield KeyLayout(start + 2 * place, start + 2 * place + 1, entry)


def _turned(keys: Tensor, layout: KeyLayout, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> Tensor:
    """Keys [H, T, D] by the difference of two angles, given as cos and sin [T, E], scaled or not."""
    layout = KeyLayout(*(part.to(keys.device) for part in layout))
    cos_0, sin_0, cos_1, sin_1 = (part.to(keys.device)[:, layout.entry] for part in (*old, *new))
    scale = cos_0 * cos_0 + sin_0 * sin_0
    cos, sin = (cos_0 * cos_1 + sin_0 * sin_1) / scale, (cos_0 * sin_1 - sin_0 * cos_1) / scale
    first, second = keys[..., layout.first].float(), keys[..., layout.second].float()
    turned = keys.clone()
    turned[..., layout.first] = (first * cos - second * sin).to(keys.dtype)
    turned[..., layout.second] = (second * cos + first * sin).to(keys.dtype)
    return turned


class Interleaved2DRoPE(nn.Module):
    """The module that `patch_model_with_interleaved_2d_rope` installs around a model's own rotary embedding.

    Its `position_ids` may be [B, S, 2] = (branch position, time position): the frequency pairs of `pair_indices` turn
    by the branch position, the others by time. Ordinary [B, S] positions mean branch position 0. The output is what
    the wrapped module returns: cos and sin, [B, S, E] each.
    """

    def __init__(
        self,
        rotary: nn.Module,
        pair_indices: Sequence[int],
        mode: RopeMode,
        layer_types: Sequence[str | None],
    ):
        super().__init__()
        self.rotary = rotary
        self.pair_indices = tuple(sorted(pair_indices))
        self.mode: RopeMode = mode
        self.pos2d: Tensor | None = None
        # Undecorated: `dynamic_rope_update` would rescale the frequencies by the largest branch position.
        self._plain_forward = inspect.unwrap(type(rotary).forward)
        self._branch_entries: dict[str | None, Tensor] = {}
        for layer_type in layer_types:
            pair_of_entry, num_pairs = probe_pairs(rotary, layer_type)
            if self.pair_indices and not 0 <= self.pair_indices[0] <= self.pair_indices[-1] < num_pairs:
                raise SettingsError(
                    f"pair_indices {list(self.pair_indices)} do not fit a rotary embedding of {num_pairs} pairs "
                    f"(0…{num_pairs - 1}); auto_pair_indices(model, ratio) gives indices that do."
                )
            chosen = torch.tensor(self.pair_indices, dtype=torch.long, device=pair_of_entry.device)
            self._branch_entries[layer_type] = torch.isin(pair_of_entry, chosen)

    def forward(self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        branch, time = self._axes(position_ids)
        cos, sin = self.rotary(x, time, *args, **kwargs)
        if not self.pair_indices:
            return cos, sin
        turn = branch + time if self.mode == "additive" else branch
        branch_cos, branch_sin = self._plain_forward(self.rotary, x, turn, *args, **kwargs)
        layer_type = kwargs.get("layer_type", args[0] if args else None)
        entries = self._branch_entries[layer_type]
        if entries.device != cos.device:
            entries = self._branch_entries[layer_type] = entries.to(cos.device)
        return torch.where(entries, branch_cos, cos), torch.where(entries, branch_sin, sin)

    def _axes(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        if position_ids.dim() == 3:
            return position_ids[..., 0], position_ids[..., 1]
        if self.pos2d is None:
            return torch.zeros_like(position_ids), position_ids
        if self.pos2d.shape[1] != position_ids.shape[1]:
            raise SettingsError(
                f"extra_pos2d is not set. Call set_rope_pos2d first. This forward has {position_ids.shape[1]} tokens, "
                f"and what is set is of an earlier one, with positions for {self.pos2d.shape[1]}: call "
                "set_rope_pos2d(model, pos2d) before each forward, and set_rope_pos2d(model, None) before generate()."
            )
        pos2d = self.pos2d.to(position_ids.device)
        return pos2d[..., 0], pos2d[..., 1]

    def __getattr__(self, name: str) -> Any:
        # Model code reads attributes of its rotary module (inv_freq, rope_type, config).
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("rotary"), name)


def probe_pairs(rotary: nn.Module, layer_type: str | None = None) -> tuple[Tensor, int]:
    """Find out which entries of a rotary module's cos and sin turn together, by calling it.

    Families lay the F pairs out as halves cat(f, f), interleaved f0 f0 f1 f1 …, or once (half width); they may cover a
    part of the head. Entries that agree at several positions belong to one pair.

    Returns:
        LongTensor [E], the pair of each entry (0 is the fastest, -1 does not turn at all), and F.
    Raises:
        UnsupportedModelError: the module does not return real cos and sin, or its frequencies repeat.
    """
    device = next((buffer.device for buffer in rotary.buffers()), torch.device("cpu"))
    positions = torch.tensor([_PROBE_POSITIONS], device=device)
    arguments = () if layer_type is None else (layer_type,)
    name = type(rotary).__name__
    try:
        output = rotary(torch.zeros(1, 1, device=device), positions, *arguments)
    except (TypeError, RuntimeError, ValueError, AttributeError, KeyError) as error:
        raise UnsupportedModelError(
            f"{name} cannot be called as rotary(x, position_ids): {error}. 2D RoPE cannot be applied; "
            "use --no_patch_rope (patch_rope=False)."
        ) from error
    if not (isinstance(output, tuple) and len(output) == 2 and not any(part.is_complex() for part in output)):
        raise UnsupportedModelError(
            f"{name} does not return (cos, sin) but another form of rotary embedding. 2D RoPE cannot be applied; "
            "use --no_patch_rope (patch_rope=False)."
        )
    cos, sin = (part[0].float().cpu() for part in output)
    still = (sin == 0).all(0)
    columns, group = torch.unique(torch.cat((cos, sin)).T, dim=0, return_inverse=True)
    sizes = torch.bincount(group[~still], minlength=len(columns))
    turning = sizes > 0
    if turning.sum() == 0 or len(set(sizes[turning].tolist())) != 1 or int(sizes.max()) > 2:
        raise UnsupportedModelError(
            f"The frequencies of {name} repeat in an unknown layout. 2D RoPE cannot be applied; "
            "use --no_patch_rope (patch_rope=False)."
        )
    angle_at_1 = torch.atan2(columns[:, len(_PROBE_POSITIONS) + 1], columns[:, 1])
    fastest_first = [g for g in torch.argsort(angle_at_1, descending=True).tolist() if turning[g]]
    rank = torch.full((len(columns),), -1, dtype=torch.long)
    rank[fastest_first] = torch.arange(len(fastest_first))
    pair_of_entry = torch.where(still, -1, rank[group])
    return pair_of_entry.to(device), len(fastest_first)


def choose_pairs(num_pairs: int, ratio: float, pairs: PairChoice = "low") -> list[int]:
    """The round(ratio × F) of F pairs, ordered from fastest to slowest, that turn by branch position.

    `low` takes the slowest ones, `interleaved` spreads them evenly.

    Raises:
        SettingsError: ratio outside 0…1, or an unknown choice.
    """
    if not 0 <= ratio <= 1:
        raise SettingsError(f"--rope_2d_ratio is {ratio}; it must be from 0 (no pair) to 1 (all pairs).")
    count = round(ratio * num_pairs)
    if pairs == "low":
        return list(range(num_pairs - count, num_pairs))
    if pairs == "interleaved":
        return [(2 * i + 1) * num_pairs // (2 * count) for i in range(count)]
    raise SettingsError(f"--rope_2d_pairs is {pairs!r}; it must be one of {', '.join(PAIR_CHOICES)}.")


def auto_pair_indices(model: nn.Module, ratio: float = 0.5, pairs: PairChoice = "low") -> list[int]:
    """Choose the branch pairs of a model (see `choose_pairs`), counting its frequency pairs.

    Raises:
        UnsupportedModelError: the model has no rotary embedding, or one of an unknown form.
        SettingsError: ratio outside 0…1, or an unknown choice.
    """
    rotary = next(iter(_rotary_modules(model)))[2]
    counts = {probe_pairs(rotary, layer_type)[1] for layer_type in _layer_types(model, rotary)}
    return choose_pairs(min(counts), ratio, pairs)


def patch_model_with_interleaved_2d_rope(
    model: nn.Module, pair_indices: Sequence[int], mode: RopeMode = "split"
) -> nn.Module:
    """Wrap the model's rotary embeddings in `Interleaved2DRoPE`, in place; patching again replaces the earlier patch.

    Afterwards `position_ids` may be [B, S, 2] = (branch position, time position); [B, S] means branch position 0.

    Args:
        pair_indices: the pairs that turn by branch position, 0 being the fastest.
    Raises:
        UnsupportedModelError: the model has no rotary embedding, or one of an unknown form.
        SettingsError: an index outside the model's pairs, or an unknown mode.
    """
    if mode not in ROPE_MODES:
        raise SettingsError(f"--rope_2d_mode is {mode!r}; it must be one of {', '.join(ROPE_MODES)}.")
    wrapped = [
        (parent, attribute, Interleaved2DRoPE(rotary, pair_indices, mode, _layer_types(model, rotary)))
        for parent, attribute, rotary in _rotary_modules(model)
    ]
    for parent, attribute, rope in wrapped:
        setattr(parent, attribute, rope)
    return model


def find_rope_patch(model: nn.Module) -> Interleaved2DRoPE | None:
    """The model's 2D RoPE, or None when it is not patched."""
    return next((module for module in model.modules() if isinstance(module, Interleaved2DRoPE)), None)


def set_rope_pos2d(model: nn.Module, pos2d: Tensor | None) -> None:
    """Give the next forwards their positions when they cannot be passed as `position_ids` of shape [B, S, 2].

    Stays in force until changed; None clears it. A forward of another length is refused rather than misplaced.

    Args:
        pos2d: LongTensor [B, S, 2] of (branch position, time position), B may be 1 to serve every batch size.
    Raises:
        SettingsError: the model is not patched, or pos2d has another shape.
    """
    ropes = [module for module in model.modules() if isinstance(module, Interleaved2DRoPE)]
    if not ropes:
        raise SettingsError(
            "The model has no 2D RoPE; call patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model))."
        )
    if pos2d is not None and (pos2d.dim() != 3 or pos2d.shape[-1] != 2):
        raise SettingsError(f"pos2d must be [batch, seq, 2], got {list(pos2d.shape)}.")
    for rope in ropes:
        rope.pos2d = pos2d


def _rotary_modules(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, attribute, rotary module) of each rotary embedding of the text decoder, unwrapped if patched."""
    config = getattr(model, "config", None)
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if "mrope_section" in scaling:
        raise UnsupportedModelError(
            "The model's rotary embedding already takes three position axes (mrope, as in Qwen-VL); 2D RoPE cannot be "
            "applied to it. Use --no_patch_rope (patch_rope=False), or the text-only model of the family."
        )
    found = False
    for path, parent in model.named_modules():
        if isinstance(parent, Interleaved2DRoPE) or "vision" in path or "visual" in path or "audio" in path:
            continue
        for attribute, child in parent.named_children():
            rotary = child.rotary if isinstance(child, Interleaved2DRoPE) else child
            if "Rotary" in type(rotary).__name__ and "vision" not in type(rotary).__name__.lower():
                found = True
                yield parent, attribute, rotary
    if not found:
        raise UnsupportedModelError(_NO_ROPE)


def _layer_types(model: nn.Module, rotary: nn.Module) -> list[str | None]:
    """The values of the rotary module's `layer_type` argument, or [None] if it has none."""
    if "layer_type" not in inspect.signature(inspect.unwrap(type(rotary).forward)).parameters:
        return [None]
    layer_types = getattr(getattr(rotary, "config", None) or model.config, "layer_types", None)
    return sorted(set(layer_types)) if layer_types else [None]
