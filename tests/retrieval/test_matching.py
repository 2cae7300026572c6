from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallelmind.retrieval.matching import SimilarNames, find_exact, find_renamed, nearest_ancestor
from parallelmind.retrieval.renames import RenameTable, load_renames
from parallelmind.retrieval.store import CorpusStore
from parallelmind.retrieval.version_index import VersionIndex
from tests.retrieval.small_corpus import NEW, OLD, old_rows, write_small_corpus


@pytest.fixture
def old(store: CorpusStore) -> VersionIndex:
    return store.index("box", OLD)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("box.fold", "box.paper.fold"),
        ("box.paper.fold", "box.paper.fold"),
        ("box.Crate.seal", "box.core.crate.Crate.seal"),  # no alias: reached through the class
        ("box.fol", None),
        ("box.folder", None),
        ("fold", None),
        ("box.Crate.open.self", None),
        ("box.crate", None),
        ("", None),
    ],
)
def test_exact_is_equal_or_reached_and_never_a_part(old: VersionIndex, name: str, path: str | None) -> None:
    row = find_exact(old, name)
    assert (None if row is None else old.row(row).path) == path


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VersionIndex]:
    store = CorpusStore(write_small_corpus(tmp_path_factory.mktemp("shared")))
    yield store.index("box", OLD)
    store.close()


@settings(max_examples=150)
@given(data=st.data())
def test_no_part_and_no_extension_of_a_name_matches(shared: VersionIndex, data: st.DataObject) -> None:
    names = {name for row in old_rows() for name in row.names} | {"box.Crate.seal"}
    name = data.draw(st.sampled_from(sorted(names)))
    start = data.draw(st.integers(0, len(name)))
    end = data.draw(st.integers(start, len(name)))
    asked = name[start:end] + data.draw(st.sampled_from(["", "_", ".x", "s", "."]))
    assert (find_exact(shared, asked) is not None) == (asked in names)


def test_renamed_modules_are_found_in_both_directions(old: VersionIndex) -> None:
    table = RenameTable({}, {"box.sheets": ["box.nowhere", "box.paper"], "box.paper2": ["box.sheets"]}, {})
    row = find_renamed(old, "box.sheets.fold", table)
    assert row is not None
    assert old.row(row).path == "box.paper.fold"
    reverse = RenameTable({}, {"box.paper": ["box.sheets"]}, {})
    assert find_renamed(old, "box.sheets.fold", reverse) == row
    assert find_renamed(old, "box.other.fold", table) is None


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("box.flod", None),  # two letters changed of four: not like enough
        ("box.measureLenght", "box.measureLength"),
        ("box.measure_length", "box.measureLength"),
        ("box.crate.Crate.open", "box.core.crate.Crate.open"),
        ("Crate.open", "box.core.crate.Crate.open"),
        ("box.Crates.open", "box.core.crate.Crate.open"),
        ("box.wiegh", "box.weigh"),
        ("box.unheard", None),
        ("box.Crate.weigh", "box.weigh"),
    ],
)
def test_names_that_are_much_alike(old: VersionIndex, name: str, path: str | None) -> None:
    row = SimilarNames(old).find(old, name)
    assert (None if row is None else old.row(row).path) == path


def test_the_nearest_ancestor(store: CorpusStore) -> None:
    index = store.index("box", NEW)
    found = nearest_ancestor(index, "box.Crate.open.self.x")
    assert found is not None
    assert (index.public(found[0]), found[1]) == ("box.Crate.open", "self")
    assert nearest_ancestor(index, "lid.press") is None


def test_the_bundled_table_is_sound() -> None:
    table = load_renames()
    assert table.spelled_out("np.linalg.norm") == "numpy.linalg.norm"
    assert table.spelled_out("plt.plot") == "matplotlib.pyplot.plot"
    assert table.spelled_out("npy.x") == "npy.x"
    assert "scipy.fft.dct" in table.other_names("scipy.fftpack.dct")
    assert table.removal("pandas.DataFrame.append", "1.5.3") is None
    assert table.removal("pandas.DataFrame.append", "2.2.2") == ("2.0", "pandas.concat")
    assert table.former_name("pandas.Series.is_monotonic_increasing", "1.5.3") == "pandas.Series.is_monotonic"
    for name, removal in table.removed.items():
        assert table.removal(name, removal.removed_in) is not None
        assert removal.use != name
