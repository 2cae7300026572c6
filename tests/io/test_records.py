import pytest

from parallelmind.errors import DataError
from parallelmind.io.jsonl import JsonLine
from parallelmind.io.records import parse_record, quoted, salvage_fields


def line(content: str | bytes, *, size: int | None = None) -> JsonLine:
    raw = content.encode() if isinstance(content, str) else content
    return JsonLine(index=0, number=7, content=raw, size=size or len(raw))


def test_main_and_branches() -> None:
    record = parse_record(line('{"main": "m", "branches": ["a", {"prompt": "b", "note": 1}, ""], "answers": []}'))
    assert (record.main, record.branches, dict(record.fields)) == ("m", ("a", "b", ""), {})
    assert record.inputs == ("a", "b", "")


def test_a_main_of_one_branch_stands_before_its_prompt() -> None:
    branches = '[{"main": "own ", "prompt": "a"}, {"main": "own", "prompt": ""}, {"main": null, "prompt": "b"}]'
    assert parse_record(line(f'{{"main": "", "branches": {branches}}}')).branches == ("own a", "own", "b")


def test_text_is_main_with_one_continuation() -> None:
    record = parse_record(line('{"text": "早上好", "id": 0}'))
    assert (record.main, record.branches, record.inputs) == ("早上好", (), ("早上好",))
    assert record.fields == {"id": 0}


def test_branches_without_a_main_are_prompts_of_their_own() -> None:
    assert parse_record(line('{"main": "", "branches": ["a"]}')).branches == ("a",)


@pytest.mark.parametrize("depth", [700, *range(930, 1010)])
def test_no_depth_at_which_too_long_an_integer_stands_ends_the_job(depth: int) -> None:
    with pytest.raises(DataError, match="line 7"):
        parse_record(line(f'{{"text": "a", "n": {"[" * depth}{"9" * 5000}{"]" * depth}}}'))


@pytest.mark.parametrize("value", ["9" * 5000, "-" + "9" * 5000, '[1, {"deep": ' + "9" * 5000 + "}]"])
def test_an_integer_too_long_for_python_is_told_with_its_line_and_field(value: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_record(line(f'{{"text": "a", "id": 1, "n": {value}}}'))
    assert str(caught.value) == (
        'line 7: "n" holds an integer of more than 4,300 digits, which cannot be read; write it as a text.'
    )


BAD = {
    "": "not valid JSON",
    "{": "not valid JSON",
    '{"text": "a"} {"text": "b"}': "not valid JSON .*Extra data",
    '{"text": "a",}': "not valid JSON",
    "[1, 2]": r"is a list \(\[1, 2\]\); expected an object",
    "null": "is null; expected an object",
    '"text"': "is a text .*; expected an object",
    "3": r"is a number \(3\)",
    "{}": r'has no "main" and "branches" \(found: no fields\)',
    '{"main": "m"}': r'has no "branches" \(found: "main"\); expected',
    '{"branches": ["b"]}': 'has no "main"',
    '{"Main": "m", "branches": ["b"]}': r'has no "main" \(found: "Main", "branches"\)',
    '{"text": "a", "main": "m"}': 'has "text" and "main"; .*not both',
    '{"text": "a", "main": "m", "branches": ["b"]}': 'has "text" and "main" and "branches"',
    '{"text": ""}': '"text" is empty',
    '{"text": null}': '"text" is null; expected a text',
    '{"text": 3}': r'"text" is a number \(3\); expected a text',
    '{"text": ["a"]}': '"text" is a list',
    '{"main": 1, "branches": ["b"]}': '"main" is a number',
    '{"main": null, "branches": ["b"]}': '"main" is null',
    '{"main": "m", "branches": "b"}': r'"branches" is a text \("b"\); expected a list of texts',
    '{"main": "m", "branches": []}': '"branches" is empty; expected at least one text',
    '{"main": "m", "branches": {"a": "b"}}': '"branches" is an object',
    '{"main": "m", "branches": ["a", 2.5]}': r'"branches"\[1\] is a number \(2\.5\)',
    '{"main": "m", "branches": [true]}': r'"branches"\[0\] is a boolean \(true\)',
    '{"main": "m", "branches": [null]}': r'"branches"\[0\] is null',
    '{"main": "m", "branches": [{"text": "b"}]}': r'"branches"\[0\] has no "prompt"',
    '{"main": "m", "branches": [{"main": 4, "prompt": "a"}]}': r'"branches"\[0\]\."main" is a number \(4\)',
    '{"main": "m", "branches": [{"prompt": 4}]}': r'"branches"\[0\]\."prompt" is a number \(4\)',
    '{"main": "", "branches": ["a", ""]}': r'"branches"\[1\] is empty',
    '{"text": "a \\ud83d"}': '"text" has half of a surrogate pair',
    '{"text": "a", "id": NaN}': '"id" is nan',
    '{"text": "a", "id": ["\\ud83d"]}': '"id" is .*cannot carry',
    "[" * 100_000: "nested too deeply",
    '{"text": ' + "1" * 5000 + "}": '"text" holds an integer of more than 4,300 digits',
}


@pytest.mark.parametrize("content", BAD, ids=lambda content: content[:40])
def test_a_bad_row_names_line_field_value_and_what_is_expected(content: str) -> None:
    with pytest.raises(DataError, match=BAD[content]) as caught:
        parse_record(line(content))
    assert str(caught.value).startswith("line 7")
    assert len(str(caught.value)) < 400
    str(caught.value).encode()
    salvage_fields(line(content))["input"].encode()


def test_bytes_that_are_not_utf8_are_named() -> None:
    with pytest.raises(DataError, match=r"line 7 is not UTF-8 at byte 11 \(ff 22 7d\)"):
        parse_record(line(b'{"text": "\xff"}'))


@pytest.mark.parametrize(
    "content",
    [
        r'"\ud83d"',
        r'{"main": ["\ud83d"], "branches": ["b"]}',
        r'{"main": "m", "branches": {"\ud83d": 1}}',
        r'{"main": "m", "branches": ["b", ["\ud83d"]]}',
        r'{"\ud83d": 1}',
    ],
)
def test_what_is_said_of_half_characters_can_be_written_to_a_file(content: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_record(line(content))
    assert str(caught.value).startswith("line 7")
    str(caught.value).encode("utf-8")
    quoted(["\ud83d"]).encode("utf-8")


def test_names_of_fields_are_shown_as_they_are() -> None:
    with pytest.raises(DataError, match=r'found: "问题", "答案"'):
        parse_record(line('{"问题": "a", "答案": "b"}'))


def test_a_line_over_the_limit_is_refused_unparsed() -> None:
    with pytest.raises(DataError, match="line 7 has 300,000,000 bytes"):
        parse_record(line('{"text": "abc', size=300_000_000))


def test_what_can_be_saved_of_a_bad_row() -> None:
    assert salvage_fields(line('{"main": "m", "branches": [], "id": "x"}')) == {"input": "m", "id": "x"}
    assert salvage_fields(line('{"text": "a \\ud83d", "id": NaN}')) == {"input": "a ?"}
    assert salvage_fields(line('{"main": 3, "id": 0}')) == {"input": '{"main": 3, "id": 0}', "id": 0}
    broken = salvage_fields(line(b"\xff" + b"x" * 10_000))["input"]
    assert broken.startswith("\ufffdxxx")
    assert len(broken) <= 500
