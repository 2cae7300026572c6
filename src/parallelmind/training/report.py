"""The report of a training run: one HTML file that needs nothing from outside."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from parallelmind.columnar import PackedRow, Visibility
from parallelmind.io.atomic import replacing
from parallelmind.training.facts import RunFacts
from parallelmind.training.report_charts import Series, bar_chart, line_chart
from parallelmind.training.report_row import row_section
from parallelmind.training.report_style import STYLE
from parallelmind.training.report_tables import answers, fact_tables, value_table
from parallelmind.visuals.grid import row_grid
from parallelmind.visuals.tokens import readable

_COUNTED = {
    "records": "records",
    "rows": "packed rows",
    "unrelated_rows": "of them several branches without a main",
    "branches": "branches",
    "tokens": "tokens in the rows",
    "supervised_tokens": "of them supervised",
    "unpredicted_tokens": "first tokens with nothing before them, not supervised",
    "cut_branches": "branches cut",
    "cut_tokens": "tokens cut off",
    "dropped_branches": "branches dropped",
    "dropped_records": "records dropped",
    "unlearned_turns": "turns of the assistant of weight 0, not supervised",
    "unanswered_turns": "turns left out behind the last one that is supervised",
    "unwritten_turns": "turns of the assistant that the chat template does not write, not supervised",
    "shortened_turns": "supervised turns whose thoughts or words the chat template leaves out",
    "unwritten_tools": "tools that the chat template does not write",
}


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """The settings of a run, its results, and one of its rows."""

    title: str
    settings: Mapping[str, Any]
    data_counts: Mapping[str, Any]
    """`notes`, if there, is a list of what was cut or dropped."""
    train_history: Sequence[Mapping[str, Any]]
    """Entries with `step` and any of `loss`, `learning_rate`, `tokens_per_second`, `grad_norm`."""
    eval_history: Sequence[Mapping[str, Any]]
    """Entries with `step` and any of `loss`, `exact` (0 to 1), and `exact_1-8`, … of the branches of these numbers."""
    example_row: PackedRow | None
    example_tokens: Sequence[str]
    """The text of each of its tokens."""
    visibility: Visibility
    stride: int
    example_loss_mask: Sequence[bool] | None = None
    """Which of its tokens are supervised; None: not marked."""
    facts: RunFacts | None = None
    """What the run was and came to; None: not known."""


def write_report(report: TrainingReport, path: Path) -> None:
    """Write the page to `path`, complete or not at all. Raises SettingsError if it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_text(report_html(report), encoding="utf-8", newline="\n")


def report_html(report: TrainingReport) -> str:
    """The page."""
    title = escape(report.title)
    facts = report.facts
    wide = _section("Curves", _curves(report))
    if facts is not None:
        wide += _section("Sample answers", answers(facts.samples))
    wide += _section("One packed row", _example(report))
    known = [] if facts is None else fact_tables(facts)
    columns = [*known, ("Data", _data(report.data_counts)), ("Settings", _settings(report.settings))]
    tables = "".join(_section(name, content) for name, content in columns)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Nothing may be loaded, whatever a token or a setting says.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{STYLE}</style></head><body><main>"
        f'<header><p class="kicker">ParallelMind training report</p><h1>{title}</h1>{_tiles(report)}</header>'
        f'{wide}<div class="pair">{tables}</div></main></body></html>\n'
    )


def _section(name: str, content: str) -> str:
    return f"<section><h2>{name}</h2>{content}</section>" if content else ""


def _tiles(report: TrainingReport) -> str:
    """The figures one looks for first."""
    losses = _points(report.train_history, "loss")
    held = _points(report.eval_history, "loss")
    exact = _points(report.eval_history, "exact")
    speeds = [value for _, value in _points(report.train_history, "tokens_per_second")]
    facts = report.facts
    last = [int(step) for step, _ in (*losses[-1:], *held[-1:], *exact[-1:])]
    tiles: list[tuple[str, str, str]] = []
    if last:
        tiles.append(("steps", f"{max(last):,}", ""))
    for name, points, show in (
        ("training loss", losses, _number),
        ("held-out loss", held, _number),
        ("exact answers", exact, _percent),
    ):
        if points:
            note = f"from {show(points[0][1])}" if len(points) > 1 else ""
            tiles.append((name, show(points[-1][1]), note))
    if facts is not None and facts.best is not None:
        shown = _percent if facts.best.metric.startswith("exact") else _number
        tiles.append(("best step", f"{facts.best.step:,}", f"{facts.best.metric} {shown(facts.best.value)}"))
    if facts is not None and facts.run.get("time") is not None:
        tiles.append(("time", str(facts.run["time"]), ""))
    if speeds:
        tiles.append(("tokens/s", _number(sorted(speeds)[len(speeds) // 2]), "median"))
    boxes = "".join(
        f'<div class="tile"><dt>{name}</dt><dd>{escape(value)}</dd><small>{escape(note)}</small></div>'
        for name, value, note in tiles
    )
    return f'<dl class="tiles">{boxes}</dl>' if tiles else ""


def _curves(report: TrainingReport) -> str:
    train, held = report.train_history, report.eval_history
    loss = [
        Series("training loss", "train", _points(train, "loss")),
        Series("held-out loss", "held", _points(held, "loss")),
    ]
    exact = [Series("exact answers", "held", _points(held, "exact"))]
    speeds = _points(train, "tokens_per_second")
    top = 1.08 * max((value for _, value in speeds), default=1.0)
    speed = [Series("tokens per second", "plain", speeds)]
    norm = [Series("gradient norm", "plain", _points(train, "grad_norm"))]
    rate = [Series("learning rate", "plain", _points(train, "learning_rate"))]
    charts: list[tuple[str, list[Series], str]] = [
        ("Loss", loss, line_chart(loss, label="Loss over steps", show=_number)),
        ("Exact answers, held out", exact,
         line_chart(exact, label="Exact answers over steps", show=_percent, limits=(0.0, 1.04))),
        ("Exact answers by branch number, last", [],
         bar_chart(_by_number(held), label="Exact answers by branch number", show=_percent)),
        ("Tokens per second", speed,
         line_chart(speed, label="Tokens per second over steps", show=_number, limits=(0.0, top))),
        ("Gradient norm", norm, line_chart(norm, label="Gradient norm over steps", show=_number)),
        ("Learning rate", rate, line_chart(rate, label="Learning rate over steps", show=_short)),
    ]  # fmt: skip
    figures = []
    for name, series, svg in charts:
        if svg:
            named = [line for line in series if line.points]
            keys = "".join(f'<span class="key {line.kind}">{line.name}</span>' for line in named)
            legend = f'<span class="legend">{keys}</span>' if len(named) > 1 else ""
            figures.append(f"<figure><figcaption><b>{name}</b>{legend}</figcaption>{svg}</figure>")
    lost = sum(not math.isfinite(value) for value in _values(train, "loss"))
    note = f'<p class="note warning">{lost} entries have a loss that is not a number.</p>' if lost else ""
    return f'<div class="charts">{"".join(figures)}</div>{note}' if figures or note else ""


def _example(report: TrainingReport) -> str:
    if report.example_row is None:
        return ""
    grid = row_grid(
        report.example_row,
        [readable(token) for token in report.example_tokens],
        stride=report.stride,
        visibility=report.visibility,
        loss_mask=report.example_loss_mask,
    )
    return row_section(grid)


def _data(counts: Mapping[str, Any]) -> str:
    named = {_COUNTED.get(name, name.replace("_", " ")): value for name, value in counts.items() if name != "notes"}
    numbers = {name: value for name, value in named.items() if value != 0}
    none = escape("; ".join(name.removeprefix("of them ") for name in named if name not in numbers))
    rest = f'<p class="note none">None: {none}.</p>' if none else ""
    notes = "".join(f"<li>{escape(str(note))}</li>" for note in counts.get("notes") or ())
    listed = f"<details><summary>What was cut or dropped (the first entries)</summary><ul>{notes}</ul></details>"
    return value_table(numbers) + rest + (listed if notes else "")


def _settings(settings: Mapping[str, Any]) -> str:
    """The settings that are on in a table, and those that are off or not given in a line below it."""
    off = [name for name, value in settings.items() if value is None or value is False or value in ("", (), [], {})]
    names = escape(", ".join(map(str, off)))
    rest = f"<details><summary>{len(off)} settings off or not given</summary><p>{names}</p></details>" if off else ""
    return value_table({name: value for name, value in settings.items() if name not in off}) + rest


def _points(history: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    return [
        (float(entry["step"]), float(entry[name]))
        for entry in history
        if _is_number(entry.get(name)) and math.isfinite(entry[name])
    ]


def _by_number(history: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    """The branch numbers of each group and its share of exact answers, at the last evaluation."""
    last = history[-1] if history else {}
    beginning = "exact_"
    return [
        (name.removeprefix(beginning).replace("-", "–"), float(value))
        for name, value in last.items()
        if name.startswith(beginning) and _is_number(value)
    ]


def _values(history: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [float(entry[name]) for entry in history if _is_number(entry.get(name))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2g}" if abs(value) < 0.001 else f"{value:.3g}"


def _short(value: float) -> str:
    return "0" if value == 0 else f"{value:.2g}".replace("e-0", "e-")


def _percent(value: float) -> str:
    return f"{value:.0%}" if value in (0, 1) or value * 100 == round(value * 100) else f"{value:.1%}"
