"""The output of a finished run: put in place whole, and gone on from when records are tried again or the input grows.

Beside it, in the folder of its job, stands an index of its rows, named after the hash of the output. The new index is
written before the new output takes the place of the old one, so that a run killed at any moment finds the index of
whichever output is there; an output that no index fits was edited.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from parallelmind.errors import JobError
from parallelmind.jobs.index import ResultIndex
from parallelmind.jobs.merge import merge_parts, put_in_place
from parallelmind.jobs.outcome import hash_of
from parallelmind.jobs.parts import storage_error

_PART = -2
"""Stands for the output in an index, where parts of workers have their number."""
_ERROR_KEPT = 500


class StandingOutput:
    """The output at `path`, whose job has its state in `folder`."""

    def __init__(self, folder: Path, path: Path) -> None:
        self._folder = folder
        self._path = path

    def is_indexed(self) -> bool:
        """Whether a run has finished here."""
        return any(self._indexes())

    def adopt(self, index: ResultIndex) -> None:
        """Take the results of the output, if one stands there, into an index that is empty so far.

        Raises:
            JobError: it was edited.
        """
        if not self._path.exists() or not self.is_indexed():
            return
        path = self._index_path(hash_of(self._path))
        if not path.exists():
            raise edited(self._path)
        index.load(path, part=_PART)

    def put(self, index: ResultIndex, rows_files: Mapping[int, Path]) -> int:
        """Write the rows of all records in input order, put them in place and return their bytes; the index follows.

        Args:
            rows_files: the rows of each part.
        Raises:
            JobError: the disk is full or failing, or a part changed under the job.
        """
        temporary = self._folder / "output.tmp"
        size, digest = merge_parts(index, {**rows_files, _PART: self._path}, temporary)
        index.settle(_PART)
        kept = self._index_path(digest)
        try:
            index.save(kept.with_suffix(".tmp"))
            kept.with_suffix(".tmp").replace(kept)
        except OSError as error:
            raise storage_error(kept, error) from error
        put_in_place(temporary, self._path)
        for other in self._indexes():
            if other != kept:
                other.unlink(missing_ok=True)
        return size

    def errors(self, index: ResultIndex) -> Iterator[tuple[int, str]]:
        """(record, first error in its rows) of each failed record, in input order."""
        for place in index.failed_places():
            with self._path.open("rb") as file:
                file.seek(int(index.offset[place]))
                content = file.read(int(index.size[place]))
            errors = (json.loads(row).get("error") for row in content.splitlines())
            reason = next((str(error) for error in errors if error is not None), "")
            # For logs and terminals, which take no half of a surrogate pair.
            yield place, reason[:_ERROR_KEPT].encode("utf-8", "replace").decode("utf-8")

    def forget(self) -> None:
        """Nobody goes on from the output any more; it stays where it is."""
        for path in self._indexes():
            path.unlink(missing_ok=True)

    def _index_path(self, digest: str) -> Path:
        return self._folder / f"output-{digest}.npz"

    def _indexes(self) -> list[Path]:
        return list(self._folder.glob("output-*.npz"))


def edited(path: Path) -> JobError:
    """What to say of an output that is not as its job left it."""
    return JobError(
        f"{path} was edited after its job was complete; choose another output, or begin anew with --overwrite."
    )
