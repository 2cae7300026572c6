"""Everything that chooses how contexts are found, as plain values that go to worker processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from parallelmind.errors import SettingsError
from parallelmind.models.identity import real_name
from parallelmind.retrieval.budget import TokenBudget, load_tokenizer
from parallelmind.retrieval.compat import CompatRetriever
from parallelmind.retrieval.dense_search import make_embedder
from parallelmind.retrieval.ranking import Ranker
from parallelmind.retrieval.retriever import Retriever, RetrieverSettings
from parallelmind.retrieval.store import CorpusStore
from parallelmind.settings.model import TINY_MODEL
from parallelmind.settings.setting import Flag, Setting, Settings


@dataclass(frozen=True, kw_only=True)
class RetrieverOptions(Settings):
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
    ranking: Annotated[
        Literal["bm25", "dense", "hybrid"] | None,
        Setting("search by words, by meaning, or by both", "search", default="bm25; hybrid if embeddings are chosen"),
    ] = None
    embedding_source: Annotated[
        Literal["local", "togetherai"] | None,
        Setting(
            "what embeds: sentence-transformers here, or Together AI (key in TOGETHER_API_KEY)", "search",
            default="local",
        ),
    ] = None  # fmt: skip
    embedding_model: Annotated[
        str | None,
        Setting("Hub name or local folder", "search", default="the source's own", flag=Flag(metavar="MODEL")),
    ] = None
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ranking == "bm25" and (self.embedding_source or self.embedding_model):
            raise SettingsError("--ranking bm25 uses no embeddings; give hybrid or dense, or leave --embedding_… out.")

    @property
    def ranking_in_force(self) -> str:
        return self.ranking or ("hybrid" if self.embedding_source or self.embedding_model else "bm25")

    def identity(self) -> dict[str, Any]:
        """The settings that change contexts."""
        uses_embeddings = self.ranking_in_force != "bm25"
        in_effect = {
            "tokenizer": real_name(self.tokenizer or TINY_MODEL) if self.settings.max_tokens else None,
            "ranking": self.ranking_in_force,
            "embedding_source": (self.embedding_source or "local") if uses_embeddings else None,
            "embedding_model": self.embedding_model if uses_embeddings else None,
        }
        return super().identity() | self.settings.identity() | in_effect

    def open_store(self) -> CorpusStore:
        return CorpusStore(self.corpus_path, corpus_type=self.corpus_type, index_path=self.index_path)

    def make(self) -> Retriever | CompatRetriever:
        """Open the corpus and load what the settings need.

        Raises:
            ParallelMindError: the corpus, the tokenizer or the embedding model cannot be loaded.
        """
        budget = TokenBudget(load_tokenizer(self.tokenizer or TINY_MODEL)) if self.settings.max_tokens else None
        ranking = self.ranking_in_force
        embedder = None
        if ranking != "bm25":
            embedder = make_embedder(self.embedding_source or "local", self.embedding_model)
        kind = CompatRetriever if self.compat else Retriever
        return kind(self.open_store(), self.settings, ranker=Ranker(ranking, embedder), budget=budget)
