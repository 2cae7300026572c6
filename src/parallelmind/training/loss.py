"""The cross entropy of a large vocabulary without its logits: the output head runs on some tokens at a time.

torch's own `linear_cross_entropy` takes a plain weight only: no label smoothing, no adapter or 8-bit layer as the head,
and nothing of what models do to their logits (Cohere and Granite scale, Gemma caps them).

Shapes: B rows, S tokens of the longest, N supervised tokens of the batch, H features, V words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from parallelmind.columnar import IGNORE_INDEX
from parallelmind.errors import is_out_of_memory
from parallelmind.models.architecture import in_eval_mode

CHUNK_BYTES = 512 << 20
"""What the logits of one chunk, and all that is computed from them for its gradient, take together."""
_COPIES = 4
"""Arrays of the size of a chunk's float32 logits: as the head made them, in float32, their softmax, their gradient."""
_PROBE_TOKENS = 6
_FLOAT_TOLERANCE, _HALF_TOLERANCE = 1e-3, 0.02
"""As shares of the largest logit: what the rounding of a product over other rows comes to, on any device."""

Change = tuple[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]]
"""A function that a model applies to its logits, and its arguments, among which `_LOGITS` stands for them."""


class _Logits:
    """Stands for the logits among the arguments of a `Change`."""


_LOGITS = _Logits()


class ChunkedLoss:
    """Cross entropy inside the forward of one model, where its output head would have made logits.

    The gradient of a chunk is computed with its loss, so that the head runs once on each token; in float16 it is
    computed when it is wanted, by running the head again, since only then is it scaled against underflow.

    Args:
        head: the model's output head.
        vocabulary: words that the head knows.
        changes: what the model does to the output of its head.
    """

    def __init__(self, head: nn.Module, vocabulary: int, changes: Sequence[Change]):
        self._head = head
        self._changes = changes
        self.chunk_tokens = max(1, CHUNK_BYTES // (vocabulary * 4 * (_COPIES + len(changes))))
        """How many tokens the head runs on at a time."""

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any) -> ChunkedLoss | None:
        """None where the logits of a model are not those of its output head and what it does to each of them.

        The model runs on a few tokens, once to note what follows the head, and once to compare with.
        """
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Module):
            return None
        ids = torch.arange(_PROBE_TOKENS, device=model.get_input_embeddings().weight.device)[None]
        calls: list[tuple[Tensor, int]] = []

        def note(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
            del module
            calls.append((arguments[0], output.shape[-1]))
            return output.as_subclass(_NotedLogits)

        try:
            with in_eval_mode(model):
                expected = model(input_ids=ids, use_cache=False, return_dict=True).logits
                handle = head.register_forward_hook(note)
                try:
                    noted = model(input_ids=ids, use_cache=False, return_dict=True).logits
                finally:
                    handle.remove()
                if len(calls) != 1 or not isinstance(noted, _NotedLogits):
                    return None
                [(hidden, vocabulary)] = calls
                if hidden.shape[:2] != ids.shape:
                    return None
                found = cls(head, vocabulary, noted.changes)
                # Fewer tokens than were noted: what depends on their number shows.
                return found if _agree(found._logits(hidden[0, 1:]), expected[0, 1:]) else None
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
            if is_out_of_memory(error):
                raise
            return None

    @contextmanager
    def summing(self, rows: Tensor, places: Tensor, labels: Tensor, label_smoothing: float) -> Iterator[list[Tensor]]:
        """The block in which the model's forward runs once; what it gives holds the summed loss afterwards.

        The logits that the forward returns are those of one token, and mean nothing.

        Args:
            rows, places: of the N tokens among those of the batch.
            labels: what each of them is to predict, [N].
        """
        found: list[Tensor] = []

        def compute(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            del module
            hidden: Tensor = arguments[0]
            device = hidden.device
            asked = hidden[rows.to(device), places.to(device)]
            found.append(self._sum(asked, labels.to(device), label_smoothing))
            return (hidden[:1, :1], *arguments[1:])

        handle = self._head.register_forward_pre_hook(compute)
        try:
            yield found
        finally:
            handle.remove()

    def _sum(self, hidden: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        """Of the tokens whose features are [N, H]."""

        def loss(features: Tensor, wanted: Tensor) -> Tensor:
            return F.cross_entropy(
                self._logits(features).float(),
                wanted,
                ignore_index=IGNORE_INDEX,
                reduction="sum",
                label_smoothing=label_smoothing,
            )

        size = self.chunk_tokens
        chunks = list(zip(hidden.split(size), labels.split(size), strict=True))
        if not torch.is_grad_enabled():
            return torch.stack([loss(*chunk) for chunk in chunks]).sum()
        kind = hidden.device.type
        computed_in = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        if computed_in == torch.float16:
            return torch.stack([checkpoint(loss, *chunk, use_reentrant=False) for chunk in chunks]).sum()
        trained = [parameter for parameter in self._head.parameters() if parameter.requires_grad]
        total: Tensor = _SumWithGradient.apply(loss, size, labels, hidden, *trained)  # type: ignore[no-untyped-call]
        return total

    def _logits(self, hidden: Tensor) -> Tensor:
        """[N, V] of [N, H]. Calls what `head(…)` would, without the hooks that are ours."""
        logits: Tensor = self._head.forward(hidden[None])
        for function, arguments, named in self._changes:
            logits = function(
                *(logits if one is _LOGITS else one for one in arguments),
                **{name: logits if one is _LOGITS else one for name, one in named.items()},
            )
        return logits[0]


def _agree(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    tolerance = _FLOAT_TOLERANCE if one.dtype in (torch.float32, torch.float64) else _HALF_TOLERANCE
    return bool((one - other).abs().max() <= tolerance * other.abs().max())


class _SumWithGradient(torch.autograd.Function):
    """The sum of a loss over chunks, whose gradients are computed with it and kept instead of the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: Callable[[Tensor, Tensor], Tensor],
        size: int,
        labels: Tensor,
        hidden: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        wanted = hidden.requires_grad
        of_hidden: list[Tensor] = []
        of_parameters: list[Tensor | None] = [None] * len(parameters)
        total = torch.zeros((), device=hidden.device)
        for part, targets in zip(hidden.split(size), labels.split(size), strict=True):
            features = part.detach().requires_grad_(wanted)
            inputs = [*([features] if wanted else []), *parameters]
            with torch.enable_grad():
                value = loss(features, targets)
                gradients = list(torch.autograd.grad(value, inputs))
            total += value.detach()
            if wanted:
                of_hidden.append(gradients.pop(0))
            for index, gradient in enumerate(gradients):
                kept = of_parameters[index]
                of_parameters[index] = gradient if kept is None else kept.add_(gradient)
        ctx.of_hidden = torch.cat(of_hidden) if wanted else None
        ctx.of_parameters = of_parameters
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:
        scale: Tensor = grad_outputs[0]
        # Not in bfloat16, where one divided by the number of tokens is off by up to 1/256.
        gradients = [
            None if one is None else (one.float() * scale).to(one.dtype) for one in (ctx.of_hidden, *ctx.of_parameters)
        ]
        return (None, None, None, *gradients)


class _NotedLogits(Tensor):
    """Logits that note what is done to them."""

    changes: tuple[Change, ...] = ()

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        named = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **named)
        given = [one for one in (*args, *named.values()) if isinstance(one, Tensor)]
        if not isinstance(result, Tensor) or len(given) != 1:
            return result  # with other tensors it is no change of each logit alone
        [before] = given
        noted = result.as_subclass(cls)
        noted.changes = (
            *getattr(before, "changes", ()),
            (
                func,
                tuple(_LOGITS if one is before else one for one in args),
                {name: _LOGITS if one is before else one for name, one in named.items()},
            ),
        )
        return noted
