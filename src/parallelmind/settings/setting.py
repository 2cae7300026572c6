"""One description for each setting, from which everything that has to know about it is derived.

A settings class is a frozen dataclass whose fields are annotated with their type, their range and a `Setting`:

    @dataclass(frozen=True, kw_only=True)
    class Answering(Settings):
        temperature: Annotated[float, Ge(0), Le(100), Setting("how freely tokens are drawn")] = 0.7

Derived are the check of a value and what is said of a wrong one (here), the flag and its help (`cli/flags.py`), the
entry of a config file and the environment variable (`parse_text`), the field of an HTTP request (`server/schemas.py`),
the page docs/cli.md, and what makes a job or a run another one (`identity`). Types and ranges are those of pydantic and
annotated-types; pydantic checks the values.
"""

from __future__ import annotations

import functools
import json
import math
import operator
import os
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, astuple, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MinLen

from parallelmind.errors import ParallelMindError, SettingsError
from parallelmind.io.records import shorten

ENVIRONMENT_PREFIX = "PARALLELMIND_"


@dataclass(frozen=True, kw_only=True)
class Flag:
    """How a setting is spelled on the command line, where that does not follow from its type."""

    also: tuple[str, ...] = ()
    """Further spellings, such as `--output_dir`."""
    metavar: str = ""
    """Stands for the value in the help."""
    form: Literal["", "pair", "value", "list"] = ""
    """A boolean is a switch (`--name`, or `--no_name` if it is true by default), unless it is a "pair" of both or takes
    a "value", true or false. Several values are given with a flag each, unless one flag takes a "list" of them."""


@dataclass(frozen=True)
class Setting:
    """Everything about a setting besides its type, range and default."""

    help: str
    """What it does, as the help of the flag says it."""
    group: str = ""
    """The heading under which the help lists it; "" takes that of the class."""
    default: str = ""
    """What applies where the default is None, such as "the adapter's own"."""
    expected: str = ""
    """What a value must be, where the words do not follow from type and range."""
    note: str = ""
    """What a special value means, said with the range: "0 is no limit"."""
    identity: bool = True
    """Whether another value gives other results, and so makes another job or run."""
    choices: tuple[str, ...] = ()
    """The values there are, where the type, a Literal, does not say it."""
    secret: bool = False
    """Whether its value is never shown, as that of a key."""
    flag: Flag | None = Flag()
    """None: the command line has no such flag."""
    http: str = ""
    """What HTTP requests call it, where that is another name."""


@dataclass(frozen=True)
class Described:
    """A setting of a class: its `Setting`, and what the annotation says."""

    name: str
    setting: Setting
    type: Any
    """Without None: int, float, str, bool, Path, a Literal, tuple[…, ...] or a Mapping; with its range."""
    optional: bool
    """None is a value."""
    default: Any
    """MISSING: it must be given."""

    @property
    def kind(self) -> Any:
        """The type without its range: int for `Annotated[int, Ge(1)]`, tuple for `tuple[str, ...]`."""
        plain = _plain(self.type)
        origin = get_origin(plain)
        return plain if origin is None else origin

    @property
    def item(self) -> Any:
        """The type of each of several values, or of the keys of a mapping, without its range."""
        return _plain(get_args(_plain(self.type))[0])

    @property
    def choices(self) -> tuple[str, ...]:
        """The values there are; none: any of the type."""
        return get_args(_plain(self.type)) if self.kind is Literal else self.setting.choices

    @property
    def required(self) -> bool:
        return self.default is MISSING

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        words = self.setting.expected or _expected(self.type)
        if self.setting.choices:
            words = f"one of {', '.join(self.setting.choices)}"
        return f"{words} ({self.setting.note})" if self.setting.note else words

    def check(self, value: Any) -> Any:
        """The value, converted where nothing is lost (1 to 1.0, a text to a path).

        Raises:
            ValueError: it is of another type or out of range; the text says what it must be.
        """
        if value is None and self.optional:
            return None
        try:
            checked = self._adapter.validate_python(_converted(value, self), strict=True)
        except ValueError as error:  # pydantic's
            raise ValueError(self.refusal(value)) from error
        if self.setting.choices and checked not in self.setting.choices:
            raise ValueError(self.refusal(value))
        return checked

    def parse_text(self, text: str) -> Any:
        """The value that a text stands for, on a command line or in an environment variable; its range is not checked.

        Raises:
            ValueError: it stands for none.
        """
        if self.kind is tuple:
            return tuple(part.strip() for part in text.split(",") if part.strip())
        if self.kind is Mapping:
            return self._parse_object(text)
        return self.parse_item(text)

    def parse_item(self, text: str) -> Any:
        """The same for one of several values."""
        kind = self.item if self.kind is tuple else self.kind
        if kind is str or kind is Literal or "://" in text:  # the address of a remote file is no path
            return text
        if kind is Path:
            return Path(text)
        try:
            if kind is bool:
                return _BOOLEANS[text.strip().lower()]
            if "_" in text or not text.isascii():  # Python reads 1_000 and digits of any script
                raise ValueError
            return kind(text)
        except (ValueError, KeyError) as error:
            raise ValueError(self.refusal(text)) from error

    def refusal(self, value: Any) -> str:
        """What to say of a wrong value, after the name of the setting."""
        shown = "not right" if self.setting.secret else _shown(value)
        if self.kind is tuple and isinstance(value, tuple | list):
            is_valid = _check_of(get_args(_plain(self.type))[0])
            wrong = next((item for item in value if not is_valid(item)), MISSING)
            shown = f"{len(value)} values" if wrong is MISSING else _shown(wrong)
        kind = _KINDS.get(self.kind, "")
        if isinstance(value, float) and not math.isfinite(value):
            return f"is {shown}; it must be a finite number, {self.expected}.".replace("number, a number", "number")
        named = bool(self.setting.expected or not kind or kind in self.expected or _is_of(self.kind, value))
        return f"is {shown}; it must be {self.expected if named else f'{kind}, {self.expected}'}."

    def _parse_object(self, text: str) -> Any:
        try:
            value = json.loads(text)
        except ValueError as error:
            raise ValueError(f"is not JSON ({error}): {text}") from None
        if not isinstance(value, dict):
            raise ValueError(f"is {text}; it must be a JSON object.")
        return value

    @functools.cached_property
    def _adapter(self) -> Any:
        from pydantic import ConfigDict, TypeAdapter

        return TypeAdapter(self.type, config=ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True))


class Settings:
    """Base of dataclasses of settings: checks every value when an object is made.

    Raises:
        ParallelMindError: a value is of another type or out of range; of the class that `wrong_value` names.
    """

    wrong_value: ClassVar[type[ParallelMindError]] = SettingsError
    """What is raised for a wrong value."""
    spelling: ClassVar[str] = "--{name}"
    """How a message names a setting."""

    def __post_init__(self) -> None:
        for one in described(type(self)):
            try:
                object.__setattr__(self, one.name, one.check(getattr(self, one.name)))
            except ValueError as error:
                raise self.wrong_value(f"{self.spelled(one.name)} {error}") from None

    @classmethod
    def spelled(cls, name: str) -> str:
        """The name of a setting as messages have it."""
        return cls.spelling.format(name=name)

    def identity(self) -> dict[str, Any]:
        """The settings that make another job or run when they differ, as JSON values; a default counts as its value."""
        values = {one.name: getattr(self, one.name) for one in described(type(self)) if one.setting.identity}
        plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
        return plain

    @classmethod
    def identity_defaults(cls) -> dict[str, Any]:
        """The defaults of the settings in `identity`: what holds for a job of a version that did not have them yet."""
        values = {one.name: one.default for one in described(cls) if one.setting.identity and not one.required}
        plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
        return plain

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """The settings that variables such as PARALLELMIND_BASE_MODEL say; several values are separated by commas.

        Raises:
            SettingsError: a setting that is required is not there, or a value is wrong.
        """
        given = {}
        for one in described(cls):
            variable = ENVIRONMENT_PREFIX + one.name.upper()
            if text := environment.get(variable):
                try:
                    given[one.name] = one.check(one.parse_text(text))
                except ValueError as error:
                    raise SettingsError(f"{variable} {error}") from None
            elif one.required:
                raise SettingsError(f"{variable} is not set; set it to {one.setting.help}.")
        return cls(**given)


def described(cls: type[Settings]) -> tuple[Described, ...]:
    """The settings of a class, in their order."""
    if cls not in _DESCRIBED:
        _DESCRIBED[cls] = tuple(_describe(cls))
    return _DESCRIBED[cls]


_DESCRIBED: dict[type[Settings], tuple[Described, ...]] = {}


def _describe(cls: type[Settings]) -> Iterator[Described]:
    hints = get_type_hints(cls, include_extras=True)
    for field in fields(cls):  # type: ignore[arg-type]
        hint, optional, setting = _taken_apart(hints[field.name])
        if setting is not None:
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            yield Described(field.name, setting, hint, optional, default)


def names(cls: type[Settings]) -> list[str]:
    """The names of the settings of a class."""
    return [one.name for one in described(cls)]


def values_of(cls: type[Settings], source: Settings) -> dict[str, Any]:
    """What an object of a larger class says about the settings of a smaller one."""
    return {name: getattr(source, name) for name in names(cls)}


def _taken_apart(hint: Any) -> tuple[Any, bool, Setting | None]:
    """(type with its range but without None, whether None is a value, the `Setting`)."""
    setting: Setting | None = None
    kept: list[Any] = []
    optional = False
    while get_origin(hint) in (Annotated, types.UnionType, Union):
        if get_origin(hint) is Annotated:
            hint, *metadata = get_args(hint)
            setting = next((one for one in metadata if isinstance(one, Setting)), setting)
            kept = [*(one for one in metadata if not isinstance(one, Setting)), *kept]
            continue
        parts = get_args(hint)
        optional = optional or type(None) in parts
        # One value may stand for a list of one: `tuple[str, ...] | str`.
        several = [part for part in parts if get_origin(part) is tuple]
        rest = several or [part for part in parts if part is not type(None)]
        if setting is None and len(rest) > 1:  # a field that is no setting
            break
        [hint] = rest
    for one in kept:
        hint = Annotated[hint, one]
    return hint, optional, setting


def _plain(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _converted(value: Any, one: Described) -> Any:
    if one.kind is tuple:
        several = (value,) if isinstance(value, str | Path) or (one.item is int and _is_whole(value)) else value
        if several is None:
            several = ()
        if not isinstance(several, tuple | list):
            return several
        if one.item is int:
            return tuple(map(_as_int, several))
        return tuple(Path(item) if one.item is Path and isinstance(item, str) else item for item in several)
    if one.kind is Mapping and isinstance(value, Mapping) and one.item is int:
        return {_key(key): item for key, item in value.items()}
    if one.kind is Path and isinstance(value, str | os.PathLike):
        return Path(value)
    if one.kind in (int, float) and not isinstance(value, bool | int | float):
        return _as_int(value)
    return value


def _is_whole(value: Any) -> bool:
    return isinstance(_as_int(value), int) and not isinstance(value, bool)


def _as_int(value: Any) -> Any:
    """NumPy's whole numbers, and those of torch, as Python's; anything else as it is."""
    if isinstance(value, int | str) or getattr(value, "__index__", None) is None:
        return value
    try:
        return operator.index(value)
    except TypeError:  # an array or a tensor of several
        return value


def _key(key: Any) -> Any:
    """JSON has no keys but texts."""
    return int(key) if isinstance(key, str) and key.isascii() and key.isdigit() else _as_int(key)


_BOOLEANS = dict.fromkeys(("1", "true", "yes", "on"), True) | dict.fromkeys(("0", "false", "no", "off"), False)
_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", Path: "a path"}


def _shown(value: Any) -> str:
    """A wrong value in a message."""
    return shorten(repr(value))


def _expected(hint: Any) -> str:
    plain = _plain(hint)
    if get_origin(plain) is Literal:
        return f"one of {', '.join(map(str, get_args(plain)))}"
    if get_origin(plain) is tuple:
        return f"a list; each of it {_expected(get_args(plain)[0])}"
    limits = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    if any(isinstance(limit, MinLen) for limit in limits):
        return "a text that is not empty"
    ge, gt, le, lt = (
        next((astuple(limit)[0] for limit in limits if isinstance(limit, kind)), None) for kind in (Ge, Gt, Le, Lt)
    )
    low = "" if ge is gt is None else f"above {gt}" if ge is None else f"{ge} or more"
    high = "" if le is lt is None else f"below {lt}" if le is None else f"at most {le}"
    if ge is not None and high:
        return f"from {ge} to {high.removeprefix('at most ')}"
    return " and ".join(filter(None, (low, high))) or _KINDS.get(plain, "a JSON object")


def _check_of(hint: Any) -> Callable[[Any], bool]:
    """Whether a value is one of a type; the check is made once for many values."""
    from pydantic import TypeAdapter

    adapter = TypeAdapter(hint)

    def is_valid(value: Any) -> bool:
        try:
            adapter.validate_python(value, strict=True)
        except ValueError:
            return False
        return True

    return is_valid


def _is_of(kind: Any, value: Any) -> bool:
    """Whether a value is a number of this kind, so that its range says enough."""
    return kind in (int, float) and isinstance(value, kind | int) and not isinstance(value, bool)
