"""A converted file trains what its rows train alone: the same tokens in the same order, the same of them supervised."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from parallelmind.data.batches import BatchLimits
from parallelmind.data.collator import TrainingRow
from parallelmind.data.convert import ConvertOptions, ConvertReport, convert
from parallelmind.data.dataset import ParallelPretrainDataset
from parallelmind.data.encoder import SampleEncoder
from parallelmind.data.rows import RowLimits
from parallelmind.data.sources import JsonlSource
from parallelmind.models.identity import bundled_model_path
from tests.cases import spread
from tests.prompts.templates import CHATML, byte_tokenizer
from tests.training.test_forward import assert_same, lora_model, packed_gradients

ROWS = 12
PERSONA = (  # as Qwen2.5 does: a system turn of its own where the conversation has none
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}" + CHATML
)


def bundled(template: str | None) -> Any:
    """Tokens of several characters, which may reach over the end of a text that another one follows."""
    tokenizer = AutoTokenizer.from_pretrained(bundled_model_path())
    tokenizer.chat_template = template
    return tokenizer


def with_bos() -> Any:
    """Texts begin with a special token, and so does what the template renders."""
    tokenizer = byte_tokenizer("{{ bos_token }}" + PERSONA)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    return tokenizer


TOKENIZERS = {"plain": bundled(None), "persona": bundled(PERSONA), "bos": with_bos()}


def turns(number: int, system: str = "") -> list[dict[str, str]]:
    """A conversation of one or two questions."""
    first = [{"role": "system", "content": system}] if system else []
    asked = [{"role": "user", "content": f"多少 {number}?"}, {"role": "assistant", "content": f" {number} yuan"}]
    more = [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]
    return first + asked + (more if number % 3 == 0 else [])


def sharegpt(number: int, system: str = "") -> list[dict[str, str]]:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns(number, system)]


def alpaca(number: int, context: str, **more: Any) -> dict[str, Any]:
    return {"instruction": f"Ask {number}.", "input": context, "output": f" {number}", **more}


SYSTEMS = ["", "Be brief.", "Be brief.", "说中文。"] * 3
FORMS: dict[str, list[dict[str, Any]]] = {
    "conversations": [{"conversations": turns(n, system)} for n, system in enumerate(SYSTEMS)],
    "sharegpt": [{"conversations": sharegpt(n, system)} for n, system in enumerate(SYSTEMS)],
    "sharegpt system": [{"conversations": sharegpt(n), "system": system} for n, system in enumerate(SYSTEMS)],
    "messages": [{"messages": turns(n, system)} for n, system in enumerate(SYSTEMS)],
    "alpaca": [alpaca(n, "") for n in range(ROWS)],
    "alpaca shared": [alpaca(n, ["Milk: 5 yuan", "水 3"][n % 2]) for n in range(ROWS)],
    "alpaca own": [alpaca(n, f"Item {n} costs {n}") for n in range(ROWS)],
    "alpaca mixed": [alpaca(n, ["", "Milk: 5 yuan", f"Item {n}"][n % 3], system=SYSTEMS[n]) for n in range(ROWS)],
    "alpaca history": [alpaca(n, "水 3"[: n % 4], system=SYSTEMS[n], history=[["a?", "b"]]) for n in range(ROWS)],
    "prompt": [{"prompt": f"The same beginning of a text, then {n}", "completion": f" {n}"} for n in range(ROWS)],
    "text": [{"text": f"故事 {n}: once upon a time"} for n in range(ROWS)],
    "records": [
        {"main": ["m", "", f"own {n}"][n % 3], "branches": [f"text {n}", {"messages": turns(n)}]} for n in range(ROWS)
    ],
}
FORMS["everything"] = [row for number in range(ROWS) for row in [rows[number] for rows in FORMS.values()]]
AS_THEY_ARE = ("conversations", "sharegpt", "sharegpt system", "messages", "text", "records")
"""Forms that training reads as well, without any conversion."""


RECORDS = {
    **dict.fromkeys(("conversations", "sharegpt", "sharegpt system", "messages", "alpaca history", "alpaca mixed"), 3),
    "records": 6,
    "everything": 26,
}
"""What 12 rows become, where it is not two: mains that some of them share stand over records of their own."""


def save(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def converted(source: Path, **options: Any) -> tuple[Path, ConvertReport]:
    output = source.with_suffix(".out.jsonl")
    report = convert(ConvertOptions(input=source, output=output, overwrite=True, **options))
    return output, report


def rows_of(path: Path, tokenizer: Any, **settings: Any) -> list[TrainingRow]:
    """What training makes of a file."""
    learn_main = settings.pop("learn_main", False)
    dataset = ParallelPretrainDataset(
        JsonlSource(path),
        SampleEncoder(tokenizer, **{"max_seq_len": 512, **settings}, learn_main=learn_main),
        limits=RowLimits(most=8),
        batch=BatchLimits(size=8),
        learn_main=learn_main,
    )
    return [row for batch in dataset for row in batch.rows]


def seen(
    path: Path, tokenizer: Any, *, main: bool = True, **settings: Any
) -> Counter[tuple[tuple[int, ...], tuple[bool, ...]]]:
    """Of every branch: the tokens it sees, its main first if it sees it, and which of them are supervised."""
    found: Counter[tuple[tuple[int, ...], tuple[bool, ...]]] = Counter()
    for row in rows_of(path, tokenizer, **settings):
        ids, branches, loss_mask = row.row.input_ids, row.row.branch_ids, row.loss_mask
        for number in range(1, int(branches.max()) + 1):
            mine = (branches == number) | (main & (branches == 0))
            found[tuple(ids[mine].tolist()), tuple(loss_mask[mine].tolist())] += 1
    return found


def alone(rows: list[dict[str, Any]], folder: Path, tokenizer: Any, **settings: Any) -> Counter[Any]:
    """The same of every row, converted in a file of its own."""
    found: Counter[Any] = Counter()
    for row in rows:
        output, _ = converted(save(folder / "one.jsonl", [row]))
        found += seen(output, tokenizer, **settings)
    return found


@pytest.mark.parametrize(("form", "template"), spread(FORMS, TOKENIZERS))
def test_packed_rows_are_the_rows_alone(tmp_path: Path, form: str, template: str) -> None:
    rows, tokenizer = FORMS[form], TOKENIZERS[template]
    source = save(tmp_path / "rows.jsonl", rows)
    output, report = converted(source)
    assert report.rows == report.converted == len(rows)
    assert sum(len(json.loads(line)["branches"]) for line in output.read_text("utf-8").splitlines()) == report.branches
    assert report.records == RECORDS.get(form, 2)
    packed = seen(output, tokenizer)
    assert packed.total() == report.branches
    assert packed == alone(rows, tmp_path, tokenizer)
    if form in AS_THEY_ARE:
        assert packed == seen(source, tokenizer)


@pytest.mark.parametrize("settings", [{"max_seq_len": 22}, {"max_model_len": 56}, {"sees_main": False}])
def test_limits_and_strict_visibility_cut_both_the_same(tmp_path: Path, settings: dict[str, Any]) -> None:
    rows = [*FORMS["alpaca own"], *FORMS["alpaca shared"], alpaca(99, "more than the model has positions" * 2)]
    output, _ = converted(save(tmp_path / "rows.jsonl", rows))
    apart, _ = converted(output, branches_per_sample=1)
    assert len(apart.read_text("utf-8").splitlines()) == len(rows)
    tokenizer, sees_main = TOKENIZERS["bos"], settings.get("sees_main", True)
    packed, expected = (seen(path, tokenizer, main=sees_main, **settings) for path in (output, apart))
    assert packed == expected
    assert packed.total() == len(rows) - ("max_model_len" in settings)


def test_mains_are_supervised_alike(tmp_path: Path) -> None:
    """With --loss_on_main, main over one branch or in it; but for its first token there: nothing is before it."""
    rows = FORMS["alpaca own"]
    output, _ = converted(save(tmp_path / "rows.jsonl", rows))
    tokenizer = TOKENIZERS["plain"]
    packed = seen(output, tokenizer, learn_main=True)
    assert packed == Counter(
        (ids, (False, *loss_mask[1:]))
        for ids, loss_mask in alone(rows, tmp_path, tokenizer, learn_main=True).elements()
    )
    assert all(loss_mask[1] for _, loss_mask in packed)
    assert not any(loss_mask[1] for _, loss_mask in seen(output, tokenizer))


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.json", "rows.txt"])
def test_other_files_are_the_same_rows(tmp_path: Path, name: str) -> None:
    rows = FORMS["text"] if name == "rows.txt" else FORMS["alpaca shared"]
    path = tmp_path / name
    if name == "rows.txt":
        path.write_text("".join(row["text"] + "\n" for row in rows), encoding="utf-8")
    elif name == "rows.json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, rows[0], delimiter="\t" if name == "rows.tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    output, _ = converted(path)
    same, _ = converted(save(tmp_path / "same.jsonl", rows))
    assert output.read_text("utf-8") == same.read_text("utf-8")


def test_the_system_prompt_reaches_the_template(tmp_path: Path) -> None:
    """Not raw text before a persona of the template's own."""
    output, _ = converted(save(tmp_path / "rows.jsonl", FORMS["messages"]))
    tokenizer = TOKENIZERS["persona"]
    texts = [tokenizer.decode(list(ids)) for ids, _ in seen(output, tokenizer).elements()]
    assert sum(text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user") for text in texts) == 6
    assert sum("You are helpful." in text for text in texts) == SYSTEMS.count("")


def test_the_gradient_is_the_sum_over_the_rows_alone(tmp_path: Path) -> None:
    rows = [*FORMS["alpaca mixed"][:6], *FORMS["messages"][:3], *FORMS["text"][:1]]
    output, report = converted(save(tmp_path / "rows.jsonl", rows), branches_per_sample=4)
    assert report.records < len(rows) / 2
    tokenizer = TOKENIZERS["bos"]
    model = lora_model("qwen2", None, vocab_size=len(tokenizer))
    packed_loss, packed = packed_gradients(model, rows_of(output, tokenizer))
    losses, parts = [], []
    for row in rows:
        one, _ = converted(save(tmp_path / "one.jsonl", [row]))
        loss, gradient = packed_gradients(model, rows_of(one, tokenizer))
        losses.append(loss)
        parts.append(gradient)
    assert packed_loss == pytest.approx(sum(losses), rel=1e-4)
    assert_same(packed, {name: sum(part[name] for part in parts) for name in packed})  # type: ignore[misc]
