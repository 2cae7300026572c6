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
from parallelmind.engine.dense_cache import DenseCache, dense_mask
from parallelmind.engine.pages import PageStore
from parallelmind.engine.readings import Span
from parallelmind.engine.scheduler import Schedule
from parallelmind.engine.sequence import BranchSequence, RequestGroup
from parallelmind.engine.step import Step
from parallelmind.engine.tree import PageTree, Place, Run
from parallelmind.errors import UnsupportedModelError
from parallelmind.models.adapters import AdapterSet
from parallelmind.models.architecture import model_configs, refuse_other_layers, rounding_tolerance

_LOGGER = logging.getLogger(__name__)
_PROBE_MAIN, _PROBE_BRANCH, _PROBE_PAGE = 5, 4, 2


@dataclass
class ModelOutput:
    """The logits of a forward. Only keys and values have changed so far, so the schedule may be run again."""

    mains: dict[Run, Tensor] = field(default_factory=dict)
    """Logits [V] behind each main that is complete now."""
    branches: dict[BranchSequence, Tensor] = field(default_factory=dict)
    """Logits [V] behind each branch all of whose tokens have been run."""
    failed: dict[BranchSequence, Exception] = field(default_factory=dict)
    failed_mains: dict[Run, Exception] = field(default_factory=dict)


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

    def execute(self, store: PageStore, schedule: Schedule) -> ModelOutput:
        """Run all tokens of a schedule."""
        output = ModelOutput()
        if schedule.spans:
            self._execute(store, schedule, schedule.spans, output)
        return output

    def execute_apart(self, store: PageStore, schedule: Schedule) -> ModelOutput:
        """Run each main and each request by itself after they failed together, and mark those that fail alone.

        The results are the same, since no request depends on its company.
        """
        output = ModelOutput()
        groups: dict[RequestGroup, list[Span]] = {}
        for span in schedule.spans:
            if span.run in schedule.branches:
                groups.setdefault(schedule.branches[span.run].group, []).append(span)
                continue
            try:
                self._execute(store, schedule, [span], output)
            except Exception as error:
                _LOGGER.exception("the model failed on a main of %d tokens", len(span.run))
                output.failed_mains[span.run] = error
        for group, spans in groups.items():
            if group.main is not None and group.main in output.failed_mains:
                continue
            try:
                self._execute(store, schedule, spans, output)
            except Exception as error:
                _LOGGER.exception("the model failed on %d branches of a request", len(spans))
                output.failed |= {schedule.branches[span.run]: error for span in spans}
        return output

    def _execute(self, store: PageStore, schedule: Schedule, spans: Sequence[Span], output: ModelOutput) -> None:
        """Run spans that are the schedule's or a part of them, and add what they give to the output."""
        step = Step(store, spans)
        wanted = [
            (span.run, end - 1)
            for span, (_, end) in zip(step.spans, step.ranges, strict=True)
            if span.end == len(span.run)
            and (span.run not in schedule.branches or not schedule.branches[span.run].finished)
        ]
        # A step without anything to sample still needs one row: some models take an empty selection for "all".
        logits = self.forward(step, torch.tensor([place for _, place in wanted] or [0]))
        for (run, _), row in zip(wanted, logits, strict=False):
            if run in schedule.branches:
                output.branches[schedule.branches[run]] = row
            else:
                output.mains[run] = row.clone()

    @torch.inference_mode()
    def forward(self, step: Step, logits_at: Tensor) -> Tensor:
        """Run the tokens of a step; returns the logits [len(logits_at), V] in float32 of the given flat tokens."""
        step.store.settle()
        arguments: dict[str, Any] = {
            "input_ids": torch.tensor([step.input_ids()], device=self.device),
            "position_ids": self._position_ids(step).to(self.device),
            "use_cache": False,
            "return_dict": True,
            "logits_to_keep": logits_at.to(self.device),
        }
        with _in_eval_mode(self.model), self._adapters_in(step, logits_at):
            if self.dense:
                arguments |= {
                    "past_key_values": DenseCache(step),
                    "attention_mask": dense_mask(step, self.model.dtype).to(self.device),
                    "use_cache": True,
                }
                output = self.model(**arguments)
            else:
                with engine_attention(self._configs, step):
                    output = self.model(**arguments)
        logits: Tensor = output.logits[0]
        return logits.float()

    def _position_ids(self, step: Step) -> Tensor:
        time = step.time_ids
        if not self.patched:
            return time[None]
        positions = pos2d_ids(step.branch_ids, time, self.branch_stride)
        if self.adapters is not None:
            branch = step.branch_ids
            for adapter, start, end in step.adapter_ranges():
                if self.adapters.settings(adapter) is None:
                    # The branch position at which a token's 2D rotation is the model's own (columnar/rope.py).
                    positions[start:end, 0] = time[start:end] if self._plain_branch_is_time else 0
                else:
                    positions[start:end, 0] = branch[start:end] * self.stride_of(adapter)
        return positions[None]

    def branch_position(self, adapter: str, branch_id: int) -> int:
        """Branch position of a branch; 0 where its tokens stand as those of main do."""
        if not self.patched or (self.adapters is not None and self.adapters.settings(adapter) is None):
            return 0
        return branch_id * self.stride_of(adapter)

    def stride_of(self, adapter: str) -> int:
        """Branch position = branch id × this, with the adapter."""
        settings = None if self.adapters is None else self.adapters.settings(adapter)
        return self.branch_stride if settings is None else settings.branch_stride

    def _adapters_in(self, step: Step, logits_at: Tensor) -> AbstractContextManager[None]:
        if self.adapters is None:
            return nullcontext()
        return self.adapters.routed(step.adapter_ranges(), logits_at)

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
        tree = PageTree(PageStore(_PROBE_PAGE, 2**31), 0)
        main = tree.open(None, Place(), ids[:_PROBE_MAIN])
        tree.reserve(main, _PROBE_MAIN)
        span = Span(run=main, past=0, token_ids=main.tokens)
        rows = [self.forward(Step(tree.store, [span]), torch.tensor([_PROBE_MAIN - 1]))]
        layers = tree.store.num_layers
        if layers == 0:
            raise _AttentionNotReachedError
        if layers != self.config.num_hidden_layers:
            raise ValueError(f"{layers} of {self.config.num_hidden_layers} layers keep keys and values")
        tree.note_computed(main, _PROBE_MAIN)
        # With a second branch in front, anything that depends on the place in the row or leaks along it shows.
        tokens = ids[_PROBE_MAIN:]
        texts = ([*tokens[1::-1], *tokens[2:]], tokens)
        runs = [
            tree.open(main, Place(branch_position=number, first_time=_PROBE_MAIN), text, is_private=True)
            for number, text in zip((2, 1), texts, strict=True)
        ]
        for past, end in ((0, 2), *((i, i + 1) for i in range(2, _PROBE_BRANCH))):
            spans = []
            for number, run in zip((2, 1), runs, strict=True):
                tree.reserve(run, end)
                spans.append(Span(run=run, past=past, token_ids=run.tokens[past:end], branch_id=number))
            step = Step(tree.store, spans)
            rows.append(self.forward(step, torch.arange(*step.ranges[step.spans.index(spans[1])])))
            for run in runs:
                tree.note_computed(run, end - past)
        return torch.cat(rows), tree.store.bytes_per_token()


def end_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a text, by the model's generation config, its config or its tokenizer."""
    found: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        found.update([ids] if isinstance(ids, int) else ids or ())
    return frozenset(found)


class _AttentionNotReachedError(Exception):
    """The model never called the registered attention function."""


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
