"""Flags from the descriptions of settings, and settings from the flags that were given."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from parallelmind.settings.setting import Described, Settings, described

_ORDER = (
    "", "files", "model", "loading", "LoRA", "branches", "data", "rows and batches", "sampling", "running", "workers",
)  # fmt: skip
"""The headings of the help, those of all commands in one order; others follow."""
_METAVARS = {int: "N", float: "X", Path: "FILE"}


def add_settings(parser: argparse.ArgumentParser, *classes: type[Settings], leave_out: Collection[str] = ()) -> None:
    """Add the flags of classes of settings under the headings that the settings name; of two alike the first counts.

    What is not given is not in the namespace, so that a preset or a config file can tell.
    """
    chosen: dict[str, Described] = {}
    for cls in classes:
        for one in described(cls):
            if one.setting.flag is not None and one.name not in leave_out:
                chosen.setdefault(one.name, one)
    titles = {one.setting.group: None for one in chosen.values()}
    for title in sorted(titles, key=lambda title: _ORDER.index(title) if title in _ORDER else len(_ORDER)):
        group = parser.add_argument_group(title) if title else parser
        for one in chosen.values():
            if one.setting.group == title:
                _add_flag(group, one)


def given(args: argparse.Namespace, cls: type[Settings]) -> dict[str, Any]:
    """The settings of a class that were given as flags."""
    values = {one.name: getattr(args, one.name) for one in described(cls) if hasattr(args, one.name)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def help_of(one: Described) -> str:
    """The help of a setting, with its default."""
    text = one.setting.help
    if one.kind is tuple and one.setting.flag is not None and one.setting.flag.form != "list":
        text += "; may be given several times"
    if one.required or isinstance(one.default, bool):
        return text if _is_switch(one) or one.required else documented_default(text, str(one.default).lower())
    shown = f"{one.default:g}" if isinstance(one.default, float) else str(one.default)
    if one.default is None or one.default == ():
        shown = one.setting.default or "none"
    return documented_default(text, shown)


def documented_default(text: str, value: object) -> str:
    """Help of a flag with what holds where it is not given."""
    return f"{text} (default: {value})"


def _add_flag(group: argparse._ActionsContainer, one: Described) -> None:
    flag = one.setting.flag
    assert flag is not None
    taken = group._option_string_actions
    spellings = [f"--{one.name}", *(name for name in flag.also if name not in taken)]
    options: dict[str, Any] = {"dest": one.name, "default": argparse.SUPPRESS, "help": help_of(one)}
    if _is_switch(one):
        if flag.form == "pair":
            pair = group.add_mutually_exclusive_group()
            pair.add_argument(*spellings, action="store_true", **options)
            off = options | {"help": f"the opposite of --{one.name}"}
            pair.add_argument(f"--no_{one.name}", action="store_false", **off)
        elif one.default is True:
            group.add_argument(f"--no_{one.name}", action="store_false", **options)
        else:
            group.add_argument(*spellings, action="store_true", **options)
        return
    kind = one.item if one.kind is tuple else one.kind
    choices = "{" + ",".join(one.choices) + "}" if one.choices else ""
    options["metavar"] = choices or flag.metavar or ("BOOL" if kind is bool else _METAVARS.get(kind, "TEXT"))
    options["type"] = _parser_of(one)
    if one.kind is tuple:
        options |= {"nargs": "+"} if flag.form == "list" else {"action": "append"}
    group.add_argument(*spellings, required=one.required, **options)


def _is_switch(one: Described) -> bool:
    return one.kind is bool and one.setting.flag is not None and one.setting.flag.form != "value"


def _parser_of(one: Described) -> Callable[[str], Any]:
    parse = one.parse_item if one.kind is tuple else one.parse_text

    def parsed(text: str) -> Any:
        try:
            value = parse(text)
            return one.check(value) if one.choices else value
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"--{one.name} {error}") from None

    return parsed
