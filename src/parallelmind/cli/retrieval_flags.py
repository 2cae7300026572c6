"""The flags that choose how contexts are found, shared by `contexts` and `evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from parallelmind.cli.args import documented_default
from parallelmind.retrieval.corpus_rows import CORPUS_TYPES
from parallelmind.retrieval.ranking import RANKINGS
from parallelmind.retrieval.retriever import RetrieverSettings
from parallelmind.retrieval.retriever_options import EMBEDDING_SOURCES, RetrieverOptions


def add_corpus_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds the corpus and the search flags; returns the group of the search flags."""
    corpus = parser.add_argument_group("corpus")
    corpus.add_argument(
        "--corpus_path",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of corpora, made by parallelmind corpus build",
    )
    corpus.add_argument(
        "--corpus_type",
        choices=CORPUS_TYPES,
        default="docstring",
        help=documented_default("documentation, or source code", "docstring"),
    )
    corpus.add_argument(
        "--index_path",
        type=Path,
        metavar="DIR",
        help=documented_default("folder for the indexes", "DIR/.index of the corpus"),
    )
    search = parser.add_argument_group("search")
    search.add_argument(
        "--enable_str_match",
        action="store_true",
        help="if no name is equal, try renamed modules and very similar names",
    )
    search.add_argument("--jump_exact_match", action="store_true", help="skip the exact match")
    search.add_argument(
        "--ranking",
        choices=RANKINGS,
        help=documented_default("search by words, by meaning, or by both", "bm25; hybrid if embeddings are chosen"),
    )
    search.add_argument(
        "--embedding_source",
        choices=EMBEDDING_SOURCES,
        help=documented_default(
            "what embeds: sentence-transformers here, or Together AI (key in TOGETHER_API_KEY)", "local"
        ),
    )
    search.add_argument(
        "--embedding_model", metavar="MODEL", help="Hub name or local folder (default: the source's own)"
    )
    return search


def retriever_options(args: argparse.Namespace, settings: RetrieverSettings) -> RetrieverOptions:
    """The options that the flags of `add_corpus_flags` choose, and those of `contexts` where they are there."""
    return RetrieverOptions(
        corpus_path=args.corpus_path,
        corpus_type=args.corpus_type,
        index_path=args.index_path,
        ranking=args.ranking,
        embedding_source=args.embedding_source,
        embedding_model=args.embedding_model,
        tokenizer=getattr(args, "tokenizer", "tiny"),
        compat=getattr(args, "compat", False),
        settings=settings,
    )
