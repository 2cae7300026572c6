"""The check at load time: branches of a shared main, as the engine computes them, against the model's own forward.

Two mains with branches of many lengths run together, in chunks and steps, in pages that lie far apart. Windows and
chunks are shortened meanwhile, so that the few tokens of the check pass all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from parallelmind.columnar import Reach, number_in_range, pos2d_ids
from parallelmind.engine.pages import PageStore
from parallelmind.engine.readings import Span
from parallelmind.engine.step import Step
from parallelmind.engine.texts import Place, Run
from parallelmind.engine.tree import PageTree
from parallelmind.models.architecture import num_layers
from parallelmind.models.layer_reach import AttentionNotReachedError
from parallelmind.models.own_forward import OwnForward, find_path

if TYPE_CHECKING:
    from parallelmind.engine.model_runner import ModelRunner

_PAGE = 2
_MAINS = (11, 6)
_BRANCHES = ((0, 1, 3), (0, 2, 6), (0, 3, 4), (1, 1, 5), (0, 4, 7))
"""(main, branch id, tokens) of each."""
_PROMPTS = (2, 1, 3, 1, 4)
"""Of these tokens, those that are fed together; the others follow one by one."""
_GAP = 320
"""Pages between mains and branches. What goes by the place of a key instead of its time shows, also since the last
pages of all belong to the tokens that come first in the forward."""


def check_parity(runner: ModelRunner) -> None:
    """Find the attention path on which the engine gives what the model gives, and set it in the runner.

    Raises:
        UnsupportedModelError: there is none, with the reason.
    """

    def differs(dense: bool, reaches: set[Reach]) -> str | None:
        runner.dense = dense
        failure = _compare(runner, reaches)
        if failure is None and runner.rope_lengths.longest_short is not None:
            with runner.rope_lengths.all_long():
                failure = _compare(runner, reaches, is_long=True)
        return failure

    find_path(runner.model, "decode branches over a shared main", differs)


@dataclass
class _Text:
    """A branch of the check."""

    run: Run
    main: int
    branch_id: int
    prompt: int
    logits: list[Tensor]


@torch.inference_mode()
def _compare(runner: ModelRunner, reaches: set[Reach], *, is_long: bool = False) -> str | None:
    generator = torch.Generator().manual_seed(0)
    # A reach that could not be shortened is passed at its own length.
    reach = max((one.window or one.chunk or 0 for one in reaches), default=0)
    mains = [
        torch.randint(0, runner.vocab_size, (count + max(0, reach - _MAINS[1]),), generator=generator).tolist()
        for count in _MAINS
    ]
    branches = [torch.randint(0, runner.vocab_size, (one[2],), generator=generator).tolist() for one in _BRANCHES]
    own = OwnForward(
        runner.model,
        [[*mains[main], *tokens] for (main, _, _), tokens in zip(_BRANCHES, branches, strict=True)],
        [
            _positions(runner, len(mains[main]), branch_id, len(tokens))
            for (main, branch_id, _), tokens in zip(_BRANCHES, branches, strict=True)
        ],
    )
    pages = _GAP + sum(-(-len(tokens) // _PAGE) for tokens in (*mains, *branches))
    tree = PageTree(PageStore(_PAGE, pages), 0)
    texts, behind_mains = _run(runner, tree, mains, branches, is_long)
    if tree.store.num_layers != num_layers(runner.config):
        return f"{tree.store.num_layers} of {num_layers(runner.config)} layers keep keys and values"
    runner.bytes_per_token = tree.store.bytes_per_token()
    for index, text in enumerate(texts):
        logits = torch.cat((behind_mains[text.main][None], *text.logits))
        failure = own.refusal(index, len(mains[text.main]) - 1, logits)
        if failure is not None:
            return failure
    return None


def _run(
    runner: ModelRunner, tree: PageTree, mains: list[list[int]], branches: list[list[int]], is_long: bool
) -> tuple[list[_Text], list[Tensor]]:
    main_runs = [tree.open(None, Place(is_long=is_long), tokens) for tokens in mains]
    behind_mains = [torch.empty(0)] * len(mains)
    half = len(mains[0]) // 2
    for first in (True, False):
        spans = []
        for main in main_runs:
            end = min(half, len(main)) if first else len(main)
            tree.reserve(main, end)
            if end > main.num_cached:
                spans.append(Span(run=main, past=main.num_cached, token_ids=main.tokens[main.num_cached : end]))
        for run, logits in _forward(runner, tree, spans).items():
            behind_mains[main_runs.index(run)] = logits[-1]
    gap = tree.open(None, Place(), [0] * (_GAP * _PAGE), is_private=True)
    tree.reserve(gap, len(gap))
    texts = [
        _Text(
            run=tree.open(
                main_runs[main],
                Place(branch_position=number, first_time=len(mains[main]), is_long=is_long),
                tokens,
                is_private=True,
            ),
            main=main,
            branch_id=branch_id,
            prompt=prompt,
            logits=[],
        )
        for number, ((main, branch_id, _), tokens, prompt) in enumerate(
            zip(_BRANCHES, branches, _PROMPTS, strict=True), start=1
        )
    ]
    for text in texts:
        tree.reserve(text.run, len(text.run))
    while any(not text.run.complete for text in texts):
        spans = []
        for text in reversed(texts):
            run = text.run
            if run.complete:
                continue
            end = run.num_cached + 1 if run.num_cached else text.prompt
            tokens = run.tokens[run.num_cached : end]
            spans.append(Span(run=run, past=run.num_cached, token_ids=tokens, branch_id=text.branch_id))
        found = _forward(runner, tree, spans)
        for text in texts:
            if text.run in found:
                text.logits.append(found[text.run])
    return texts, behind_mains


def _forward(runner: ModelRunner, tree: PageTree, spans: list[Span]) -> dict[Run, Tensor]:
    """Logits behind all tokens of some spans."""
    step = Step(tree.store, spans)
    logits = runner.forward(step, torch.arange(step.num_tokens))
    if not tree.store.num_layers:
        raise AttentionNotReachedError
    for span in spans:
        tree.note_computed(span.run, len(span.token_ids))
    return {span.run: logits[start:end] for span, (start, end) in zip(step.spans, step.ranges, strict=True)}


def _positions(runner: ModelRunner, main: int, branch_id: int, count: int) -> Tensor:
    time = torch.arange(main + count)
    number = number_in_range(branch_id, runner.branch_range)
    return pos2d_ids((time >= main) * number, time, runner.branch_stride) if runner.patched else time
