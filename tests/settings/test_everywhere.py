"""Every setting of every command: accepted or refused with the same words in Python, as a flag, and over HTTP."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import pytest
from annotated_types import Ge, Gt, Le, Lt

from parallelmind.cli.args import Parser, parse
from parallelmind.cli.commands import COMMANDS, prepare_parser
from parallelmind.cli.flags import given
from parallelmind.errors import ParallelMindError, RequestError, SettingsError
from parallelmind.server.schemas import SETTING_OF
from parallelmind.settings.sampling import SamplingParams, SamplingSettings
from parallelmind.settings.setting import MISSING, Described, Settings, described
from tests.server.serving import Running
from tests.settings.classes import CLASSES, settings_class

SAMPLING_COMMANDS = ("answer", "batch", "chat", "generate", "pipeline")
_NEEDED = {"show": ["records.jsonl"], "check-code": ["file.py"], "generate": ["--prompt=x"]}


def parser_of(command: str) -> Parser:
    parser = Parser(prog=f"parallelmind {command}")
    prepare_parser(parser, command)
    return parser


def flags_of(command: str) -> Iterator[tuple[type[Settings], Described]]:
    """The settings that a command has flags for, each with its class."""
    known = parser_of(command)._option_string_actions
    for path in CLASSES[command]:
        cls = settings_class(path)
        for one in described(cls):
            if one.setting.flag is not None and known.keys() & {f"--{one.name}", f"--no_{one.name}"}:
                yield cls, one


def limits(one: Described) -> tuple[Any, ...]:
    return getattr(one.type, "__metadata__", ())


def wrong_values(one: Described) -> Iterator[Any]:
    """Values just outside of the range, and of other types."""
    step = 1 if one.kind is int else 1e-3
    for limit in limits(one):
        if isinstance(limit, Ge):
            yield limit.ge - step
        elif isinstance(limit, Gt):
            yield limit.gt
        elif isinstance(limit, Le):
            yield limit.le + step
        elif isinstance(limit, Lt):
            yield limit.lt
    if one.kind is float:
        yield from (math.nan, math.inf, -math.inf)
    if one.kind is int:
        yield 1.5
    if one.kind is Literal:
        yield "something else"


def right_values(one: Described) -> Iterator[Any]:
    """The limits themselves."""
    for limit in limits(one):
        if isinstance(limit, Ge):
            yield limit.ge
        elif isinstance(limit, Le):
            yield limit.le
    yield from one.choices


def refused_in_python(cls: type[Settings], one: Described, value: Any) -> str:
    needed = {
        field.name: "x"
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if field.default is MISSING and field.default_factory is MISSING
    }
    with pytest.raises(cls.wrong_value) as caught:
        cls(**needed | {one.name: value})
    return str(caught.value)


def test_every_command_with_settings_is_walked() -> None:
    """A command that is not here has no flag with a default or a value of its own to check."""
    simple = {"batch-export", "batch-import", "check-workers", "corpus", "demo", "demo-rag", "demo-train", "job"}
    assert set(COMMANDS) - set(CLASSES) <= simple


@pytest.mark.parametrize("command", CLASSES)
def test_a_wrong_value_is_refused_with_the_same_words(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = parser_of(command)
    required = {name for name, action in parser._option_string_actions.items() if action.required}
    for cls, one in flags_of(command):
        others = [f"{name}=x" for name in required - {f"--{one.name}"}]
        for value in wrong_values(one):
            words = one.refusal(value)
            assert refused_in_python(cls, one, value) == f"{cls.spelled(one.name)} {words}"
            if one.choices:  # argparse names the choices itself
                continue
            try:
                args = parse(parser, [*others, *_NEEDED.get(command, ()), f"--{one.name}={value}"])
            except SystemExit:  # a text that stands for no value of this type
                assert f"error: --{one.name} {one.refusal(str(value))} (" in capsys.readouterr().err
                continue
            found = given(args, cls)[one.name]
            assert refused_in_python(cls, one, found) == f"--{one.name} {one.refusal(found)}"


@pytest.mark.parametrize("command", CLASSES)
def test_the_limits_themselves_are_taken(command: str) -> None:
    for _, one in flags_of(command):
        for value in right_values(one):
            assert one.check(value) == value
            assert one.parse_item(str(value)) == value


@pytest.mark.parametrize("command", SAMPLING_COMMANDS)
def test_every_command_that_samples_has_all_sampling_settings(command: str) -> None:
    flags = parser_of(command)._option_string_actions
    assert {f"--{one.name}" for one in described(SamplingSettings)} <= set(flags)


@pytest.mark.parametrize("one", described(SamplingSettings), ids=lambda one: one.name)
def test_http_refuses_with_the_words_of_python(one: Described, server: Running) -> None:
    name = one.setting.http or one.name
    of_mappings = [{"x": 1}, {"5": 100.5}, {"-1": 1}, [5]]
    for value in [*wrong_values(one), True, "x", *(of_mappings if one.kind is Mapping else [{}])]:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if (is_number and not math.isfinite(value)) or (one.kind in (bool, tuple) and isinstance(value, bool | str)):
            continue  # not JSON, or a right value
        with pytest.raises(RequestError) as caught:
            SamplingParams(**{one.name: value})
        answer = server.post("/v1/branches", {"main": "a", "branches": [{"prompt": "b"}], name: value})
        assert answer.status == 400
        assert answer.error["message"] == str(caught.value).replace(one.name, name, 1)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/generate", "max_new_tokens"),
        ("/v1/chat/completions", "max_completion_tokens"),
        ("/v1/branches", "visibility"),
    ],
)
def test_other_names_of_a_setting_are_refused_with_its_words(path: str, name: str, server: Running) -> None:
    needed = {
        "/generate": {"prompt": "a"},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
        "/v1/branches": {"main": "a", "branches": [{"prompt": "b"}]},
    }
    for value in (0, True, "x"):
        answer = server.post(path, needed[path] | {name: value})
        assert answer.status == 400
        assert answer.error["message"] == f"{name} {SETTING_OF[name].refusal(value)}"


@pytest.mark.parametrize("value", ["", [""], ["a", ""], ["a"] * 65])
def test_http_names_the_field_of_wrong_stops(value: Any, server: Running) -> None:
    answer = server.post("/v1/branches", {"main": "a", "branches": [{"prompt": "b"}], "stop": value})
    assert (answer.status, answer.error["param"], answer.error["code"]) == (400, "stop", "invalid_value")
    assert answer.error["message"].endswith("it must be at most 64 texts that are not empty.")
    assert len(answer.error["message"]) < 100


@pytest.mark.parametrize("text", ["1_000", "５", "٣"])
def test_numbers_are_written_in_plain_digits(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(parser_of("batch"), ["--base_model=x", "--data_path=x", "--out_path=x", f"--top_k={text}"])
    assert f"--top_k is {text!r}; it must be" in capsys.readouterr().err


def test_the_default_of_a_flag_is_that_of_python() -> None:
    """A namespace holds what was given alone, so that a preset or a config file can tell."""
    for command, paths in CLASSES.items():
        parser = parser_of(command)
        parser_defaults = {action.dest for action in parser._actions if action.default is not argparse.SUPPRESS}
        for path in paths:
            for one in described(settings_class(path)):
                if one.setting.flag is not None and f"--{one.name}" in parser._option_string_actions:
                    assert one.name not in parser_defaults, (command, one.name)


def test_spelling_out_a_default_changes_no_identity() -> None:
    for paths in CLASSES.values():
        for path in paths:
            cls = settings_class(path)
            every = described(cls)
            if any(one.required for one in every) or cls.__name__ in ("TrainOptions", "AnswerOptions"):
                continue
            spelled_out = {one.name: one.default for one in every if one.default is not MISSING}
            assert cls(**spelled_out).identity() == cls().identity()


def test_messages_name_the_setting_as_its_entrance_spells_it() -> None:
    assert issubclass(SettingsError, ParallelMindError)
    with pytest.raises(RequestError, match=r"^top_p is 2; it must be above 0 and at most 1\.$"):
        SamplingParams(top_p=2)
    with pytest.raises(SettingsError, match=r"^--top_p is 2; it must be above 0 and at most 1\.$"):
        settings_class("cli.single.SingleOptions")(base_model="m", top_p=2)
