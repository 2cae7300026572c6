"""One forward over packed rows, to the loss of the supervised tokens.

Shapes: B rows, S tokens of the longest, N supervised tokens of the batch, V words.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallelmind.columnar import (
    FULL,
    IGNORE_INDEX,
    PAD_BRANCH,
    Reach,
    Visibility,
    find_rope_patch,
    pack_row,
    pos2d_ids,
)
from parallelmind.data.collator import packed_ids
from parallelmind.models.architecture import refuse_other_layers
from parallelmind.models.lora_layers import unwrap
from parallelmind.models.own_forward import OwnForward, find_path
from parallelmind.models.packed_attention import dense_mask, packed_attention
from parallelmind.training.loss import ChunkedLoss
from parallelmind.training.router_balance import RouterBalance

_LOGGER = logging.getLogger(__name__)
_PROBE_MAIN, _PROBE_BRANCHES = 11, (4, 1, 7, 3)
_PROBE_ROW = 300


class PackedForward:
    """Runs a model on packed rows, and proves when made that it may.

    Raises:
        UnsupportedModelError: other layers than attention, or logits that differ from those of each branch alone.
    """

    def __init__(self, model: Any, *, visibility: Visibility, stride: int):
        self.visibility: Visibility = visibility
        self.stride = stride
        self.patched = find_rope_patch(model) is not None
        self._config = unwrap(model).config.get_text_config(decoder=True)
        self.dense = False
        """The model does not use transformers' AttentionInterface (falcon): it gets a ready mask."""
        self._balance = RouterBalance.of(unwrap(model))
        self._check_parity(unwrap(model))
        self._chunked = ChunkedLoss.of(unwrap(model))
        if self._chunked is None:
            _LOGGER.warning(
                "%s makes its logits in a way of its own, so those of all supervised tokens of a batch are held at "
                "once: with a large vocabulary, lower --batch_size",
                type(unwrap(model)).__name__,
            )

    @contextmanager
    def installed(self, model: nn.Module) -> Iterator[None]:
        """The block in which `loss` may be called and backward may run."""
        if self.dense:
            yield
            return
        with packed_attention(unwrap(model), self.visibility):
            yield

    def loss(self, model: nn.Module, inputs: Mapping[str, Tensor], *, label_smoothing: float = 0.0) -> Tensor:
        """The summed cross entropy of a batch's supervised tokens, each with the loss that balances experts.

        The output head runs on the N positions that have a target only, some at a time; main's last has one for each
        branch that begins with a supervised token. Without any, the loss is 0 and still has a gradient (of 0), so that
        all processes of a distributed run do the same.
        """
        rows, places, labels = _supervised(inputs)
        with nullcontext() if self._balance is None else self._balance.collected():
            total = self._cross_entropy(model, inputs, rows, places, labels, label_smoothing)
        if self._balance is not None and model.training:
            supervised = (labels != IGNORE_INDEX).sum()
            total = total + supervised * self._balance.loss(inputs["attention_mask"][:, 0, :, 0] != PAD_BRANCH)
        return total

    def _cross_entropy(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        rows: Tensor,
        places: Tensor,
        labels: Tensor,
        label_smoothing: float,
    ) -> Tensor:
        if self._chunked is not None:
            with self._chunked.summing(rows, places, labels, label_smoothing) as found:
                self._run(model, inputs)
            return found[0]
        asked = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
        asked[rows, places] = True
        among_asked = asked.flatten().cumsum(0).view_as(asked) - 1
        logits = self._logits(model, inputs, asked).float()
        return F.cross_entropy(
            logits[among_asked[rows, places].to(logits.device)],
            labels.to(logits.device),
            ignore_index=IGNORE_INDEX,
            reduction="sum",
            label_smoothing=label_smoothing,
        )

    def _logits(self, model: nn.Module, inputs: Mapping[str, Tensor], asked: Tensor) -> Tensor:
        """[N, V]."""
        with _head_only_at(unwrap(model), asked):
            logits: Tensor = self._run(model, inputs).logits
        return logits[asked] if logits.shape[:2] == asked.shape else logits[0]

    def _run(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
        mask = inputs["attention_mask"]
        if self.dense:
            mask = dense_mask(mask, self.visibility, FULL, unwrap(model).dtype)
        more = {} if self._balance is None else {"output_router_logits": False}
        return model(
            **more,
            input_ids=inputs["input_ids"],
            position_ids=inputs["position_ids"],
            attention_mask=mask,
            use_cache=False,
            return_dict=True,
        )

    @torch.no_grad()
    def _check_parity(self, model: Any) -> None:
        """Compare a packed row, behind another one, with each of its branches alone, in the model's own forward."""
        refuse_other_layers(model, "be trained on packed branches")
        visibility, self.visibility = self.visibility, "isolated"

        def differs(dense: bool, reaches: set[Reach]) -> str | None:
            self.dense = dense
            return self._compare(model, reaches)

        try:
            find_path(model, "be trained on packed branches", differs)
        finally:
            self.visibility = visibility

    def _compare(self, model: Any, reaches: set[Reach]) -> str | None:
        """What is wrong on this path; None if nothing is."""
        device = model.get_input_embeddings().weight.device
        generator = torch.Generator().manual_seed(0)
        vocabulary = int(self._config.vocab_size)
        # A reach that could not be shortened is passed at its own length; on the dense path any place may be one.
        reach = max((one.window or one.chunk or 0 for one in reaches), default=_PROBE_ROW if self.dense else 0)
        lengths = (max(_PROBE_MAIN, reach + 2), *_PROBE_BRANCHES)
        main, *branches = (torch.randint(0, vocabulary, (count,), generator=generator).tolist() for count in lengths)
        row = pack_row(main, branches)
        positions = row.pos2d(self.stride) if self.patched else row.time_ids
        places = [torch.isin(row.branch_ids, torch.tensor([0, number])) for number in range(1, len(lengths))]
        own = OwnForward(model, [[*main, *tokens] for tokens in branches], [positions[place] for place in places])
        other = pack_row(main[:_PROBE_MAIN], branches[:1])
        both = (other, row)
        row_ids = torch.cat([torch.full_like(one.branch_ids, number) for number, one in enumerate(both)])
        input_ids, branch_ids, time_ids = (
            torch.cat([getattr(one, name) for one in both]) for name in ("input_ids", "branch_ids", "time_ids")
        )
        inputs = {
            "input_ids": input_ids[None].to(device),
            "position_ids": (pos2d_ids(branch_ids, time_ids, self.stride) if self.patched else time_ids)[None].to(
                device
            ),
            "attention_mask": packed_ids(branch_ids[None], time_ids[None], row_ids[None]).to(device),
        }
        asked = torch.ones_like(inputs["input_ids"], dtype=torch.bool)
        with self.installed(model):
            logits = self._logits(model, inputs, asked).float()[len(other) :]
        for index, place in enumerate(places):
            failure = own.refusal(index, len(main) - 1, logits[place.to(logits.device)][len(main) - 1 :])
            if failure is not None:
                return failure
        return None


def _supervised(inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, places and labels of the supervised tokens; without any, one place that has nothing to predict."""
    targets = inputs["shift_labels"]
    row, place, first_tokens = inputs["branch_starts"].unbind(-1)
    rows, places = (targets != IGNORE_INDEX).nonzero(as_tuple=True)
    if not len(rows) and not len(row):
        rows = places = torch.zeros(1, dtype=torch.long, device=targets.device)
    labels = torch.cat((targets[rows, places], first_tokens))
    return torch.cat((rows, row)), torch.cat((places, place)), labels


@contextmanager
def _head_only_at(model: Any, asked: Tensor) -> Iterator[None]:
    """Let the output head see the asked positions only: [B, S, …] becomes [1, N, …]."""

    def select(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        del module
        hidden = arguments[0]
        if hidden.shape[:2] != asked.shape:
            return None
        return (hidden[asked.to(hidden.device)][None], *arguments[1:])

    head = model.get_output_embeddings()
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
