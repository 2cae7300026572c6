from __future__ import annotations

from parallelmind.retrieval.compat import CompatRetriever, substring_match, text_key
from parallelmind.retrieval.queries import Query
from parallelmind.retrieval.ranking import Ranker
from parallelmind.retrieval.retriever import EXACT, FALLBACK, RetrieverSettings
from parallelmind.retrieval.store import CorpusStore
from tests.retrieval.small_corpus import NEW, OLD


def query(api: str, version: str, text: str = "?") -> Query:
    return Query(original_item_id=0, query_index=0, query=text, target_api=api, dependencies={"box": version})


def test_the_substring_rule_takes_equal_then_containing_then_contained() -> None:
    names = [("box", 0), ("box.weigh_", 1), ("box.weigh", 2), ("box.we", 3)]
    assert substring_match(names, "box.weigh") == 2
    assert substring_match(names[:2], "box.weigh") == 1
    assert substring_match([names[0], names[3]], "box.weigh") == 3
    assert substring_match(names[:1], "box.weigh") is None


def test_it_calls_a_neighbour_exact(store: CorpusStore) -> None:
    retriever = CompatRetriever(store, RetrieverSettings(max_tokens=0), ranker=Ranker(), budget=None)
    found = retriever.retrieve(query("box.weigh", NEW))
    assert (found.method, [document.name for document in found.context.documents]) == (EXACT, ["box.weigh_"])
    assert retriever.retrieve(query("torch.x", OLD, "fold paper")).method == FALLBACK


def test_its_duplicates_are_blind_to_versions() -> None:
    assert text_key(query("box.fold", OLD)) == text_key(query("box.tape", NEW))
    assert query("box.fold", OLD).dedup_key != query("box.fold", NEW).dedup_key
