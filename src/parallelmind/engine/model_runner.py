"""Runs a Hugging Face model on what the scheduler chose, and proves at load time that it may."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from parallelmind.columnar import find_rope_patch, pos2d_ids
from parallelmind.engine.attention import engine_attention
from parallelmind.engine.dense_cache import DenseCache
from parallelmind.engine.forward_context import BranchSpan, ForwardContext, GroupSpan, MainSpan
from parallelmind.engine.kv_cache import BranchSlots, MainCache, kv_bytes
from parallelmind.engine.scheduler import Schedule
from parallelmind.engine.sequence import BranchSequence
from parallelmind.errors import UnsupportedModelError
from parallelmind.models.adapters import AdapterSet
from parallelmind.models.architecture import model_configs, refuse_other_layers, rounding_tolerance

_LOGGER = logging.getLogger(__name__)
_PROBE_MAIN, _PROBE_BRANCH = 5, 4


@dataclass
class ModelOutput:
    """The logits of a forward. Only keys and values have changed so far, so the schedule may be run again."""

    mains: dict[int, Tensor] = field(default_factory=dict)
    """Logits [V] behind each main that is complete now, by the main's identity."""
    branches: dict[BranchSequence, Tensor] = field(default_factory=dict)
    """Logits [V] behind each branch all of whose tokens have been run."""
    failed: dict[BranchSequence, Exception] = field(default_factory=dict)
    failed_mains: dict[int, Exception] = field(default_factory=dict)


class ModelRunner:
    """A model, its branch stride, and which of the two attention paths it takes.

    Raises:
        UnsupportedModelError: other layers than attention, or logits that differ from the model's own forward.
    """

    def __init__(self, model: Any, *, branch_stride: int, adapters: AdapterSet | None = None):
        self.model: Any = model
        self.branch_stride = branch_stride
        self.adapters: AdapterSet | None = None
        rope = find_rope_patch(model)
        self.patched = rope is not None
        self._plain_branch_is_time = rope is not None and rope.mode == "split"
        self.config = model.config.get_text_config(decoder=True)
        refuse_other_layers(model, "run parallel branches")
        self._configs = model_configs(model)
        self.vocab_size = int(self.config.vocab_size)
        self.max_model_len = int(getattr(self.config, "max_position_embeddings", None) or 2**31)
        embeddings = model.get_input_embeddings()
        self.num_embeddings = int(embeddings.weight.shape[0])
        self.device = embeddings.weight.device
        self.dense = False
        self.bytes_per_token = self._check_parity()
        self.adapters = adapters

    def execute(self, schedule: Schedule) -> ModelOutput:
        """Run all tokens of a schedule."""
        context = schedule.context
        output = ModelOutput()
        if context.num_tokens:
            self._execute(schedule, context, output)
        return output

    def execute_apart(self, schedule: Schedule) -> ModelOutput:
        """Run each main and each request by itself after they failed together, and mark those that fail alone.

        The results are the same, since no request depends on its company.
        """
        whole = schedule.context
        output = ModelOutput()

        def execute(mains: Sequence[MainSpan], groups: Sequence[GroupSpan]) -> None:
            self._execute(schedule, ForwardContext(slots=whole.slots, main_spans=mains, groups=groups), output)

        for span in whole.main_spans:
            try:
                execute([span], [])
            except Exception as error:
                _LOGGER.exception("the model failed on a main of %d tokens", len(span.main))
                output.failed_mains[id(span.main)] = error
        for group in whole.groups:
            if group.main is not None and id(group.main) in output.failed_mains:
                continue
            try:
                execute([], [group])
            except Exception as error:
                branches = _branches_of(schedule, group)
                _LOGGER.exception("the model failed on %d branches of a request", len(branches))
                output.failed |= dict.fromkeys(branches, error)
        return output

    def _execute(self, schedule: Schedule, context: ForwardContext, output: ModelOutput) -> None:
        """Run a plan that is the schedule's or a part of it, and add what it gives to the output."""
        complete: list[MainCache] = []
        sampled: list[BranchSequence] = []
        logits_at: list[int] = []
        for span, (_, end) in zip(context.main_spans, context.main_ranges, strict=True):
            if span.past + len(span.token_ids) == len(span.main):
                complete.append(span.main)
                logits_at.append(end - 1)
        for group, (start, _) in zip(context.groups, context.group_ranges, strict=True):
            place = start
            for branch, fed in zip(_branches_of(schedule, group), group.branches, strict=True):
                place += len(fed.token_ids)
                if len(fed.token_ids) == len(branch.pending) and not branch.finished:
                    sampled.append(branch)
                    logits_at.append(place - 1)
        # A plan without anything to sample still needs one row: some models take an empty selection for "all".
        logits = self.forward(context, torch.tensor(logits_at or [0]))
        for index, main in enumerate(complete):
            output.mains[id(main)] = logits[index].clone()
        for index, branch in enumerate(sampled, start=len(complete)):
            output.branches[branch] = logits[index]

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
        with _in_eval_mode(self.model), self._adapters_in(context, logits_at):
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
        generator = torch.Generator().manual_seed(0)
        count = _PROBE_MAIN + _PROBE_BRANCH
        ids = torch.randint(0, self.vocab_size, (1, count), generator=generator)
        time = torch.arange(count)
        branch = (time >= _PROBE_MAIN) * self.branch_stride
        positions = torch.stack((branch, time), dim=-1) if self.patched else time
        with _in_eval_mode(self.model):
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
            if difference <= rounding_tolerance(self.model):
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
            # With a second branch in front, anything that depends on the place in the row or leaks along it shows.
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


def _branches_of(schedule: Schedule, group: GroupSpan) -> list[BranchSequence]:
    return [schedule.branch_in[span.slot] for span in group.branches]


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Run in evaluation mode, without dropout, and put the model back into the mode it was in."""
    training = [module for module in model.modules() if module.training] if model.training else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _plan(slots: BranchSlots, mains: list[MainSpan], groups: list[GroupSpan]) -> ForwardContext:
    return ForwardContext(slots=slots, main_spans=mains, groups=groups)
