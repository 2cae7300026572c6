"""Runs a Hugging Face model on what the scheduler chose, and proves at load time that it may."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from parallelmind.columnar import FULL, find_rope_patch, ids_in_range, number_in_range, pos2d_ids
from parallelmind.engine.attention import engine_attention, rounds_alike
from parallelmind.engine.cuda import graphs
from parallelmind.engine.cuda.attention import has_kernels
from parallelmind.engine.cuda.graphs import ForwardGraphs
from parallelmind.engine.cuda.inputs import KernelInputs, StepInputs
from parallelmind.engine.dense_cache import DenseCache, dense_mask
from parallelmind.engine.pages import PageStore
from parallelmind.engine.parity import check_parity
from parallelmind.engine.readings import Span
from parallelmind.engine.request import BASE_MODEL
from parallelmind.engine.scheduler import Schedule
from parallelmind.engine.sequence import BranchSequence, RequestGroup
from parallelmind.engine.step import KnownPlans, Step
from parallelmind.engine.texts import Run
from parallelmind.errors import SettingsError
from parallelmind.models.adapters import AdapterSet
from parallelmind.models.architecture import in_eval_mode, model_configs, refuse_other_layers
from parallelmind.models.cpu.elementwise import even_rows
from parallelmind.models.cpu.even_products import even_products, has_loose_products
from parallelmind.models.cpu.packed_linear import PackedLinear
from parallelmind.models.layer_reach import reaches_of
from parallelmind.models.rope_lengths import RopeLengths, exact_length

_LOGGER = logging.getLogger(__name__)


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
    """A model, the positions of its branches, and which of the two attention paths it takes.

    Raises:
        UnsupportedModelError: other layers than attention, or logits that differ from the model's own forward.
    """

    def __init__(
        self,
        model: Any,
        *,
        branch_stride: int,
        branch_range: int | None = None,
        adapters: AdapterSet | None = None,
        deterministic: bool | None = None,
    ):
        self.model: Any = model
        self.branch_stride = branch_stride
        self.branch_range = branch_range
        self.adapters: AdapterSet | None = None
        rope = find_rope_patch(model)
        self.patched = rope is not None
        self._plain_branch_is_time = rope is not None and rope.mode == "split"
        self.config = model.config.get_text_config(decoder=True)
        refuse_other_layers(model, "run parallel branches")
        self._configs = model_configs(model)
        self.vocab_size = int(self.config.vocab_size)
        self.exact_length = exact_length(model)
        """No forward and no text may be longer; None: any length is right."""
        self.max_model_len = int(getattr(self.config, "max_position_embeddings", None) or 2**31)
        if self.exact_length is not None:
            self.max_model_len = min(self.max_model_len, self.exact_length)
        self.rope_lengths = RopeLengths(model)
        embeddings = model.get_input_embeddings()
        self.num_embeddings = int(embeddings.weight.shape[0])
        self._width = int(embeddings.weight.shape[1])
        self.device = embeddings.weight.device
        self.dense = False
        self.bytes_per_token = 0
        """Of keys and values."""
        self._known_plans = KnownPlans()
        self._has_kernels = has_kernels(self.device)
        self._graphs: ForwardGraphs | None = None
        self.deterministic = False
        self._has_loose_products = False
        check_parity(self)
        self.deterministic = self._is_deterministic(deterministic)
        """Whether a row of a forward has the same bits with any rows beside it."""
        self._has_loose_products = self.deterministic and has_loose_products(model)
        self.reaches = {FULL} if self.dense else reaches_of(model)
        """How far back its layers see."""
        self.adapters = adapters
        if self._has_kernels and not self.dense and {one.device for one in model.parameters()} == {self.device}:
            self._graphs = ForwardGraphs(model, self.device, self._recordable)

    def _is_deterministic(self, wanted: bool | None) -> bool:
        """Whether rows keep their bits in any company, as far as it was asked for and can be.

        Raises:
            SettingsError: it was asked for and cannot be.
        """
        if wanted is False:
            return False
        problem = ""
        if self.device.type != "cpu":
            problem = f"matrix products on {self.device.type} sum by the number of rows; use --device cpu"
        elif self.dense:
            problem = f"{type(self.model).__name__} runs all branches by its own attention; use a model that does not"
        elif any(isinstance(one, PackedLinear) and not one.deterministic for one in self.model.modules()):
            problem = "its layers were packed without it; call optimize_for_cpu(model, deterministic=True)"
        elif not rounds_alike(self.model.dtype, torch.get_num_threads()):
            problem = "this processor's attention kernel sums by the number of rows; use another machine"
        if wanted and problem:
            raise SettingsError(f"--deterministic cannot be kept: {problem}, or leave the flag out.")
        return not problem

    def execute(self, store: PageStore, schedule: Schedule) -> ModelOutput:
        """Run all tokens of a schedule."""
        output = ModelOutput()
        for is_long in (False, True):
            spans = [span for span in schedule.spans if span.run.place.is_long == is_long]
            if spans:
                self._execute(store, schedule, spans, output)
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
        step = Step(store, spans, self._known_plans)
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
        """Run the tokens of a step, all of long texts or none.

        Returns:
            The logits [len(logits_at), V] of the given flat tokens, in float32.
        """
        step.store.settle()
        if self._graphs is not None and step.num_tokens <= graphs.MOST_ROWS:
            recorded = self._forward_by_graph(self._graphs, step, logits_at)
            if recorded is not None:
                return recorded
        threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        idle = 0 if self.dense else even_rows(step.num_tokens, self._width, threads) - step.num_tokens
        ids, positions = step.input_ids(), self._position_ids(step)
        ids_1R = torch.tensor([ids + ids[-1:] * idle], device=self.device)
        positions = torch.cat((positions, positions[:, -1:].repeat_interleave(idle, 1)), 1).to(self.device)
        inputs = StepInputs(step, step.num_tokens + idle) if self._has_kernels else None
        logits = self._logits(step, ids_1R, positions, logits_at, inputs)
        if self._graphs is not None and inputs is not None and step.num_tokens <= graphs.MOST_ROWS:
            self._graphs.learn(inputs.kinds)
        return logits

    def _logits(
        self, step: Step, ids_1R: Tensor, positions: Tensor, logits_at: Tensor, inputs: KernelInputs | None
    ) -> Tensor:
        """Logits [len(logits_at), V], in float32, from the rows of a step and idle ones behind them."""
        ranges = [*step.adapter_ranges(), (BASE_MODEL, step.num_tokens, ids_1R.shape[1])]
        settings: dict[str, Any] = {"logits_to_keep": logits_at.to(self.device)}
        if self.dense:
            settings["past_key_values"] = DenseCache(step)
            settings["attention_mask"] = dense_mask(step, self.model.dtype).to(self.device)
        logits = self._run(step, ids_1R, positions, inputs, ranges, logits_at, **settings)
        if len(logits) != len(logits_at):  # some models do not know logits_to_keep
            logits = logits[logits_at.to(logits.device)]
        return logits.float()

    def _run(
        self,
        step: Step,
        ids_1R: Tensor,
        positions: Tensor,
        inputs: KernelInputs | None,
        adapter_ranges: Sequence[tuple[str, int, int]],
        logits_at: Tensor,
        **settings: Any,
    ) -> Tensor:
        """What the model gives, with the attention and the adapters of the step."""
        is_long = step.spans[0].run.place.is_long
        rotated = self.rope_lengths.of_long_texts() if is_long else nullcontext()
        attending = nullcontext() if self.dense else engine_attention(self._configs, step, inputs)
        routed = nullcontext() if self.adapters is None else self.adapters.routed(adapter_ranges, logits_at)
        even = even_products(wanted=self._has_loose_products)
        with in_eval_mode(self.model), routed, rotated, attending, even:
            output = self.model(
                input_ids=ids_1R, position_ids=positions, use_cache=self.dense, return_dict=True, **settings
            )
        logits: Tensor = output.logits[0]
        return logits

    def _forward_by_graph(self, recorder: ForwardGraphs, step: Step, logits_at: Tensor) -> Tensor | None:
        """The same by a recorded forward, where there is one or can be."""
        places = {(span.run.place.adapter, span.run.place.is_long, span.run.place.weights) for span in step.spans}
        if len(places) > 1:
            return None
        rows = graphs.rounded(step.num_tokens)
        positions = self._position_ids(step)
        positions = torch.cat((positions, positions[:, -1:].repeat_interleave(rows - step.num_tokens, 1)), 1)
        return recorder.run(step, rows, positions, logits_at, places.pop())

    def _recordable(self, step: Step, ids_1R: Tensor, positions: Tensor, inputs: KernelInputs) -> Tensor:
        """The logits of all rows, of one adapter: nothing is chosen on the processor while the model runs."""
        rows = ids_1R.shape[1]
        return self._run(
            step, ids_1R, positions, inputs, [(step.spans[0].run.place.adapter, 0, rows)], torch.arange(rows)
        )

    def _position_ids(self, step: Step) -> Tensor:
        return self.positions(step.branch_ids, step.time_ids, step.adapter_ranges())[None]

    def positions(self, branch: Tensor, time: Tensor, adapter_ranges: Sequence[tuple[str, int, int]]) -> Tensor:
        """What the rotary embedding takes for tokens of branch ids and times [T]: [T], or [T, 2] with 2D RoPE."""
        if not self.patched:
            return time
        positions = pos2d_ids(ids_in_range(branch, self.branch_range), time, self.branch_stride)
        if self.adapters is not None:
            for adapter, start, end in adapter_ranges:
                if self.adapters.settings(adapter) is None:
                    # The branch position at which a token's 2D rotation is the model's own (columnar/rope.py).
                    positions[start:end, 0] = time[start:end] if self._plain_branch_is_time else 0
                else:
                    numbers = ids_in_range(branch[start:end], self.range_of(adapter))
                    positions[start:end, 0] = numbers * self.stride_of(adapter)
        return positions

    def branch_position(self, adapter: str, branch_id: int) -> int:
        """Branch position of a branch; 0 where its tokens stand as those of main do."""
        if not self.patched or (self.adapters is not None and self.adapters.settings(adapter) is None):
            return 0
        return number_in_range(branch_id, self.range_of(adapter)) * self.stride_of(adapter)

    def stride_of(self, adapter: str) -> int:
        """Branch position = branch id × this, with the adapter."""
        settings = None if self.adapters is None else self.adapters.settings(adapter)
        return self.branch_stride if settings is None else settings.branch_stride

    def range_of(self, adapter: str) -> int | None:
        """The branch numbers 1…R that the adapter was trained on; None: unknown, or it has no positions of branches."""
        if not self.patched or self.stride_of(adapter) == 0:
            return None
        if self.adapters is None:
            return self.branch_range
        settings = self.adapters.settings(adapter)
        return None if settings is None else settings.branch_range


def end_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a text, by the model's generation config, its config or its tokenizer."""
    found: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        found.update([ids] if isinstance(ids, int) else ids or ())
    return frozenset(found)
