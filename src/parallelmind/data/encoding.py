"""Encode the samples of a source into an Arrow file, in constant memory, by one process or several."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from parallelmind.data.arrow_store import ArrowWriter, Numbered, batch_of
from parallelmind.data.encoder import DataCounts, SampleEncoder
from parallelmind.data.samples import parse_sample
from parallelmind.data.sources import RecordSource, SourceRow
from parallelmind.errors import DataError

_LOGGER = logging.getLogger(__name__)
_ROWS = 256
"""Rows that are encoded together."""
_AHEAD = 2
"""Batches that wait for each process."""
_SAID_EVERY = 30.0
_PARALLELISM = "TOKENIZERS_PARALLELISM"

_encoder: SampleEncoder | None = None
"""Of a process that encodes for another one."""


def write_encoded(source: RecordSource, encoder: SampleEncoder, path: Path, *, processes: int = 1) -> DataCounts:
    """Write the samples that have a supervised token, in the order of the data, and say what there was.

    Raises:
        DataError: a bad row, or a process that was killed.
        OSError: the file cannot be written.
    """
    counts = DataCounts()
    tokens, said = 0, time.monotonic()
    batches = _by_processes(source, encoder, processes) if processes > 1 else _here(source, encoder)
    with ArrowWriter(path) as writer:
        for batch, found in batches:
            counts.add(found)
            tokens += writer.write(batch)
            if time.monotonic() - said > _SAID_EVERY:
                _LOGGER.info("encoding %s: %d records, %d tokens so far", source.name, counts.records, tokens)
                said = time.monotonic()
    return counts


def _here(source: RecordSource, encoder: SampleEncoder) -> Iterator[tuple[Any, DataCounts]]:
    with _one_thread():
        for rows in _chunks(source):
            yield _encode(rows, encoder)


def _by_processes(source: RecordSource, encoder: SampleEncoder, processes: int) -> Iterator[tuple[Any, DataCounts]]:
    """The same in the same order; no more is read than the processes have to do."""
    # Not forked: threads of the tokenizer and of torch do not survive that.
    context = multiprocessing.get_context("spawn")
    given = (encoder.tokenizer, encoder.settings)
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=given) as pool:
        waiting: deque[Future[tuple[Any, DataCounts]]] = deque()
        try:
            for rows in _chunks(source):
                waiting.append(pool.submit(_encode, rows))
                if len(waiting) >= _AHEAD * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                f"{source.name}: a process that encoded it was killed, perhaps for want of memory; lower "
                "--preprocessing_num_workers, or start the same command again."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _chunks(source: RecordSource) -> Iterator[list[SourceRow]]:
    rows = source.read()
    while chunk := list(islice(rows, _ROWS)):
        yield chunk


def _begin(tokenizer: Any, settings: dict[str, Any]) -> None:
    global _encoder
    os.environ.setdefault(_PARALLELISM, "false")
    _encoder = SampleEncoder(tokenizer, **settings)


@contextmanager
def _one_thread() -> Iterator[None]:
    """In this block tokenizers start no threads, which for a few texts take longer than the texts."""
    former = os.environ.get(_PARALLELISM)
    os.environ[_PARALLELISM] = former or "false"
    try:
        yield
    finally:
        if former is None:
            del os.environ[_PARALLELISM]


def _encode(rows: list[SourceRow], encoder: SampleEncoder | None = None) -> tuple[Any, DataCounts]:
    encoder = encoder or _encoder
    assert encoder is not None
    counts = DataCounts()
    samples = []
    for row in rows:
        sample = encoder.encode(parse_sample(row.fields, row.where, row.file), counts)
        if sample is not None:
            samples.append(Numbered(row.number, sample))
    return batch_of(samples), counts
