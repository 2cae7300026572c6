"""Tables of the report: names and values, and answers beside what was right."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from parallelmind.training.evaluation import SampleAnswer
from parallelmind.training.facts import RunFacts

NOT_RECORDED = "not recorded"
_MAIN_SHOWN, _TEXT_SHOWN = 240, 600
"""Characters of a main and of another text; of longer ones the middle is left out."""


def value_table(values: Mapping[str, Any]) -> str:
    """A line for each value; "" if there are none."""
    lines = "".join(
        f"<tr><th>{escape(str(name))}</th><td>{escape(_value(value))}</td></tr>" for name, value in values.items()
    )
    return f'<div class="scroll"><table class="values">{lines}</table></div>' if lines else ""


def fact_tables(facts: RunFacts) -> list[tuple[str, str]]:
    """Tables by their headings: the adapter, the branches, the run, and what it ran on."""
    run = dict(facts.run)
    if facts.best is not None:
        run["best step"] = f"{facts.best}; {'this is written' if facts.best.kept else f'step {facts.steps} is written'}"
    tables = [
        ("Adapter", {"base model": facts.base_model, **facts.adapter} if facts.adapter else {}),
        ("Branches", facts.branches),
        ("Run", run),
        ("Software and machine", facts.environment),
    ]
    return [(name, _recorded(values)) for name, values in tables if values]


def answers(samples: Sequence[SampleAnswer]) -> str:
    """Held-out questions with what is right and what was answered; "" if there are none."""
    if not samples:
        return ""
    head = "<tr><th>branch</th><th>question</th><th>expected</th><th>generated</th></tr>"
    lines, before = [], None
    for one in samples:
        if one.main != before and one.main:
            lines.append(f'<tr class="of"><td colspan="4"><small>main</small> {_text(one.main, _MAIN_SHOWN)}</td></tr>')
        before = one.main
        mark = '<span class="right">exact</span>' if one.exact else '<span class="wrong">other</span>'
        lines.append(
            f"<tr><th>{one.branch}</th><td>{_text(one.prompt)}</td><td>{_text(one.expected)}</td>"
            f"<td>{_text(one.generated) or '–'} {mark}</td></tr>"
        )
    return (
        f'<div class="scroll"><table class="answers"><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table></div>'
        '<p class="note">The first held-out questions, answered greedily by what was written.</p>'
    )


def _recorded(values: Mapping[str, Any]) -> str:
    return value_table({name: NOT_RECORDED if value is None else value for name, value in values.items()})


def _text(text: str, most: int = _TEXT_SHOWN) -> str:
    text = text.strip()
    half = most // 2
    return escape(text if len(text) <= most else f"{text[:half]} … {text[-half:]}")


def _value(value: Any) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
