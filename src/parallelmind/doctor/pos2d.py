"""The flow of pos2d: the positions of a row, their way into the model, and what they do there.

Tolerances are shares of the largest logit, as where a model is loaded (models/architecture.py). Two forwards of one
shape are the same computation in every number format; those of other shapes are rounded otherwise in half precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from parallelmind.columnar import (
    Interleaved2DRoPE,
    PackedRow,
    RopeMode,
    auto_pair_indices,
    build_columnar_causal_mask,
    inject_pos2d_hook,
    pack_row,
    patch_model_with_interleaved_2d_rope,
    remove_pos2d_hook,
    set_rope_pos2d,
)
from parallelmind.doctor.check import Check, CheckFailedError, DoctorOptions, NotApplicableError, Once, Subject
from parallelmind.engine.engine import Engine
from parallelmind.engine.request import Branch, BranchResult, Request
from parallelmind.errors import UnsupportedModelError
from parallelmind.models.architecture import rounding_tolerance
from parallelmind.models.loader import load_model_with_lora
from parallelmind.settings.sampling import SamplingParams

STRIDE = 128
_MAIN_TOKENS, _BRANCH_TOKENS = 4, (3, 2)
EXPECTED_POSITIONS = [(0, 0), (0, 1), (0, 2), (0, 3), (128, 4), (128, 5), (128, 6), (256, 4), (256, 5)]
"""(branch position, time) of a main of 4 tokens and branches of 3 and 2, by hand."""
_SAME = _MOVES = 1e-3
_SAMPLING = SamplingParams(max_new_tokens=8, temperature=0, ignore_eos=True, logprobs=5)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A difference between logits that must be nothing but rounding or, with `must_differ`, more than that."""

    difference: float
    """The largest one."""
    limit: float
    must_differ: bool = False

    @property
    def holds(self) -> bool:
        if self.must_differ:
            return self.difference > self.limit
        return self.difference <= self.limit  # not for NaN

    def __str__(self) -> str:
        return f"max |difference| {self.difference:.2g}, {'above' if self.must_differ else 'at most'} {self.limit:.2g}"


class Pos2dFlow:
    """A small row of random tokens, and a model of which the 2D RoPE is taken off and put on.

    Shapes: B = 1 row, S tokens, V words.
    """

    def __init__(self, model: Any, tokenizer: Any):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.device = model.get_input_embeddings().weight.device
        self.pairs = auto_pair_indices(model)
        generator = torch.Generator().manual_seed(0)
        vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
        main, *branches = (
            torch.randint(0, vocabulary, (count,), generator=generator).tolist()
            for count in (_MAIN_TOKENS, *_BRANCH_TOKENS)
        )
        self.main: list[int] = main
        self.branches: list[list[int]] = branches
        self.row: PackedRow = pack_row(main, branches)
        self._unpatched = self.logits(self._time)
        self.scale = max(1e-6, float(self._unpatched.abs().max()))
        self._rounding = rounding_tolerance(model) * self.scale

    @property
    def pos2d(self) -> Tensor:
        """[1, S, 2] of the row."""
        return self.row.pos2d(STRIDE)[None].to(self.device)

    @property
    def _time(self) -> Tensor:
        """[1, S]: the whole row as one ordinary sequence."""
        return torch.arange(len(self.row), device=self.device)[None]

    def positions(self) -> str:
        """The layout of a row against positions written by hand."""
        found = [tuple(pair) for pair in self.pos2d[0].tolist()]
        if found != EXPECTED_POSITIONS:
            raise CheckFailedError(f"{found} instead of {EXPECTED_POSITIONS}")
        return " ".join(f"({branch},{time})" for branch, time in found)

    def arrival(self) -> str:
        """What the rotary embedding is called with when position_ids are pos2d."""
        seen: list[Tensor] = []

        def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(kwargs["position_ids"] if "position_ids" in kwargs else args[1])

        with self.patched("split") as ropes:
            for rope in ropes:
                rope.register_forward_pre_hook(note, with_kwargs=True)
            self.logits(self.pos2d)
        if not seen or not all(torch.equal(positions, self.pos2d) for positions in seen):
            shapes = [list(positions.shape) for positions in seen]
            raise CheckFailedError(f"position_ids of shape {list(self.pos2d.shape)} arrived as {shapes or 'nothing'}")
        return f"position_ids of shape {list(self.pos2d.shape)} arrive as they are"

    def plain_positions(self) -> Measurement:
        """Positions [B, S] against branch position 0."""
        with self.patched("split"):
            zero = torch.stack((torch.zeros_like(self._time), self._time), dim=-1)
            return self._equal(self.logits(self._time), self.logits(zero))

    def additive_is_unpatched(self) -> Measurement:
        """Additive mode at branch position 0 against the model without 2D RoPE."""
        with self.patched("additive"):
            return self._equal(self.logits(self._time), self._unpatched)

    def split_is_unpatched(self) -> Measurement:
        """Split mode at branch position = time against the model without 2D RoPE."""
        with self.patched("split"):
            return self._equal(self.logits(torch.stack((self._time, self._time), dim=-1)), self._unpatched)

    def branch_position_matters(self) -> Measurement:
        """The same row at stride 128 and at stride 0."""
        with self.patched("split"):
            moved, still = (self.logits(self.row.pos2d(stride)[None].to(self.device)) for stride in (STRIDE, 0))
        return Measurement(difference=_largest(moved - still), limit=_MOVES * self.scale, must_differ=True)

    def set_call(self) -> Measurement:
        """`set_rope_pos2d` against position_ids."""
        with self.patched("split"):
            passed = self.logits(self.pos2d)
            set_rope_pos2d(self.model, self.pos2d)
            try:
                return self._equal(self.logits(self._time), passed)
            finally:
                set_rope_pos2d(self.model, None)

    def hook(self) -> str:
        """`generate` with the pos2d hook against `generate` without, for prompts of several lengths."""
        lengths = (1, _MAIN_TOKENS, len(self.row))
        with self.patched("split"):
            for length in lengths:
                ids = self.row.input_ids[None, :length].to(self.device)
                plain = self._generated(ids)
                inject_pos2d_hook(self.model)
                try:
                    hooked = self._generated(ids)
                finally:
                    remove_pos2d_hook(self.model)
                if hooked != plain:
                    raise CheckFailedError(f"a prompt of {length} tokens goes on {hooked} instead of {plain}")
        return f"the same tokens after prompts of {', '.join(map(str, lengths))} tokens"

    def row_is_branches_alone(self) -> Measurement:
        """One forward of the packed row against main + each branch as a sequence of its own, both under their mask."""
        with self.patched("split"):
            together, worst = self._masked_logits(self.row), 0.0
            for number, branch in enumerate(self.branches, start=1):
                alone = self._masked_logits(pack_row(self.main, [branch], branch_numbers=[number]))
                places = (self.row.branch_ids == number).to(self.device)
                worst = max(worst, _largest(together[places] - alone[len(self.main) :]))
        return Measurement(difference=worst, limit=self._rounding)

    def engine_is_branches_alone(self) -> Measurement:
        """The engine's cached decode of all branches together against each of them alone: log-probabilities."""
        with self.patched("split"):
            engine = self.engine()
            asked = [Branch(prompt=prompt, branch_id=number) for number, prompt in enumerate(self.branches, start=1)]
            [together] = engine.generate([Request(main=self.main, branches=asked)], _SAMPLING)
            alone = [engine.generate([Request(main=self.main, branches=[one])], _SAMPLING)[0] for one in asked]
        worst = max(_apart(one, other.branches[0]) for one, other in zip(together.branches, alone, strict=True))
        return Measurement(difference=worst, limit=self._rounding)

    def engine(self) -> Engine:
        """One that decodes with the model as it is now."""
        return Engine(self.model, self.tokenizer, branch_stride=STRIDE)

    def _generated(self, ids: Tensor) -> list[int]:
        tokens = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=_SAMPLING.max_new_tokens, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
        return list(tokens[0, ids.shape[1] :].tolist())

    def _equal(self, left: Tensor, right: Tensor) -> Measurement:
        return Measurement(difference=_largest(left - right), limit=_SAME * self.scale)

    def _masked_logits(self, row: PackedRow) -> Tensor:
        """[S, V] under the mask of the row, which takes the place of a model's own sliding window."""
        pos2d = row.pos2d(STRIDE)[None].to(self.device)
        mask = build_columnar_causal_mask(pos2d, visibility="isolated", dtype=self.model.dtype)
        return self.logits(pos2d, ids=row.input_ids, mask=mask)[0]

    @torch.inference_mode()
    def logits(self, positions: Tensor, *, ids: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """[1, S, V] in float32."""
        input_ids = (self.row.input_ids if ids is None else ids)[None].to(self.device)
        mask = torch.ones_like(input_ids) if mask is None else mask
        logits: Tensor = self.model(
            input_ids=input_ids, position_ids=positions, attention_mask=mask, use_cache=False
        ).logits
        return logits.float()

    @contextmanager
    def patched(self, mode: RopeMode) -> Iterator[list[Interleaved2DRoPE]]:
        """The block in which the model has 2D RoPE; yields its modules, which are new ones each time."""
        patch_model_with_interleaved_2d_rope(self.model, self.pairs, mode)
        try:
            yield [module for module in self.model.modules() if isinstance(module, Interleaved2DRoPE)]
        finally:
            _take_off(self.model)


Fact = Callable[[Pos2dFlow], str | Measurement]
FACTS: dict[str, Fact] = {
    "positions of a row": Pos2dFlow.positions,
    "pos2d reaches the rotary embedding": Pos2dFlow.arrival,
    "positions [B, S] are branch 0": Pos2dFlow.plain_positions,
    "additive: branch 0 is the unpatched model": Pos2dFlow.additive_is_unpatched,
    "split: branch position = time is the unpatched model": Pos2dFlow.split_is_unpatched,
    "the branch position changes the logits": Pos2dFlow.branch_position_matters,
    "set_rope_pos2d = position_ids": Pos2dFlow.set_call,
    "generate with the pos2d hook = without": Pos2dFlow.hook,
    "a packed row = each branch alone": Pos2dFlow.row_is_branches_alone,
    "the engine: all branches together = each alone": Pos2dFlow.engine_is_branches_alone,
}
"""What must be true of the flow, in the order in which pos2d takes it."""


def checks(subject: Subject) -> list[Check]:
    flow = Once(partial(_flow_or_skip, subject.options), "loading the model")
    load = Check(
        "load the model",
        lambda: f"{len(flow().pairs)} frequency pairs turn by the branch position",
        "Check --base_model, --device and --dtype; --base_model tiny is the bundled model",
    )
    return [load, *flow_checks(flow)]


def flow_checks(flow: Callable[[], Pos2dFlow]) -> list[Check]:
    """The checks of a flow that is loaded when the first one runs."""
    remedy = (
        "Run `parallelmind check-pos2d`, which takes the bundled model. If it passes there, this model cannot run with "
        "2D RoPE: use --no_patch_rope. If not, install the versions of torch and transformers that ParallelMind asks "
        "for (parallelmind doctor --only versions)"
    )
    return [Check(name, partial(_account, flow, fact), remedy) for name, fact in FACTS.items()]


def load_flow(options: DoctorOptions) -> Pos2dFlow:
    """The base model without adapter and 2D RoPE. Raises as `load_model_with_lora` and `auto_pair_indices` do."""
    model, tokenizer, _ = load_model_with_lora(options.base_model, **options.placement())
    _take_off(model)
    return Pos2dFlow(model, tokenizer)


def _flow_or_skip(options: DoctorOptions) -> Pos2dFlow:
    try:
        return load_flow(options)
    except UnsupportedModelError as error:  # no rotary embedding: such models run without 2D RoPE
        raise NotApplicableError(str(error)) from error


def _take_off(model: Any) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Interleaved2DRoPE):
                setattr(parent, name, child.rotary)


def _account(flow: Callable[[], Pos2dFlow], fact: Fact) -> str:
    found = fact(flow())
    if isinstance(found, Measurement) and not found.holds:
        raise CheckFailedError(str(found).replace(", ", "; it must be "))
    return str(found)


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def _apart(one: BranchResult, other: BranchResult) -> float:
    """The largest difference of log-probabilities, as long as both have the same tokens before."""
    if one.error or other.error or not one.logprobs or len(one.logprobs) != len(other.logprobs):
        return math.inf
    worst = 0.0
    for left, right in zip(one.logprobs, other.logprobs, strict=True):
        likeliest = dict(right.top)
        worst = max(worst, abs(left.logprob - likeliest.get(left.token_id, -math.inf)))
        if left.token_id != right.token_id:
            break
    return worst
