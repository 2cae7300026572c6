"""How ranked search works, as plain values that go to worker processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from parallelmind.errors import SettingsError
from parallelmind.retrieval.dense_search import make_embedder
from parallelmind.retrieval.ranking import Ranker
from parallelmind.settings.setting import Flag, Setting, Settings


@dataclass(frozen=True, kw_only=True)
class SearchOptions(Settings):
    """By words or by meaning; the names are the flags.

    Raises:
        SettingsError: embeddings are chosen for a ranking that uses none.
    """

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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ranking == "bm25" and (self.embedding_source or self.embedding_model):
            raise SettingsError("--ranking bm25 uses no embeddings; give hybrid or dense, or leave --embedding_… out.")

    @property
    def ranking_in_force(self) -> str:
        return self.ranking or ("hybrid" if self.embedding_source or self.embedding_model else "bm25")

    def identity(self) -> dict[str, Any]:
        """The settings that change what is found."""
        uses_embeddings = self.ranking_in_force != "bm25"
        in_effect = {
            "ranking": self.ranking_in_force,
            "embedding_source": (self.embedding_source or "local") if uses_embeddings else None,
            "embedding_model": self.embedding_model if uses_embeddings else None,
        }
        return super().identity() | in_effect

    def ranker(self) -> Ranker:
        """Loads the embedding model, if one is needed.

        Raises:
            ParallelMindError: it cannot be loaded.
        """
        if self.ranking_in_force == "bm25":
            return Ranker()
        return Ranker(self.ranking_in_force, make_embedder(self.embedding_source or "local", self.embedding_model))
