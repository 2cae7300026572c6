"""What `load_model_with_lora` returns, taken apart in every way that Python has."""

from __future__ import annotations

import copy
import pickle
import sys
from typing import Any

import pytest

from parallelmind.models.loader import LoadedModel
from parallelmind.models.sidecar import RopeSettings

THREE = ("model", "tokenizer", True)


@pytest.fixture
def loaded() -> LoadedModel:
    value = LoadedModel(THREE)
    value.settings, value.notes = RopeSettings(ratio=0.25), ["a note"]
    return value


def test_two_targets_get_model_and_tokenizer(loaded: LoadedModel) -> None:
    a, b = loaded
    assert (a, b) == THREE[:2]
    [c, d] = loaded
    assert (c, d) == THREE[:2]
    (e, f), g = loaded, 1
    assert (e, f, g) == (*THREE[:2], 1)
    for h, i in [loaded, loaded]:
        assert (h, i) == THREE[:2]
    assert [j + k for j, k in [loaded]] == ["modeltokenizer"]
    assert {j: len(k) for j, k in [loaded]} == {"model": 9}
    assert [j for j, _ in (loaded for _ in range(2))] == ["model"] * 2


def test_three_targets_get_all(loaded: LoadedModel) -> None:
    a, b, c = loaded
    assert (a, b, c) == THREE
    (d, e, f), g = loaded, 1
    assert (d, e, f, g) == (*THREE, 1)
    for h, i, j in [loaded]:
        assert (h, i, j) == THREE
    assert [k for _, _, k in [loaded]] == [True]


def test_everything_else_is_a_tuple_of_three(loaded: LoadedModel) -> None:
    a, *rest = loaded
    assert [a, *rest] == list(THREE)
    a, b, *rest = loaded
    assert rest == [True]
    assert list(loaded) == [*loaded] == list(THREE)
    assert tuple(loaded) == (*loaded,) == THREE == loaded
    assert (lambda *values: values)(*loaded) == THREE
    first, second, third = map(str, loaded)
    assert (first, second, third) == ("model", "tokenizer", "True")
    assert len(loaded) == 3
    assert (loaded[0], loaded[1], loaded[2], loaded[-1]) == (*THREE, True)
    assert (loaded.model, loaded.tokenizer, loaded.patch_rope) == THREE
    assert [value for value in loaded] == list(THREE)  # noqa: C416  (the loop is what is tested)
    match loaded:
        case (a, b):
            raise AssertionError("matched two")
        case (a, b, c):
            assert (a, b, c) == THREE
    with pytest.raises(ValueError, match="values to unpack"):
        a, b, c, _d = loaded  # type: ignore[misc, unused-ignore]


def test_under_a_tracer(loaded: LoadedModel) -> None:
    """Debuggers and coverage replace instructions by others that report to them."""

    def both() -> list[Any]:
        a, b = loaded
        c, d, e = loaded
        return [a, b, c, d, e]

    def trace(*_: Any) -> Any:
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        values = both()
    finally:
        sys.settrace(before)
    assert values == [*THREE[:2], *THREE]
    assert all(both() == values for _ in range(100))  # and once the interpreter has specialised the instruction


def test_many_targets(loaded: LoadedModel) -> None:
    """258 = 2 + 256 targets: the low byte of the instruction's argument is 2 as well."""
    with pytest.raises(ValueError, match="expected 258, got 3"):
        exec(",".join(f"v{n}" for n in range(258)) + " = loaded", {"loaded": loaded})
    names: dict[str, Any] = {"loaded": loaded}
    exec("\n".join(f"v{n} = {n}" for n in range(300)) + "\nw0, w1 = loaded", names)
    assert (names["w0"], names["w1"]) == THREE[:2]


def test_without_frames(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an implementation of Python without frames, the documented three."""
    monkeypatch.delattr(sys, "_getframe")
    a, b, c = loaded
    assert (a, b, c) == THREE
    with pytest.raises(ValueError, match="too many"):
        a, b = loaded


def test_copies_keep_all(loaded: LoadedModel) -> None:
    for other in (copy.copy(loaded), copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        assert isinstance(other, LoadedModel)
        assert other == loaded
        assert (other.settings, other.notes) == (loaded.settings, loaded.notes)
