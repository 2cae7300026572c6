"""Everything that chooses how contexts are found, as plain values that go to worker processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from parallelmind.models.identity import real_name
from parallelmind.retrieval.budget import TokenBudget, load_tokenizer
from parallelmind.retrieval.compat import CompatRetriever
from parallelmind.retrieval.retriever import Retriever, RetrieverSettings
from parallelmind.retrieval.search_options import SearchOptions
from parallelmind.retrieval.store import CorpusStore
from parallelmind.settings.model import TINY_MODEL
from parallelmind.settings.setting import Flag, Setting


@dataclass(frozen=True, kw_only=True)
class RetrieverOptions(SearchOptions):
    """Which corpus, and how it is searched; the names are the flags.

    Raises:
        SettingsError: a value is unknown.
    """

    corpus_path: Annotated[
        Path,
        Setting(
            "folder of corpora, made by parallelmind corpus build", "corpus", identity=False, flag=Flag(metavar="DIR")
        ),
    ]
    corpus_type: Annotated[Literal["docstring", "srccodes"], Setting("documentation, or source code", "corpus")] = (
        "docstring"
    )
    index_path: Annotated[
        Path | None,
        Setting(
            "folder for the indexes", "corpus", identity=False, flag=Flag(metavar="DIR"), default="in your cache",
        ),
    ] = None  # fmt: skip
    compat: Annotated[
        bool,
        Setting(
            "the looser matching of older tools, for comparison: parts of names match, and queries with the same text "
            "are duplicates whatever versions they name",
            "search",
        ),
    ] = False
    tokenizer: Annotated[
        str | None,
        Setting(
            "the model whose tokens --max_tokens counts, the one that will answer: Hub name or local folder",
            "context",
            default="the bundled tokenizer, which counts English text about twice",
            flag=Flag(also=("--model_path",), metavar="MODEL"),
        ),
    ] = None
    settings: RetrieverSettings = field(default_factory=RetrieverSettings)

    def identity(self) -> dict[str, Any]:
        """The settings that change contexts."""
        counted_by = real_name(self.tokenizer or TINY_MODEL) if self.settings.max_tokens else None
        return super().identity() | self.settings.identity() | {"tokenizer": counted_by}

    def open_store(self) -> CorpusStore:
        return CorpusStore(self.corpus_path, corpus_type=self.corpus_type, index_path=self.index_path)

    def make(self) -> Retriever | CompatRetriever:
        """Open the corpus and load what the settings need.

        Raises:
            ParallelMindError: the corpus, the tokenizer or the embedding model cannot be loaded.
        """
        budget = TokenBudget(load_tokenizer(self.tokenizer or TINY_MODEL)) if self.settings.max_tokens else None
        kind = CompatRetriever if self.compat else Retriever
        return kind(self.open_store(), self.settings, ranker=self.ranker(), budget=budget)
