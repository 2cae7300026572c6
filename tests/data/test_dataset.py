"""The stream of micro-batches: nothing lost, nothing twice, the same again from any state."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from parallelmind.data.batches import BatchLimits
from parallelmind.data.collator import MicroBatch, ParallelPretrainCollator
from parallelmind.data.dataset import ParallelPretrainDataset, Share
from parallelmind.data.encoder import SampleEncoder
from parallelmind.data.rows import RowLimits
from parallelmind.data.sources import FilteredSource, HubSource, JsonlSource
from parallelmind.errors import DataError, SettingsError
from parallelmind.prompts.encode import closed, encode_main, encode_parts
from tests.families import char_tokenizer

TOKENIZER = char_tokenizer()


def ids(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def write(path: Path, rows: list[dict[str, Any]]) -> JsonlSource:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonlSource(path)


def dataset(source: Any, *, most: int = 2, size: int = 4, **more: Any) -> ParallelPretrainDataset:
    encoder = SampleEncoder(TOKENIZER, max_seq_len=more.pop("max_seq_len", 64), **more.pop("encoder", {}))
    limits = RowLimits(most=most, **more.pop("limits", {}))
    batch = BatchLimits(size=size, whole_rows=more.pop("whole_rows", False))
    return ParallelPretrainDataset(source, encoder, limits=limits, batch=batch, **more)


def contents(batches: list[MicroBatch]) -> list[list[list[int]]]:
    return [[row.row.input_ids.tolist() for row in batch.rows] for batch in batches]


_OF_BATCHES = {"batches": 0, "batch_tokens": 0, "padding_tokens": 0}
RECORDS = [{"main": "m" * (1 + n % 3), "branches": [f"b{n}.{k}" for k in range(1 + n % 5)]} for n in range(23)]
LOOSE = [{"text": "t" * (1 + n)} for n in range(5)]


def test_a_record_split_over_rows_keeps_its_branch_numbers(tmp_path: Path) -> None:
    source = write(tmp_path / "d", [{"main": "ab", "branches": [{"prompt": "p", "completion": "c"}, "xy", "z"]}])
    batches = list(dataset(source, shuffle=False))
    assert [len(batch.rows) for batch in batches] == [2]
    first, second = batches[0].rows
    end = TOKENIZER.eos_token_id
    assert first.row.input_ids.tolist() == [*ids("ab"), *ids("p"), *ids("c"), end, *ids("xy"), end]
    assert first.row.branch_ids.tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    assert first.row.time_ids.tolist() == [0, 1, 2, 3, 4, 2, 3, 4]
    assert first.loss_mask.tolist() == [False, False, False, True, True, True, True, True]
    assert second.row.branch_ids.tolist() == [0, 0, 3, 3]
    assert first.sources == (f"{tmp_path / 'd'} line 1",)


def test_loose_samples_share_rows(tmp_path: Path) -> None:
    stream = dataset(write(tmp_path / "d", LOOSE), shuffle=False)
    rows = [row for batch in stream for row in batch.rows]
    assert [row.row.branch_ids.unique().tolist() for row in rows] == [[1, 2], [1, 2], [1]]
    assert rows[0].row.time_ids.tolist() == [0, 1, 0, 1, 2]
    assert rows[1].loss_mask.tolist() == [False, True, True, True, False, True, True, True, True]
    dynamic = dataset(write(tmp_path / "d", LOOSE * 20), most=4, limits={"least": 2, "balanced": True})
    sizes = Counter(len(row.row.branch_ids.unique()) for batch in dynamic for row in batch.rows)
    assert {2, 3, 4} <= sizes.keys() <= {1, 2, 3, 4}
    assert sizes[1] <= 1


def test_main_is_supervised_once_if_asked(tmp_path: Path) -> None:
    source = write(tmp_path / "d", [{"main": "abc", "branches": ["d", "e", "f"]}])
    rows = [row for batch in dataset(source, shuffle=False, learn_main=True) for row in batch.rows]
    assert [row.loss_mask.tolist()[:3] for row in rows] == [[True] * 3, [False] * 3]


@pytest.mark.parametrize("block", [None, 5])
def test_every_branch_once_an_epoch_in_another_order(block: int | None, tmp_path: Path) -> None:
    source = write(tmp_path / "d", RECORDS + LOOSE)
    stream = dataset(source, epochs=2, block_records=block)
    batches = list(stream)
    assert [batch.last for batch in batches] == [False] * (len(batches) - 1) + [True]
    epochs = [[b for b in batches if b.state["epoch"] == epoch] for epoch in (0, 1)]
    orders = []
    for part in epochs:
        branches = [
            (row.row.input_ids[row.row.branch_ids == number]).tolist()
            for batch in part
            for row in batch.rows
            for number in row.row.branch_ids.unique().tolist()
            if number
        ]
        orders.append([TOKENIZER.decode(branch) for branch in branches])
    everything = sorted(
        TOKENIZER.decode([*ids(text), TOKENIZER.eos_token_id])
        for row in RECORDS + LOOSE
        for text in (row.get("branches") or [row["text"]])  # type: ignore[union-attr]
    )
    assert sorted(orders[0]) == sorted(orders[1]) == everything
    assert orders[0] != orders[1]
    assert stream.counts.branches == len(everything)
    assert stream.counts.records == len(RECORDS + LOOSE)
    assert contents(list(dataset(source, epochs=2, block_records=block))) == contents(batches)
    other_seed = dataset(source, epochs=2, block_records=block, seed=1)
    assert contents(list(other_seed)) != contents(batches)


@pytest.mark.parametrize("block", [None, 4])
@pytest.mark.parametrize("world_size", [1, 3])
def test_any_state_continues_exactly(block: int | None, world_size: int, tmp_path: Path) -> None:
    source = write(tmp_path / "d", RECORDS)
    for rank in range(world_size):
        share = Share(rank=rank, world_size=world_size)
        whole = dataset(source, epochs=3, block_records=block, share=share)
        batches = list(whole)
        for at in random.sample(range(len(batches) - 1), 5):
            state = json.loads(json.dumps(batches[at].state))
            rest = dataset(source, epochs=3, block_records=block, share=share)
            rest.load_state_dict(state)
            assert contents(list(rest)) == contents(batches[at + 1 :])
            assert rest.counts == whole.counts


def of_step(batches: list[MicroBatch]) -> Counter[tuple[Any, ...]]:
    """The branches of micro-batches, each with its number, times, main and loss mask; and supervised mains."""
    found: Counter[tuple[Any, ...]] = Counter()
    for row in (row for batch in batches for row in batch.rows):
        parts = {
            number: tuple(
                tuple(values[row.row.branch_ids == number].tolist())
                for values in (row.row.input_ids, row.row.time_ids, row.loss_mask)
            )
            for number in row.row.branch_ids.unique().tolist()
        }
        main = parts.pop(0, ((), (), ()))
        found.update((number, main[:2], *part) for number, part in parts.items() if any(part[2]))
        found.update([("main", *main)] if any(main[2]) else [])
    return found


@pytest.mark.parametrize(
    ("size", "accumulation", "world_size", "most"),
    [(2, 6, 1, 4), (1, 4, 3, 4), (4, 1, 3, 2), (1, 3, 1, 5), (3, 1, 2, 4), (2, 2, 1, 5), (5, 2, 2, 3)],
)
@pytest.mark.parametrize("more", [{}, {"block_records": 6}, {"shuffle": False}])
def test_a_step_is_the_same_however_it_is_divided(
    size: int, accumulation: int, world_size: int, most: int, more: dict[str, Any], tmp_path: Path
) -> None:
    """In small batches and several processes, rows cut where they are larger than a batch, or than a step."""
    source = write(tmp_path / "d", RECORDS + LOOSE)
    whole = dataset(source, most=most, size=size * accumulation * world_size, learn_main=True, epochs=2, **more)
    expected = list(whole)
    steps: list[list[MicroBatch]] = [[] for _ in expected]
    for rank in range(world_size):
        share = Share(rank=rank, world_size=world_size, accumulation=accumulation)
        part = dataset(source, most=most, size=size, learn_main=True, epochs=2, share=share, **more)
        batches = list(part)
        assert len(batches) == accumulation * len(expected)
        for place, batch in enumerate(batches):
            steps[place // accumulation].append(batch)
            assert sum(len(set(row.row.branch_ids.tolist()) - {0}) for row in batch.rows) <= size
        assert replace(part.counts, **_OF_BATCHES) == replace(whole.counts, **_OF_BATCHES)
        if "block_records" not in more:
            assert part.steps(2) == len(expected)
    for step, batch in zip(steps, expected, strict=True):
        assert of_step(step) == of_step([batch])
        assert {name: step[-1].state[name] for name in ("epoch", "block", "steps")} == {
            name: batch.state[name] for name in ("epoch", "block", "steps")
        }


def test_rows_whose_branches_see_one_another_stay_whole(tmp_path: Path) -> None:
    """A row that is larger than a batch is a batch; a step has no more branches than so many batches."""
    source = write(tmp_path / "d", RECORDS)
    share = Share(accumulation=4)
    batches = list(dataset(source, most=5, size=3, share=share, whole_rows=True))
    rows = [row for batch in batches for row in batch.rows if bool(row.loss_mask.any())]
    alone = [row for batch in dataset(source, most=5, size=100) for row in batch.rows]
    assert Counter(str(row.row.input_ids.tolist()) for row in rows) == Counter(
        str(row.row.input_ids.tolist()) for row in alone
    )
    for start in range(0, len(batches), 4):
        sizes = [len(row.row.branch_ids.unique()) - 1 for b in batches[start : start + 4] for row in b.rows]
        assert 1 <= sum(size for size in sizes if size > 0) <= 12
        for batch in batches[start : start + 4]:
            branches = sum(len(row.row.branch_ids.unique()) - 1 for row in batch.rows)
            assert branches <= 3 or len(batch.rows) == 1


def test_the_place_in_the_data_is_not_taken_for_steps_of_another_size(tmp_path: Path) -> None:
    source = write(tmp_path / "d", RECORDS)
    state = next(iter(dataset(source, size=4))).state
    dataset(source, size=2, share=Share(accumulation=2)).load_state_dict(state)
    with pytest.raises(SettingsError, match="with steps of 4 branches, and this one has steps of 8 branches"):
        dataset(source, size=4, share=Share(accumulation=2)).load_state_dict(state)


def test_what_is_cut_or_dropped_is_counted_and_strict_makes_it_an_error(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"main": "m", "branches": ["x" * 20, "short", {"prompt": "p" * 12, "completion": "never"}]},
        {"main": "m" * 40, "branches": ["a"]},
        {"main": "m" * 30, "branches": ["bc"]},
    ]
    source = write(tmp_path / "d", rows)
    stream = dataset(source, max_seq_len=10, encoder={"max_model_len": 33}, limits={"max_tokens": 31})
    list(stream)
    counts = stream.counts
    assert (counts.records, counts.rows, counts.branches) == (3, 1, 2)
    assert (counts.cut_branches, counts.cut_tokens) == (2, 11 + 8)
    assert (counts.dropped_branches, counts.dropped_records) == (2, 2)
    assert counts.tokens == 1 + 10 + 6
    assert counts.supervised_tokens == 10 + 6
    notes = " | ".join(counts.notes)
    for part in (
        'line 1: "branches"[0] has 21 tokens, cut to 10 (--max_seq_len)',
        'line 1: "branches"[2] has no supervised token',
        "line 2: main has 40 tokens, the model has 33 positions",
        'line 3: "branches"[0] has 3 tokens and does not fit beside a main of 30 in a row of 31',
    ):
        assert part in notes
    for number, more in ((1, {}), (2, {"max_seq_len": 64}), (3, {"max_seq_len": 64})):
        one = write(tmp_path / "one", rows[number - 1 : number])
        strict = {"encoder": {"max_model_len": 33, "strict": True}, "limits": {"max_tokens": 31}}
        with pytest.raises(DataError, match="--strict allows no loss"):
            list(dataset(one, **({"max_seq_len": 10} | more | strict)))


@pytest.mark.parametrize(("sees_main", "expected"), [(True, (9, 1)), (False, (7, 3))])
def test_first_tokens_that_follow_from_nothing_are_counted(
    sees_main: bool, expected: tuple[int, int], tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [
        {"main": "m", "branches": ["ab", {"prompt": "", "completion": "c"}, {"prompt": "p", "completion": "d"}]},
        {"text": "ef"},
    ]
    stream = dataset(write(tmp_path / "d", rows), most=3, encoder={"sees_main": sees_main})
    batches = list(stream)
    assert (stream.counts.supervised_tokens, stream.counts.unpredicted_tokens) == expected
    visibility: Any = "isolated" if sees_main else "strict"
    collated = [ParallelPretrainCollator(0, visibility=visibility)(batch)["info"] for batch in batches]
    assert sum(info.supervised_tokens for info in collated) == expected[0]


def test_data_without_a_supervised_token_is_an_error(tmp_path: Path) -> None:
    for block in (None, 2):
        with pytest.raises(DataError, match="has no records"):
            list(dataset(write(tmp_path / "empty", []), block_records=block))
        long = write(tmp_path / "long", [{"main": "", "branches": [{"prompt": "p" * 9, "completion": "c"}]}])
        with pytest.raises(DataError, match=r"none of its 1 records leaves a supervised token.*line 1"):
            list(dataset(long, block_records=block, max_seq_len=5, epochs=None))


def test_a_bad_row_names_file_line_and_field(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    for bad, message in (
        ("{", "line 3 is not valid JSON"),
        ('{"main": "m", "branches": [null]}', r'line 3: "branches"\[0\] is null'),
        ('{"text": "~"}', "line 3: the tokenizer gives token 96, the model has 90 tokens"),
    ):
        path.write_text('{"text": "ab"}\n\n' + bad + "\n")
        with pytest.raises(DataError, match=f"data.jsonl {message}"):
            list(dataset(JsonlSource(path), encoder={"vocab_size": 90}))


def test_hugging_face_datasets(tmp_path: Path) -> None:
    rows = [{"main": "m", "branches": [{"prompt": "p", "completion": c}]} for c in "abcde"]
    expected = contents(list(dataset(write(tmp_path / "d.jsonl", rows), shuffle=False)))
    # Arrow gives every row every column; those that a row does not have are null.
    Dataset.from_list([row | {"text": None} for row in rows]).save_to_disk(tmp_path / "saved")
    folder = tmp_path / "folder"
    folder.mkdir()
    Dataset.from_list(rows).to_json(folder / "part.jsonl")
    for name, streaming in ((tmp_path / "saved", False), (tmp_path / "saved", True), (folder, False), (folder, True)):
        source = HubSource(str(name), None, split="train", streaming=streaming)
        assert contents(list(dataset(source, shuffle=False))) == expected
        assert [row.index for row in source.read(3)] == [3, 4]
    limited = HubSource(str(folder), None, split="train", streaming=True, max_records=4)
    assert [row.index for row in limited.read(2)] == [2, 3]
    with pytest.raises(SettingsError, match=r"--hf_dataset .*missing.*not loadable"):
        HubSource(str(tmp_path / "missing"), None, split="train", streaming=False)
    with pytest.raises(SettingsError, match="split other"):
        HubSource(str(folder), None, split="other", streaming=False)


def test_a_filtered_source_keeps_the_numbers(tmp_path: Path) -> None:
    source = FilteredSource(write(tmp_path / "d", LOOSE), lambda index: index % 2 == 1)
    assert [row.index for row in source.read()] == [1, 3]
    assert [row.index for row in source.read(2)] == [3]


def test_training_and_inference_encode_alike() -> None:
    assert encode_main(TOKENIZER, "ab") == ids("ab")
    assert encode_parts(TOKENIZER, ["ab", "", "c", "ab"]) == {"": [], "ab": ids("ab"), "c": ids("c")}
    assert closed(TOKENIZER, ids("ab")) == [*ids("ab"), TOKENIZER.eos_token_id]
    assert closed(TOKENIZER, [3, TOKENIZER.eos_token_id]) == [3, TOKENIZER.eos_token_id]
    assert closed(TOKENIZER, []) == [TOKENIZER.eos_token_id]


def test_from_a_file_with_the_names_of_the_flags(tmp_path: Path) -> None:
    """The same batches as from the parts, with the further settings passed on."""
    source = write(tmp_path / "d", RECORDS)
    short = ParallelPretrainDataset.from_jsonl(
        tmp_path / "d", TOKENIZER, max_seq_len=64, branches_per_sample=2, batch_size=4, seed=7
    )
    assert contents(list(short)) == contents(list(dataset(source, seed=7)))
