"""One forward over packed rows, to the loss of the supervised tokens.

Shapes: B rows, S tokens of the longest, N supervised tokens of the batch, V words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallelmind.columnar import IGNORE_INDEX, PAD_BRANCH, Visibility, find_rope_patch, pack_row, pos2d_ids
from parallelmind.data.collator import packed_ids
from parallelmind.errors import UnsupportedModelError
from parallelmind.models.architecture import refuse_other_layers, rounding_tolerance
from parallelmind.models.lora_layers import unwrap
from parallelmind.models.packed_attention import dense_mask, packed_attention
from parallelmind.training.router_balance import RouterBalance

_PROBE_MAIN, _PROBE_BRANCHES = 5, (4, 3)


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

        The output head runs on the N positions that have a target only; main's last has one for each branch that
        begins with a supervised token. Without any, the loss is 0 and still has a gradient (of 0), so that all
        processes of a distributed run do the same.
        """
        targets = inputs["shift_labels"]
        row, place, first_tokens = inputs["branch_starts"].unbind(-1)
        asked = targets != IGNORE_INDEX
        asked[row, place] = True
        if not bool(asked.any()):
            asked[0, 0] = True
        with nullcontext() if self._balance is None else self._balance.collected():
            logits = self._logits(model, inputs, asked).float()
        summed = partial(F.cross_entropy, ignore_index=IGNORE_INDEX, reduction="sum", label_smoothing=label_smoothing)
        total: Tensor = summed(logits, targets[asked].to(logits.device))
        if len(row):
            among_asked = asked.flatten().cumsum(0).view_as(asked) - 1
            total = total + summed(logits[among_asked[row, place].to(logits.device)], first_tokens.to(logits.device))
        if self._balance is not None and model.training:
            supervised = (targets != IGNORE_INDEX).sum() + len(row)
            total = total + supervised * self._balance.loss(inputs["attention_mask"][:, 0, :, 0] != PAD_BRANCH)
        return total

    def _logits(self, model: nn.Module, inputs: Mapping[str, Tensor], asked: Tensor) -> Tensor:
        """[N, V]."""
        mask = inputs["attention_mask"]
        if self.dense:
            mask = dense_mask(mask, self.visibility, None, unwrap(model).dtype)
        more = {} if self._balance is None else {"output_router_logits": False}
        with _head_only_at(unwrap(model), asked):
            output = model(
                **more,
                input_ids=inputs["input_ids"],
                position_ids=inputs["position_ids"],
                attention_mask=mask,
                use_cache=False,
                return_dict=True,
            )
        logits: Tensor = output.logits
        return logits[asked] if logits.shape[:2] == asked.shape else logits[0]

    @torch.no_grad()
    def _check_parity(self, model: Any) -> None:
        """Compare a packed row with each of its branches alone, in the model's own forward."""
        refuse_other_layers(model, "be trained on packed branches")
        training = model.training
        model.eval()
        try:
            self._find_path(model)
        finally:
            model.train(training)

    def _find_path(self, model: Any) -> None:
        device = model.get_input_embeddings().weight.device
        generator = torch.Generator().manual_seed(0)
        vocabulary = int(self._config.vocab_size)
        main = torch.randint(0, vocabulary, (_PROBE_MAIN,), generator=generator).tolist()
        branches = [torch.randint(0, vocabulary, (n,), generator=generator).tolist() for n in _PROBE_BRANCHES]
        expected = [self._alone(model, main, branch, number, device) for number, branch in enumerate(branches, 1)]
        row = pack_row(main, branches)
        asked = (row.branch_ids > 0)[None].to(device)
        positions = row.pos2d(self.stride) if self.patched else row.time_ids
        inputs = {
            "input_ids": row.input_ids[None].to(device),
            "position_ids": positions[None].to(device),
            "attention_mask": packed_ids(row.branch_ids[None], row.time_ids[None]).to(device),
        }
        scale = max(1e-6, max(float(part.abs().max()) for part in expected))
        tolerance = rounding_tolerance(model)
        visibility, failures = self.visibility, []
        self.visibility = "isolated"
        for self.dense in (False, True):
            if self.dense and getattr(self._config, "sliding_window", None) is not None:
                failures.append("its sliding window cannot be applied from outside")
                continue
            try:
                with self.installed(model):
                    actual = self._logits(model, inputs, asked).float()
            except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
                failures.append(f"{type(error).__name__}: {error}")
                continue
            difference = float((actual - torch.cat(expected)).abs().max()) / scale
            if difference <= tolerance:
                self.visibility = visibility
                return
            failures.append(f"logits differ from the model's own forward by {difference:.2g} of their size")
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be trained on packed branches: {'; '.join(failures)}. Use a decoder-only "
            "transformer with ordinary attention (for example Qwen, Llama, Mistral, Gemma, Phi)."
        )

    def _alone(self, model: Any, main: list[int], branch: list[int], number: int, device: torch.device) -> Tensor:
        """Logits [tokens of the branch, V] of main + one branch as an ordinary sequence."""
        ids = torch.tensor([main + branch])
        time = torch.arange(ids.shape[1])[None]
        branch_ids = (time >= len(main)) * number
        positions = pos2d_ids(branch_ids, time, self.stride) if self.patched else time
        logits: Tensor = model(
            input_ids=ids.to(device),
            position_ids=positions.to(device),
            attention_mask=torch.ones_like(ids).to(device),
            use_cache=False,
        ).logits[0, len(main) :]
        return logits.float()


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
