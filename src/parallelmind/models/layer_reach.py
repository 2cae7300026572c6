"""How far back each attention layer of a model sees, as transformers' own mask functions say.

transformers builds the mask of a layer by a function of query and key index (`masking_utils`), which depends on the
kind of the layer and on the config. `read_reaches` runs the model once under an attention that takes note of the
function that each layer is given, and asks the functions what they let a token see. A keyword argument would not do:
some families pass their window in the mask only, and a window in the config does not say which layers use it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

from parallelmind.columnar import FULL, Reach
from parallelmind.errors import UnsupportedModelError
from parallelmind.models.architecture import attention_switched, model_configs

MaskFunction = Callable[..., Any]
"""Whether a query sees a key, from the indices of row, head, query and key; see transformers' `masking_utils`."""

_READING = "parallelmind_reading"
_TOKENS = 8
_FARTHEST = 2**30
_SAMPLES = 2048
_SHORTEST = 4
_THRESHOLD = re.compile("window|chunk")

_reaches: WeakKeyDictionary[nn.Module, Reach] = WeakKeyDictionary()
"""By attention module; `read_reaches` fills it."""
_functions: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""By mask: the function that it was built from."""
_reading: ContextVar[_Reading] = ContextVar("parallelmind_reading")


class AttentionNotReachedError(Exception):
    """The model never calls the attention function that is registered in transformers."""


def reach_of(module: nn.Module) -> Reach:
    """How far back an attention module sees, after `read_reaches` of its model."""
    return _reaches[module]


def reaches_of(model: Any) -> set[Reach]:
    """How far back the attention modules of a model see, after `read_reaches` of it."""
    return {_reaches[module] for module in model.modules() if module in _reaches}


def read_reaches(model: Any) -> set[Reach]:
    """Find out how far back each attention module of a model sees; returns what there is.

    Raises:
        UnsupportedModelError: a layer makes a mask of its own, or sees neither everything, a window nor a chunk.
        AttentionNotReachedError: the model has attention that cannot be exchanged.
    """
    configs = model_configs(model)
    found = _Reading(str(model.config._attn_implementation_internal))
    token = _reading.set(found)
    device = model.get_input_embeddings().weight.device
    ids = torch.arange(_TOKENS, device=device)[None] % 2
    try:
        with torch.no_grad(), attention_switched(configs, _READING):
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    finally:
        _reading.reset(token)
    if not found.functions:
        raise AttentionNotReachedError
    length = int(getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or _FARTHEST)
    known: dict[MaskFunction, Reach] = {}
    for module, function in found.functions.items():
        if function is None:
            _reaches[module] = FULL
            continue
        if function not in known:
            where = f"{type(module).__name__} of {type(model).__name__}"
            known[function] = _reach(function, min(length, _FARTHEST), where, device)
        _reaches[module] = known[function]
    return {_reaches[module] for module in found.functions}


@contextmanager
def short_reaches(model: Any, reaches: set[Reach] | None) -> Iterator[set[Reach]]:
    """Make windows and chunks so short that a few tokens pass them, for a trial; yields those that there are now.

    Args:
        reaches: what there is; None: unknown, so that every number that may be one is shortened.
    """
    wanted = None if reaches is None else {reach.window or reach.chunk for reach in reaches if not reach.is_full}
    holders = [*model_configs(model), *(model.modules() if reaches is None else ())]
    former: list[tuple[Any, str, int]] = []
    for holder in holders:
        for name, value in vars(holder).items():
            is_number = isinstance(value, int) and not isinstance(value, bool) and value > _SHORTEST
            if is_number and _THRESHOLD.search(name) and (wanted is None or value in wanted):
                former.append((holder, name, value))
    values = sorted({value for _, _, value in former})
    try:
        for holder, name, value in former:
            setattr(holder, name, _SHORTEST + values.index(value))
        yield set() if reaches is None else read_reaches(model) if former else reaches
    finally:
        for holder, name, value in former:
            setattr(holder, name, value)
        if former and reaches is not None:
            read_reaches(model)


class _Reading:
    """What the layers are given in one forward."""

    def __init__(self, implementation: str):
        self.make_mask: MaskFunction = ALL_MASK_ATTENTION_FUNCTIONS["eager"] if implementation == "eager" else sdpa_mask
        self.functions: dict[nn.Module, MaskFunction | None] = {}


def _mask_forward(*arguments: Any, **settings: Any) -> Any:
    """The mask that the model would be given, noted with its function; called by transformers."""
    settings["allow_is_causal_skip"] = False
    mask = _reading.get().make_mask(*arguments, **settings)
    if isinstance(mask, Tensor):  # there is none where every token sees every other
        _functions[mask] = settings["mask_function"]
    return mask


def _attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **settings: Any
) -> tuple[Tensor, None]:
    """Takes note of the mask; called by transformers. Nobody looks at what it returns: [B, S, H, E] zeros."""
    function = None
    if isinstance(attention_mask, Tensor):
        function = _functions.get(attention_mask)
        if function is None and not _is_causal(attention_mask):
            raise UnsupportedModelError(
                f"{type(module).__name__} makes a mask of its own from the text or from the places of its keys, which "
                "cannot be kept apart for branches. Use a model whose layers are all full or sliding attention, or "
                "run this model with its own generate()."
            )
    elif settings.get("is_causal") is False or not getattr(module, "is_causal", True):
        raise UnsupportedModelError(
            f"{type(module).__name__} sees tokens that come later, so that no answer could be written after it. Use a "
            "decoder-only model."
        )
    _reading.get().functions[module] = function
    return query.new_zeros(*query.shape[:1], query.shape[2], query.shape[1], value.shape[-1]), None


AttentionInterface.register(_READING, _attention_forward)
AttentionMaskInterface.register(_READING, _mask_forward)


def _is_causal(mask: Tensor) -> bool:
    """Whether a mask, boolean or additive, lets every token see all before it."""
    seen = mask if mask.dtype == torch.bool else mask == 0
    if seen.shape[-2:] != (_TOKENS, _TOKENS) or not bool((seen == seen.new_ones(_TOKENS, _TOKENS).tril()).all()):
        return False
    return mask.dtype == torch.bool or bool((mask[~seen] <= -1e4).all())


def _reach(function: MaskFunction, length: int, where: str, device: torch.device) -> Reach:
    """What a mask function, which may hold tensors on a device, says over so many tokens."""

    def sees(query: Any, key: Any) -> Tensor:
        q, k = torch.broadcast_tensors(torch.as_tensor(query), torch.as_tensor(key))
        zero = torch.zeros((), dtype=torch.long, device=device)
        return torch.as_tensor(function(zero, zero, q.to(device), k.to(device))).cpu().expand(q.shape)

    def earliest(query: int) -> int:
        low, high = 0, query
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if bool(sees(query, middle)) else (middle + 1, high)
        return low

    try:
        first = earliest(length - 1)
        if first == 0:
            candidates = [FULL]
        else:
            candidates = [Reach(window=length - first), Reach(chunk=max(1, first - earliest(first - 1)))]
        generator = torch.Generator().manual_seed(0)
        for reach in candidates:
            far = torch.randint(0, length, (_SAMPLES,), generator=generator)
            edges = [e + d for e in (0, reach.window or reach.chunk or 0, first, length - 1) for d in range(-2, 3)]
            near = torch.tensor([min(max(edge, 0), length - 1) for edge in edges])
            query = torch.cat((far, near))[:, None]
            back = torch.randint(0, min(length, 2 * (length - first)), (1, 64), generator=generator)
            begin = reach.earliest(query)
            key = torch.cat((query - back, begin, begin - 1, begin + 1, query + 1, query), dim=1).clamp(0, length - 1)
            if torch.equal(sees(query, key), (key <= query) & (key >= begin)):
                return reach
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"{where}: its mask cannot be asked what a token sees ({type(error).__name__}: {error}). Use a model whose "
            "layers are all full or sliding attention."
        ) from error
    raise UnsupportedModelError(
        f"{where} lets a token see neither all before it, nor a window, nor a chunk, so its branches cannot share a "
        "main. Use a model whose layers are all full or sliding attention."
    )
