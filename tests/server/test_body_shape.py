"""What a body holds is counted without parsing it, whatever pieces it comes in."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallelmind.server.body_shape import BodyShape, ShapeLimits
from parallelmind.server.problems import ApiError

_TEXT = st.text(st.sampled_from('"\\{[]},:a é\n\ud800\x00'), max_size=8)
_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), _TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(_TEXT, inner, max_size=5)),
    max_leaves=20,
)


def holds(value: Any, limits: ShapeLimits) -> bool:
    """Whether a value holds as much as the limits allow, found by going through it."""
    containers = fields = commas = deepest = 0

    def walk(one: Any, depth: int) -> None:
        nonlocal containers, fields, commas, deepest
        if isinstance(one, dict | list):
            containers += 1
            commas += max(0, len(one) - 1)
            deepest = max(deepest, depth + 1)
            fields += len(one) if isinstance(one, dict) else 0
            for inner in one.values() if isinstance(one, dict) else one:
                walk(inner, depth + 1)

    walk(value, 0)
    return (
        containers <= limits.containers
        and fields <= limits.fields
        and commas < limits.values
        and deepest <= limits.depth
    )


def passes(raw: bytes, limits: ShapeLimits, rng: random.Random | None = None) -> bool:
    shape, start = BodyShape(limits), 0
    found: ApiError | None = None
    try:
        while start < len(raw):
            size = len(raw) if rng is None else rng.choice([1, 1, 2, 3, 7, 50])
            shape.feed(raw[start : start + size])
            start += size
    except ApiError as error:
        found = error
    assert found is None or (found.status == 400 and "send less" in found.message)
    return found is None


@given(_VALUES, st.randoms(use_true_random=False), st.booleans(), st.integers(1, 6))
def test_a_body_passes_if_it_holds_no_more_than_it_may(
    value: Any, rng: random.Random, ascii_only: bool, most: int
) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    for limits in (
        ShapeLimits(values=most),
        ShapeLimits(depth=most),
        ShapeLimits(containers=most),
        ShapeLimits(fields=most),
    ):
        assert passes(raw, limits, rng) == holds(value, limits)


@pytest.mark.parametrize(
    ("raw", "ok"),
    [
        (b"[" + b"1" * 1000 + b"]", True),
        (b"[" + b"1" * 1001 + b"]", False),
        (b"[-1." + b"0" * 997 + b"]", True),
        (b'{"a":' + b"9" * 5000, False),
        (b'{"a":"' + b"9" * 5000 + b'"}', True),
        (b"1,1," * 1000, True),
        (b'"' + b'\\"' * 5000, True),
    ],
    ids=lambda value: repr(value)[:20],
)
@pytest.mark.parametrize("seed", [None, 1])
def test_numbers_are_short(raw: bytes, ok: bool, seed: int | None) -> None:
    assert passes(raw, ShapeLimits(), None if seed is None else random.Random(seed)) == ok


def test_token_ids_up_to_the_context_are_taken() -> None:
    raw = json.dumps({"prompt": [1] * 500_000}).encode()
    assert not passes(raw, ShapeLimits())
    assert passes(raw, ShapeLimits().for_context(500_000))
