"""The model card of an adapter or a model: what it is, how it was trained, and what it needs to be used."""

from __future__ import annotations

import hashlib
import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from parallelmind.io.atomic import replacing
from parallelmind.models.lora_write import NEEDS_ROPE
from parallelmind.models.sidecar import RopeSettings
from parallelmind.training.facts import RunFacts
from parallelmind.training.files import unwritable

_LOGGER = logging.getLogger(__name__)
CARD_NAME = "README.md"
_COUNTS = {
    "records": "records",
    "rows": "packed rows",
    "branches": "branches",
    "tokens": "tokens",
    "supervised_tokens": "of them supervised",
    "cut_branches": "branches cut",
    "dropped_branches": "branches dropped",
    "dropped_records": "records dropped",
}
_MARK = "<!-- written by ParallelMind, until it is edited: "
_TEMPLATE = """---
{{ card_data }}
---

# {{ name }}

{{ summary }}

## Use

{{ use }}

{{ plain }}

## Training

{{ tables }}

## Data

{{ data }}

## Scores

{{ scores }}
"""


def card_text(facts: RunFacts, *, folder: str, repository: str | None = None) -> str:
    """The card.

    Args:
        folder: the name of the folder that it is written into.
        repository: where it is on the Hub, if it is.
    """
    rope = facts.rope
    of_adapter = bool(facts.adapter)
    data = ModelCardData(
        base_model=facts.base_model if of_adapter and facts.base_model_on_hub else None,
        library_name="peft" if of_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["parallelmind", *(["lora"] if of_adapter else []), *(["2d-rope"] if rope is not None else [])],
        datasets=[one.name for one in facts.data if one.on_hub] or None,
    )
    card = ModelCard.from_template(
        data,
        template_str=_TEMPLATE,
        name=facts.name,
        summary=_summary(facts),
        use=_use(facts, folder, repository),
        plain=_plain(facts, rope) if of_adapter else _plain_model(rope),
        tables="\n\n".join(_table(table) for table in (facts.adapter, facts.branches, _run(facts)) if table),
        data=_data(facts),
        scores=_scores(facts),
    )
    text = f"{card.content.rstrip()}\n"
    return f"{text}\n{_MARK}{_hash(text)} -->\n"


def write_card(folder: Path, text: str) -> None:
    """Write the card into a folder; one that was edited stays. Raises TrainingError if it cannot be written."""
    path = folder / CARD_NAME
    if path.is_file() and not _is_unedited(path):
        _LOGGER.warning("%s was edited, so it stays as it is; remove it to have it written again", path)
        return
    with replacing(path, unwritable) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _is_unedited(path: Path) -> bool:
    written, mark, end = path.read_text(encoding="utf-8", errors="replace").rpartition(f"\n{_MARK}")
    return bool(mark) and end == f"{_hash(written)} -->\n"


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _summary(facts: RunFacts) -> str:
    if not facts.adapter:
        return "A model trained from scratch with ParallelMind: one text, and branches that are answered in parallel."
    base = (
        f"[{facts.base_model}](https://huggingface.co/{facts.base_model})"
        if facts.base_model_on_hub
        else (f"`{facts.base_model}`")
    )
    return (
        f"A LoRA adapter for {base}, trained with ParallelMind on packed rows: one text (main), and branches that are "
        "answered in parallel behind it."
    )


def _use(facts: RunFacts, folder: str, repository: str | None) -> str:
    lines = []
    if repository is not None:
        folder = repository.rpartition("/")[2]
        lines = [f"hf download {repository} --local-dir {folder}"]
    folder, base_model = shlex.quote(folder), shlex.quote(facts.base_model)
    model = f"--base_model {base_model} --lora_path {folder}" if facts.adapter else f"--base_model {folder}"
    lines += [
        f"parallelmind chat {model}",
        f"parallelmind batch {model} --data_path records.jsonl --out_path answers.jsonl",
    ]
    where = "The settings of 2D RoPE and of the branches are taken from `parallelmind.json`, without flags."
    if facts.rope is None:
        where = "`parallelmind.json` says that no 2D RoPE is wanted."
    return "\n".join(["```sh", *lines, "```", "", where])


def _plain(facts: RunFacts, rope: RopeSettings | None) -> str:
    if rope is None or not rope.moves_branches:
        why = (
            "This adapter was trained without 2D RoPE"
            if rope is None
            else "This adapter was trained with settings of 2D RoPE that turn no token otherwise than the model does"
        )
        alone = "one branch" if facts.branches.get("visibility") == "strict" else "main and one branch"
        return (
            f"## With plain PEFT\n\n{why}: for {alone}, PEFT by itself computes what was trained. Several branches in "
            "one pass need ParallelMind, which lets each see what it saw in training."
        )
    exact = (
        " Main alone, at branch position 0, is computed as it was trained; what a branch answers is not."
        if rope.mode == "additive"
        else " That holds for main and a single question too."
    )
    return (
        "## Not with plain PEFT\n\n"
        "PEFT by itself loads this folder and runs it, but it does not know **2D RoPE**, which turns a part of every "
        "head by the position of the branch instead of the place in the text. So what it computes is **not what was "
        f"trained**.{exact} Merged into the base model the adapter still needs 2D RoPE.\n\n"
        f"You can tell by a warning: PEFT says that `{NEEDS_ROPE}` in `adapter_config.json` is an unexpected keyword, "
        "and goes on without it. Load the folder with ParallelMind instead, as above."
    )


def _plain_model(rope: RopeSettings | None) -> str:
    if rope is None or not rope.moves_branches:
        return "## With plain transformers\n\nThis is an ordinary model for transformers."
    return (
        "## Not with plain transformers\n\nThe model was trained with 2D RoPE, which transformers by itself does not "
        "know: what it computes is not what was trained. Load the folder with ParallelMind, as above."
    )


def _run(facts: RunFacts) -> dict[str, Any]:
    best = {} if facts.best is None else {"best step": f"{facts.best}{_kept(facts)}"}
    versions = {name: value for name, value in facts.environment.items() if name in ("parallelmind", "torch", "peft")}
    return {**facts.run, **best, **versions}


def _kept(facts: RunFacts) -> str:
    assert facts.best is not None
    return ", which this is" if facts.best.kept else f"; this is step {facts.steps}"


def _data(facts: RunFacts) -> str:
    lines = []
    for one in facts.data:
        name = f"[{one.name}](https://huggingface.co/datasets/{one.name})" if one.on_hub else f"`{one.name}`"
        content = f", blake2b `{one.content}`" if one.content else ""
        lines.append(f"- {one.flag}: {name}{content}")
    counts = {
        shown: value
        for name, shown in _COUNTS.items()
        if (value := facts.counts.get(name)) or name in ("records", "supervised_tokens")
    }
    return "\n".join([*lines, "", _table(counts)])


def _scores(facts: RunFacts) -> str:
    if not facts.evaluation:
        return "There was no held-out data: nothing was measured."
    names = {"loss": "held-out loss", "exact": "exact answers"}
    rows = {
        names.get(name, f"exact answers by branch number, {name.removeprefix('exact_')}"): (
            f"{value:.4f}" if name == "loss" else f"{value:.1%}"
        )
        for name, value in facts.evaluation.items()
        if name in names or name.startswith("exact_")
    }
    return (
        f"{_table(rows)}\n\nOn the held-out records of this run: answers are generated greedily, and exact is right to "
        "the letter, apart from spaces at the ends."
    )


def _table(values: Mapping[str, Any]) -> str:
    lines = [f"| {_cell(name)} | {_cell(_shown(value))} |" for name, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _shown(value: Any) -> str:
    if value is None:
        return "not recorded"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
