"""Run the documents and store what was seen: python -m tests.conformance.run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.conformance.desk import Desk
from tests.conformance.documents import DOCUMENTS, key, save_seen


def results(desk: Desk) -> Iterator[tuple[str, str]]:
    """(key, what was seen) of each block, in the order of the documents."""
    for document in DOCUMENTS:
        for block in document.blocks:
            if block.run is not None:
                yield key(document, block), block.run(desk)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        seen: dict[str, str] = {}
        started = time.monotonic()
        for name, result in results(Desk(Path(folder) / "desk", as_printed=True)):
            print(f"{time.monotonic() - started:6.0f} s  {name}  {result}", flush=True)
            seen[name] = result
        save_seen(seen)
