from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from parallelmind.errors import DataError
from parallelmind.retrieval.queries import Query
from parallelmind.retrieval.retriever import Retrieval, Retriever, RetrieverSettings
from parallelmind.retrieval.store import CorpusStore
from parallelmind.retrieval.truth import PublicNames, TruthLabel, TruthReport, judge, names_replacement, read_truth
from tests.retrieval.small_corpus import NEW, OLD

COMMITTED = Path(__file__).parents[2] / "examples" / "retrieval" / "truth"


def label(name: str, label: str, version: str = OLD, **more: object) -> TruthLabel:
    return TruthLabel(package="box", version=version, name=name, label=label, kind="k", **more)  # type: ignore[arg-type]


def report_of(store: CorpusStore, *labels: TruthLabel, public: tuple[PublicNames, ...] = ()) -> TruthReport:
    retriever = Retriever(store, RetrieverSettings(max_tokens=0))
    return judge(retriever.retrieve, store, labels, public)


def test_what_is_served_is_compared_with_the_labels(store: CorpusStore) -> None:
    report = report_of(
        store,
        label("box.fold", "present", doc="Fold a sheet of  paper along"),
        label("box.core.crate.Crate.open", "present", doc="Lift the lid"),  # another documentation is shown
        label("box.weigh", "absent"),  # the corpus says that it is there
        label("box.Crate.seal", "present", version=NEW),  # the corpus says that it is gone
        label("box.tape", "absent", version=NEW, replacement=("box.glue",)),
        label("box.tape", "deprecated", replacement=("box.glue",)),
        label("box.nothing", "present"),  # denied as well
    )
    shares = {name: (share.right, share.of) for name, share in report.shares.items()}
    assert shares["exact precision"] == (3, 4)
    assert shares["exact recall"] == (3, 5)
    assert shares["documentation shown"] == (1, 2)
    assert shares["absent precision"] == (1, 3)
    assert shares["absent recall"] == (1, 2)
    assert shares["deprecation told"] == (1, 1)
    wrong = Counter(mistake["wrong"] for mistake in report.mistakes)
    assert wrong["a name that exists is denied"] == 2
    assert json.loads(json.dumps(report.fields()))["labels"] == 7


def test_a_document_under_another_name_is_right_only_if_the_label_says_so(store: CorpusStore) -> None:
    asked = label("box.fold", "present", same=("box.paper.fold",))
    retriever = Retriever(store, RetrieverSettings(max_tokens=0))

    def other(query: Query) -> Retrieval:
        return retriever.retrieve(
            Query(original_item_id="x", query_index=0, query="q", target_api="box.weigh", dependencies={"box": OLD})
        )

    assert judge(other, store, [asked]).shares["exact precision"].right == 0
    assert judge(other, store, [label("box.fold", "present", same=("box.weigh",))]).shares["exact precision"].right == 1


def test_coverage_is_weighted_by_how_many_names_there_are(store: CorpusStore) -> None:
    public = (
        PublicNames(package="box", version=OLD, counts={"own": 30}, sample={"own": ("box.fold", "box.weigh")}),
        PublicNames(package="box", version=NEW, counts={"own": 10}, sample={"own": ("box.glue", "box.nothing")}),
    )
    coverage = report_of(store, public=public).coverage
    assert coverage["own"] == coverage["public"] == (30 * 1.0 + 10 * 0.5) / 40


@pytest.mark.parametrize(
    ("text", "asked", "new", "named"),
    [
        ("Use model_dump instead.", "p.M.dict", "p.M.model_dump", True),
        ("It has no json.", "p.M.dict", "p.M.json", False),
        ("Use `json` instead.", "p.M.dict", "p.M.json", True),
        ("Call json() instead.", "p.M.dict", "p.M.json", True),
        ("escape is gone", "flask.escape", "markupsafe.escape", False),
        ("take markupsafe.escape", "flask.escape", "markupsafe.escape", True),
        ("take model_dump_json", "p.M.dict", "p.M.model_dump", False),
    ],
)
def test_when_a_text_names_a_replacement(text: str, asked: str, new: str, named: bool) -> None:
    assert names_replacement(text, asked, [new]) is named


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"package": "p", "version": "1", "name": "p.x", "label": "gone"}, 'line 1: "label" is .* expected one of'),
        ({"package": "p", "version": "1", "label": "absent"}, 'line 1: "name" is'),
        ({"package": "p", "version": "1", "name": "p.x", "label": "absent", "same": "p.y"}, 'line 1: "same" is'),
        ({"package": "p", "version": "1", "sample": {"own": []}}, 'line 1: "sample" and "counts"'),
    ],
)
def test_wrong_rows_are_told(tmp_path: Path, row: dict[str, object], words: str) -> None:
    (tmp_path / "l.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=words):
        read_truth(tmp_path)


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no \.jsonl file"):
        read_truth(tmp_path)


def test_the_committed_labels_are_enough_and_various() -> None:
    labels, public = read_truth(COMMITTED)
    counted = Counter(row.label for row in labels)
    assert len(labels) >= 1200
    assert min(counted["present"], counted["absent"]) >= 1000
    assert counted["deprecated"] >= 80
    assert sum(bool(row.replacement) for row in labels) >= 150
    assert len({row.package for row in labels}) >= 12
    assert {(row.package, row.version) for row in labels} == {(row.package, row.version) for row in public}
    asked = Counter((row.package, row.version, row.name) for row in labels)
    assert max(asked.values()) == 1
