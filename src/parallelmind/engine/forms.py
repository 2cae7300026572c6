"""What may be given as a prompt and as requests: texts, token ids in any container, conversations.

| form | as |
|---|---|
| a text | text |
| whole numbers in a list, tuple, NumPy array or tensor, of shape [S] or [1, S] | token ids |
| a list of `{"role", "content"}` | a conversation |
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from parallelmind.engine.request import Branch, Request
from parallelmind.errors import DataError, RequestError
from parallelmind.io.records import shorten
from parallelmind.prompts.conversation import Message, parse_messages

Conversation = tuple[Message, ...]
_FORMS = 'a text, a list of token ids, or a conversation, [{"role": "user", "content": "..."}]'


def requests_of(given: Any) -> Iterable[Any]:
    """What `generate` was given, as several: one of any form, also of a wrong one, is a list of one."""
    if isinstance(given, str | bytes | bytearray | memoryview | Mapping | Request | Branch) or _holds_numbers(given):
        return [given]
    if isinstance(given, list | tuple) and given and (_is_number(given[0]) or isinstance(given[0], Mapping)):
        return [given]
    return given if isinstance(given, Iterable) else [given]


def request_of(given: Any) -> Request:
    """One of these as a request: a prompt alone is continued as main.

    Raises:
        RequestError: it is no request and no prompt.
    """
    if isinstance(given, Request):
        return given
    if isinstance(given, Branch):
        raise RequestError("a Branch was given as a request; give Request(main=..., branches=[Branch(...)]).")
    return Request(main=prompt_of(given, "the request"))


def prompt_of(given: Any, name: str) -> str | list[int] | Conversation:
    """A prompt in one of three types.

    Raises:
        RequestError: it has another form; says so of `name`.
    """
    if isinstance(given, str):
        return str(given)
    if _holds_numbers(given):
        return _ids_of_array(given, name)
    if isinstance(given, Mapping):
        raise RequestError(f"{name} is an object with {shorten(repr(list(given)))}; give a Request, or its input_ids.")
    if not isinstance(given, Sequence) or isinstance(given, bytes | bytearray | memoryview):
        raise RequestError(f"{name} is {shorten(repr(given))}; it must be {_FORMS}.")
    if given and isinstance(given[0], Mapping):
        try:
            return parse_messages(given, name)
        except DataError as error:
            raise RequestError(str(error)) from error
    if len(given) == 1 and (_holds_numbers(given[0]) or isinstance(given[0], list | tuple)):
        return prompt_of(given[0], name)
    if all(type(one) is int for one in given):
        return list(given)
    return [_id_of(one, place, name) for place, one in enumerate(given)]


def _holds_numbers(given: Any) -> bool:
    """Whether it is an array of NumPy or a tensor, and not one of texts or objects."""
    return hasattr(given, "dtype") and hasattr(given, "tolist") and getattr(given.dtype, "kind", "i") not in "USO"


def _is_number(given: Any) -> bool:
    return isinstance(given, bool | int | float) or (_holds_numbers(given) and not given.shape)


def _ids_of_array(given: Any, name: str) -> list[int]:
    shape, kind = list(given.shape), str(given.dtype).removeprefix("torch.")
    if not kind.startswith(("int", "uint")):
        raise RequestError(f"{name} is an array of {kind}; token ids are whole numbers.")
    if len(shape) != 1 and not (len(shape) == 2 and shape[0] == 1):
        raise RequestError(
            f"{name} is an array of shape {shape}; token ids have the shape [S] or [1, S]. Give several prompts as a "
            "list of arrays, without the padding of a batch."
        )
    if "meta" in str(getattr(given, "device", "")):
        raise RequestError(f"{name} is a tensor on the meta device, which has no values; give token ids.")
    ids: list[int] = given.reshape(-1).tolist()
    return ids


def _id_of(given: Any, place: int, name: str) -> int:
    scalar = not isinstance(given, bool) and _is_number(given) and "bool" not in str(getattr(given, "dtype", ""))
    try:
        if scalar:
            return operator.index(given)
    except TypeError:  # a number with a fraction
        pass
    raise RequestError(f"{name}[{place}] is {shorten(repr(given))}; token ids are whole numbers.")
