"""Runs a Hugging Face model on the plan of one forward, and proves at load time that it may."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from parallelmind.columnar import find_rope_patch, pos2d_ids
from parallelmind.engine.attention import engine_attention
from parallelmind.engine.dense_cache import DenseCache
from parallelmind.engine.forward_context import BranchSpan, ForwardContext, GroupSpan, MainSpan
from parallelmind.engine.kv_cache import BranchSlots, MainCache, kv_bytes
from parallelmind.errors import UnsupportedModelError
from parallelmind.models.adapters import AdapterSet
from parallelmind.models.attention_switch import model_configs

_CACHEABLE_LAYERS = {"full_attention", "sliding_attention", "attention", "dense", "sparse", "moe"}
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_HALF_TOLERANCE = 0.1
_PROBE_MAIN, _PROBE_BRANCH = 5, 4


class ModelRunner:
    """A model, its branch stride, and which of the two attention paths it takes.

    Raises:
        UnsupportedModelError: recurrent layers, or logits that differ from the model's own forward.
    """

    def __init__(self, model: Any, *, branch_stride: int, adapters: AdapterSet | None = None):
        self.model: Any = model
        self.branch_stride = branch_stride
        self.adapters: AdapterSet | None = None
        rope = find_rope_patch(model)
        self.patched = rope is not None
        self._plain_branch_is_time = rope is not None and rope.mode == "split"
        self.config = model.config.get_text_config(decoder=True)
        _refuse_recurrent(model, self.config)
        self._configs = model_configs(model)
        self.vocab_size = int(self.config.vocab_size)
        self.max_model_len = int(getattr(self.config, "max_position_embeddings", None) or 2**31)
        embeddings = model.get_input_embeddings()
        self.num_embeddings = int(embeddings.weight.shape[0])
        self.device = embeddings.weight.device
        self.dense = False
        self.bytes_per_token = self._check_parity()
        self.adapters = adapters

    @torch.inference_mode()
    def forward(self, context: ForwardContext, logits_at: Tensor) -> Tensor:
        """Run the tokens of a plan; returns the logits [len(logits_at), V] in float32 of the given flat tokens."""
        arguments: dict[str, Any] = {
            "input_ids": torch.tensor([context.input_ids()], device=self.device),
            "position_ids": self._position_ids(context).to(self.device),
            "use_cache": False,
            "return_dict": True,
            "logits_to_keep": logits_at.to(self.device),
        }
        with self._adapters_in(context, logits_at):
            if self.dense:
                cache = DenseCache(context)
                arguments |= {
                    "past_key_values": cache,
                    "attention_mask": cache.mask(self.model.dtype, self.device),
                    "use_cache": True,
                }
                output = self.model(**arguments)
            else:
                with engine_attention(self._configs, context):
                    output = self.model(**arguments)
        logits: Tensor = output.logits[0]
        return logits.float()

    def _position_ids(self, context: ForwardContext) -> Tensor:
        time = context.time_ids()
        if not self.patched:
            return time[None]
        positions = pos2d_ids(context.branch_ids(), time, self.branch_stride)
        if self.adapters is not None:
            branch = context.branch_ids()
            for adapter, start, end in context.adapter_ranges():
                if self.adapters.settings(adapter) is None:
                    # The branch position at which a token's 2D rotation is the model's own (columnar/rope.py).
                    positions[start:end, 0] = time[start:end] if self._plain_branch_is_time else 0
                else:
                    positions[start:end, 0] = branch[start:end] * self.stride_of(adapter)
        return positions[None]

    def stride_of(self, adapter: str) -> int:
        """Branch position = branch id × this, with the adapter."""
        settings = None if self.adapters is None else self.adapters.settings(adapter)
        return self.branch_stride if settings is None else settings.branch_stride

    def _adapters_in(self, context: ForwardContext, logits_at: Tensor) -> AbstractContextManager[None]:
        if self.adapters is None:
            return nullcontext()
        return self.adapters.routed(context.adapter_ranges(), logits_at)

    @torch.inference_mode()
    def _check_parity(self) -> int:
        """Compare a cached decode of main and one branch with the model's own forward; returns KV bytes per token."""
        self.model.eval()
        generator = torch.Generator().manual_seed(0)
        count = _PROBE_MAIN + _PROBE_BRANCH
        ids = torch.randint(0, self.vocab_size, (1, count), generator=generator)
        time = torch.arange(count)
        branch = (time >= _PROBE_MAIN) * self.branch_stride
        positions = torch.stack((branch, time), dim=-1) if self.patched else time
        expected = self.model(
            input_ids=ids.to(self.device),
            position_ids=positions[None].to(self.device),
            attention_mask=torch.ones_like(ids).to(self.device),
            use_cache=False,
        ).logits[0, _PROBE_MAIN - 1 :]
        failures = []
        for dense in (False, True):
            self.dense = dense
            try:
                actual, bytes_per_token = self._probe(ids[0].tolist())
            except _AttentionNotReachedError:
                continue
            except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
                failures.append(f"{type(error).__name__}: {error}")
                continue
            scale = max(1e-6, float(expected.float().abs().max()))
            difference = float((actual - expected.float()).abs().max()) / scale
            # 8-bit layers round what goes into them, too.
            quantized = getattr(self.model, "is_quantized", False)
            if difference <= (_HALF_TOLERANCE if quantized else _TOLERANCE.get(self.model.dtype, _HALF_TOLERANCE)):
                return bytes_per_token
            failures.append(f"logits differ from the model's own forward by {difference:.2g} of their size")
        name = type(self.model).__name__
        raise UnsupportedModelError(
            f"{name} cannot decode branches over a shared main: {'; '.join(failures) or 'no attention layer found'}. "
            "Use a decoder-only transformer with ordinary attention (for example Qwen, Llama, Mistral, Gemma, Phi), or "
            "run this model with its own generate()."
        )

    def _probe(self, ids: list[int]) -> tuple[Tensor, int]:
        main, slots = MainCache(tuple(ids[:_PROBE_MAIN])), BranchSlots()
        slots.reserve(2, _PROBE_BRANCH)
        span = MainSpan(main=main, past=0, token_ids=ids[:_PROBE_MAIN])
        rows = [self.forward(_plan(slots, [span], []), torch.tensor([_PROBE_MAIN - 1]))]
        layers = len(main.keys)
        if layers == 0:
            raise _AttentionNotReachedError
        if layers != self.config.num_hidden_layers:
            raise ValueError(f"{layers} of {self.config.num_hidden_layers} layers keep keys and values")
        main.num_cached_tokens = _PROBE_MAIN
        for past, end in ((0, 2), *((i, i + 1) for i in range(2, _PROBE_BRANCH))):
            tokens = ids[_PROBE_MAIN + past : _PROBE_MAIN + end]
            # A second branch in front: what depends on the place in the row, or leaks along it, shows.
            branches = [
                BranchSpan(slot=slot, past=past, token_ids=chunk, branch_id=2 - slot, first_time=_PROBE_MAIN)
                for slot, chunk in ((0, tokens[::-1]), (1, tokens))
            ]
            context = _plan(slots, [], [GroupSpan(main=main, branches=branches)])
            rows.append(self.forward(context, torch.arange(end - past, 2 * (end - past))))
        return torch.cat(rows), kv_bytes(main)


def end_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a text, by the model's generation config, its config or its tokenizer."""
    found: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        found.update([ids] if isinstance(ids, int) else ids or ())
    return frozenset(found)


class _AttentionNotReachedError(Exception):
    """The model never called the registered attention function."""


def _plan(slots: BranchSlots, mains: list[MainSpan], groups: list[GroupSpan]) -> ForwardContext:
    return ForwardContext(slots=slots, main_spans=mains, groups=groups)


def _refuse_recurrent(model: nn.Module, config: Any) -> None:
    kinds = set(getattr(config, "layer_types", None) or ()) - _CACHEABLE_LAYERS
    if getattr(model, "_is_stateful", False):
        kinds.add("recurrent state")
    if kinds:
        raise UnsupportedModelError(
            f"{type(model).__name__} has layers of kind {', '.join(sorted(kinds))}. Their state would leak "
            "from branch to branch, so it cannot run parallel branches. Use a model whose layers are all full or "
            "sliding attention."
        )
