"""What texts about changes tell to use, and instead of which name."""

from __future__ import annotations

import pytest

from parallelmind.retrieval.advice import advised, advised_instead, names_in


def told(text: str) -> dict[str, list[str]]:
    mentions = names_in(text)
    found = [(mention.name, advised_instead(text, mentions, place)) for place, mention in enumerate(mentions)]
    return {name: others for name, others in found if others}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`seal` is removed, use `shutil.seal` instead.", {"seal": ["shutil.seal"]}),
        ("Use `box.Lid()` instead of `box.Cover()`, and `x=...` instead of `y=...`.", {"box.Cover": ["box.Lid"]}),
        ("Drop `Old`, `Older`, replaced by `New`, `Newer`.", {"Old": ["New"], "Older": ["Newer"]}),
        ("`Old` and `Older` were dropped in favour of `New`.", {"Old": ["New"], "Older": ["New"]}),
        ("`crate.from_json` is replaced by `crate.read(name, load=f)`.", {"crate.from_json": ["crate.read"]}),
        ("Rename `getvalue` to `get_value`. `getvalue` stays.", {"getvalue": ["get_value"]}),
        ("Removed: `box.blur`. Use instead: `filters.Blur`.", {"box.blur": ["filters.Blur"]}),
        ("`a_size` is deprecated; use `a_box` or `a_length`.", {"a_size": ["a_box", "a_length"]}),
        # What stands in brackets belongs to the name before it alone.
        ("`box.a` (use `x.a`), `box.b`, `box.c` (use `x.c`)", {"box.a": ["x.a"], "box.c": ["x.c"]}),
        ("OldThing has been renamed to NewThing", {"OldThing": ["NewThing"]}),
        ("instead of `get_extent`, use `.Box.get_bbox`, which returns a `.Bbox`", {"get_extent": ["Box.get_bbox"]}),
        ("assert_same is gone; `from box.utils import same`", {}),
        ("`a_b` and `c_d` are removed; use `e_f`, `g_h` and `i_j`.", {}),  # which for which is not said
        ("`box.Crate` now accepts `planks`. `box.fold` was faster than `box.glue`.", {}),
        ("`box.tape` no longer uses `box.glue`.", {}),
        ("The `size` argument of `box.tape` is deprecated in favor of `width`.", {"size": ["width"]}),
        ("It returns a `Lid` rather than a `Cover`, as `Cover` is deprecated.", {}),
        ("Deprecated name: `box.num`. Identical to: `int`.", {"box.num": ["int"]}),
        ("Deprecate `box.Cover` and move the module to `lids.Lid`.", {"box.Cover": ["lids.Lid"]}),
    ],
)
def test_instead(text: str, expected: dict[str, list[str]]) -> None:
    assert told(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("'Tape' is deprecated. Use 'Glue' instead.", [["Glue"]]),
        ("1.4; Use :meth:`_box.Crate.seal` instead", [["_box.Crate.seal"]]),
        ("'Tape' is deprecated. 'Glue' now does it.", [["Glue"]]),
        ("`tape` is deprecated. Use `from box.paper import glue` instead.", [["box.paper.glue"]]),
        ("use glue_all, glue_one or nail_all instead", [["glue_all", "glue_one", "nail_all"]]),
        ("size; box or length", [["box", "length"]]),
        ("since 1.4; alternative: All sealing is done by others", []),
        ("Use a lock inside the function if needed.", []),
        (
            "`np.float` was a deprecated alias for the builtin `float`. Use `float` by itself. If you wanted the scalar"
            " type, use `np.float64` here.",
            [["float"], ["np.float64"]],
        ),
        ("since 1.4", []),
        ("`.Tape` is deprecated.; __init__", []),
    ],
)
def test_advised(text: str, expected: list[list[str]]) -> None:
    assert advised(text) == expected
