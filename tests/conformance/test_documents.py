"""The documents run, in order, in one folder; each block comes to what docs/compatibility.md says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.blocks import Block, Document
from tests.conformance.desk import Desk
from tests.conformance.documents import DOCUMENTS, key, stored_seen

pytestmark = pytest.mark.half_precision
"""As printed: in bfloat16. No text of a model is compared."""

BLOCKS = [(document, block) for document in DOCUMENTS for block in document.blocks if block.run is not None]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """One folder for all documents: a block finds what those before it left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield Desk(tmp_path_factory.mktemp("reader") / "desk", as_printed=False)


QUICK = [(document, block) for document, block in BLOCKS if not block.only_printed]


@pytest.mark.parametrize(("document", "block"), QUICK, ids=[key(*one) for one in QUICK])
def test_a_block_comes_to_what_is_written(desk: Desk, document: Document, block: Block) -> None:
    assert block.run is not None
    assert block.run(desk) == stored_seen()[key(document, block)]


@pytest.mark.slow
def test_the_documents_as_printed(tmp_path: Path) -> None:
    """Every command a process, torchrun with two."""
    from tests.conformance.run import results

    assert dict(results(Desk(tmp_path / "desk", as_printed=True))) == stored_seen()


def test_what_was_seen_is_of_these_blocks() -> None:
    assert set(stored_seen()) == {key(*one) for one in BLOCKS}
    for document in DOCUMENTS:
        assert len({block.line for block in document.blocks}) == len(document.blocks)
        assert all(block.run is not None or block.differs for block in document.blocks)
