"""Corpora that are built when somebody asks for them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from parallelmind.errors import DataError
from parallelmind.retrieval.corpus.build import BuildOptions, build_corpora

_LOGGER = logging.getLogger(__name__)


def build_now(requests: Sequence[str], corpus_path: Path) -> None:
    """Build versions such as `numpy==1.26.4`; what has been built is kept.

    Raises:
        DataError: one of them cannot be built; the others are.
        SettingsError: the folder cannot be written, or there is no sandbox.
    """

    def tell(package: str, stage: str) -> None:
        _LOGGER.info("%s: %s", package, stage)

    options = BuildOptions(packages=tuple(requests), corpus_path=corpus_path)
    errors = [f"{result.name}: {result.error}" for result in build_corpora(options, tell) if result.error]
    if errors:
        raise DataError(f"cannot build {'; '.join(errors)}")
