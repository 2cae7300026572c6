"""Encoded samples in memory-mapped Arrow files: made once, read by every process and every later run.

An entry is a folder of the cache, named by a hash of all that its tokens depend on: the bytes of the data, the
tokenizer with its chat template, the limits, and the code that encodes. It gets its name when it is whole; until then
it is made under another one, which a lock keeps for one process of the machine, while the others wait.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from huggingface_hub import constants

from parallelmind.data.arrow_store import ArrowStore
from parallelmind.data.encoder import DataCounts, SampleEncoder
from parallelmind.data.encoding import write_encoded
from parallelmind.data.sources import RecordSource
from parallelmind.data.store import SampleStore
from parallelmind.errors import DataError
from parallelmind.io.fingerprints import fingerprint_of_contents
from parallelmind.io.locks import HeldLock

_LOGGER = logging.getLogger(__name__)
_SAMPLES, _ABOUT = "samples.arrow", "about.json"
_WAITING_SECONDS = 7 * 24 * 3600.0
_PLACES = ("_path", "_file", "_files")
"""Ends of settings of a tokenizer that say where it is."""
_CODE = ("data", "prompts")
"""Packages whose code decides about tokens."""


def default_folder() -> Path:
    """Where the cache is if nobody says it: beside those of the package `datasets`."""
    datasets = os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets"
    return Path(datasets) / "parallelmind"


class SampleCache:
    """The entries of a folder.

    Args:
        processes: how many processes encode.
    """

    def __init__(self, folder: Path, *, processes: int = 1):
        self.folder = folder
        self._processes = processes

    def prepared(self, source: RecordSource, encoder: SampleEncoder) -> tuple[SampleStore, DataCounts] | None:
        """The samples of a source, encoded now or before; None: its identity cannot be told.

        Raises:
            DataError: a bad row, or the cache cannot be written.
        """
        identity = source.identity()
        if identity is None:
            return None
        entry = self.folder / _key(identity, encoder)
        found = _opened(entry, source)
        if found is not None:
            _LOGGER.info("%s was encoded before: %s", source.name, entry)
            return found
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock(entry):
                found = _opened(entry, source)  # another process may have made it meanwhile
                if found is None:
                    self._make(entry, source, encoder)
                    found = _opened(entry, source)
        except OSError as error:
            raise DataError(
                f"{error.filename or entry}: the encoded data of {source.name} cannot be written "
                f"({error.strerror or error}); make room, or give --data_cache another folder."
            ) from error
        if found is None:
            raise DataError(f"{entry}: what was just written cannot be read back; give --data_cache another folder.")
        return found

    def _lock(self, entry: Path) -> HeldLock:
        path = entry.with_name(f".{entry.name}.lock")
        busy = DataError(f"{entry}: another process has been encoding it for days; end it, then start again.")
        try:
            return HeldLock(path, busy=busy)
        except DataError:
            _LOGGER.info("another process encodes the data; waiting for %s", entry)
            return HeldLock(path, busy=busy, seconds=_WAITING_SECONDS)

    def _make(self, entry: Path, source: RecordSource, encoder: SampleEncoder) -> None:
        unfinished = entry.with_name(f".{entry.name}.unfinished")
        for former in (unfinished, entry):  # of a process that was killed; an entry that is not whole
            if former.exists():
                shutil.rmtree(former)
        unfinished.mkdir()
        try:
            counts = write_encoded(source, encoder, unfinished / _SAMPLES, processes=self._processes)
            about = {"source": source.name, "bytes": (unfinished / _SAMPLES).stat().st_size, **counts.as_dict()}
            (unfinished / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
            for name in (_SAMPLES, _ABOUT):
                with (unfinished / name).open("rb+") as written:
                    os.fsync(written.fileno())
            unfinished.rename(entry)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _opened(entry: Path, source: RecordSource) -> tuple[SampleStore, DataCounts] | None:
    """An entry that is whole."""
    try:
        about: Mapping[str, Any] = json.loads((entry / _ABOUT).read_text(encoding="utf-8"))
        if (entry / _SAMPLES).stat().st_size != about["bytes"]:
            return None
        counts = DataCounts(**{one.name: about[one.name] for one in dataclasses.fields(DataCounts)})
        return ArrowStore(entry / _SAMPLES, source), counts
    except (OSError, ValueError, KeyError):
        return None


def _key(identity: str, encoder: SampleEncoder) -> str:
    package = Path(__file__).parent.parent
    code = [file for name in _CODE for file in sorted((package / name).glob("*.py"))]
    parts = {
        "data": identity,
        "limits": encoder.settings,
        "tokenizer": _tokenizer_content(encoder.tokenizer),
        "code": fingerprint_of_contents(code),
        "versions": [tokenizers.__version__, transformers.__version__],
    }
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _tokenizer_content(tokenizer: Any) -> list[Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    settings = {name: repr(value) for name, value in tokenizer.init_kwargs.items() if not name.endswith(_PLACES)}
    return [type(tokenizer).__name__, vocabulary, str(tokenizer.chat_template), settings]
