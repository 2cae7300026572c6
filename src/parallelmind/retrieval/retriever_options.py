"""Everything that chooses how contexts are found, as plain values that go to worker processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parallelmind.errors import SettingsError
from parallelmind.models.options import real_name
from parallelmind.retrieval.budget import TokenBudget, load_tokenizer
from parallelmind.retrieval.compat import CompatRetriever
from parallelmind.retrieval.corpus_rows import CORPUS_TYPES
from parallelmind.retrieval.dense_search import make_embedder
from parallelmind.retrieval.ranking import RANKINGS, Ranker
from parallelmind.retrieval.retriever import Retriever, RetrieverSettings
from parallelmind.retrieval.store import CorpusStore

EMBEDDING_SOURCES = ("local", "togetherai")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieverOptions:
    """The names are the flags.

    Raises:
        SettingsError: a value is unknown.
    """

    corpus_path: Path
    corpus_type: str = "docstring"
    index_path: Path | None = None
    """None: `{corpus_path}/.index`."""
    tokenizer: str = "tiny"
    ranking: str | None = None
    """None: bm25, or hybrid where a source or model of embeddings is given."""
    embedding_source: str | None = None
    """None: local."""
    embedding_model: str | None = None
    compat: bool = False
    settings: RetrieverSettings = field(default_factory=RetrieverSettings)

    def __post_init__(self) -> None:
        for name, allowed in (
            ("corpus_type", CORPUS_TYPES),
            ("ranking", (None, *RANKINGS)),
            ("embedding_source", (None, *EMBEDDING_SOURCES)),
        ):
            if (value := getattr(self, name)) not in allowed:
                raise SettingsError(f"--{name} is {value!r}; it must be {' or '.join(filter(None, allowed))}.")
        if self.ranking == "bm25" and (self.embedding_source or self.embedding_model):
            raise SettingsError("--ranking bm25 uses no embeddings; give hybrid or dense, or leave --embedding_… out.")

    @property
    def ranking_in_force(self) -> str:
        return self.ranking or ("hybrid" if self.embedding_source or self.embedding_model else "bm25")

    def identity(self) -> dict[str, Any]:
        """The settings that change contexts."""
        uses_embeddings = self.ranking_in_force != "bm25"
        return {
            "corpus_type": self.corpus_type,
            "tokenizer": real_name(self.tokenizer) if self.settings.max_tokens else None,
            "ranking": self.ranking_in_force,
            "embedding_source": (self.embedding_source or "local") if uses_embeddings else None,
            "embedding_model": self.embedding_model if uses_embeddings else None,
            "compat": self.compat,
            "max_documents": self.settings.max_documents,
            "fixed_docs_per_query": self.settings.fixed_docs_per_query,
            "max_tokens": self.settings.max_tokens,
            "enable_str_match": self.settings.enable_str_match,
            "jump_exact_match": self.settings.jump_exact_match,
        }

    def open_store(self) -> CorpusStore:
        return CorpusStore(self.corpus_path, corpus_type=self.corpus_type, index_path=self.index_path)

    def make(self) -> Retriever | CompatRetriever:
        """Open the corpus and load what the settings need.

        Raises:
            ParallelMindError: the corpus, the tokenizer or the embedding model cannot be loaded.
        """
        budget = TokenBudget(load_tokenizer(self.tokenizer)) if self.settings.max_tokens else None
        ranking = self.ranking_in_force
        embedder = None
        if ranking != "bm25":
            embedder = make_embedder(self.embedding_source or "local", self.embedding_model)
        kind = CompatRetriever if self.compat else Retriever
        return kind(self.open_store(), self.settings, ranker=Ranker(ranking, embedder), budget=budget)
