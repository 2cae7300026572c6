"""A SQLite file that one process writes and others may read meanwhile: opening it on any disk, and errors in words."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from parallelmind.errors import JobError
from parallelmind.jobs.storage import storage_error

_LOGGER = logging.getLogger(__name__)
_PAGE_BYTES = 2**14
_CHECKPOINT_BYTES = 2**26
_NO_LOCKS = (
    "SQLITE_PROTOCOL", "SQLITE_BUSY", "SQLITE_NOLFS", "SQLITE_IOERR_LOCK", "SQLITE_IOERR_RDLOCK", "SQLITE_IOERR_UNLOCK",
    "SQLITE_IOERR_SHMOPEN", "SQLITE_IOERR_SHMLOCK", "SQLITE_IOERR_SHMMAP",
)  # fmt: skip
"""Of locks and of the memory that processes share; SQLITE_IOERR_SHMSIZE is a full disk."""


class NoJobYetError(JobError):
    """A run has opened the ledger and not written anything."""


class SqliteFile:
    """The file at `path`; what is changed stands there after the next `commit`.

    Args:
        schema: the statements that make its tables.
        read_only: another process may be writing.
    Raises:
        NoJobYetError: it is to be read, and a run is about to make it.
        JobError: the file is damaged, or cannot be read or written.
    """

    def __init__(self, path: Path, schema: str, *, read_only: bool) -> None:
        self.path = path
        self._schema = schema
        self._read_only = read_only
        with self._errors():
            self._file = self._open_to_read() if read_only else self._open_to_write()

    def close(self) -> None:
        with self._errors():
            self._file.close()

    def commit(self) -> None:
        """Raises:
        JobError: the disk is full or failing; what was committed before stays good.
        """
        if self._file.in_transaction:
            with self._errors():
                self._file.execute("COMMIT")

    def _begin(self) -> None:
        if not self._file.in_transaction:
            self._file.execute("BEGIN IMMEDIATE")

    def _number(self, question: str) -> int:
        return int(self._file.execute(question).fetchone()[0])

    def _open_to_read(self) -> sqlite3.Connection:
        uri = f"{self.path.absolute().as_uri()}?mode=ro"
        file = _connect(uri)
        try:
            tables = self._tables(file)
        except sqlite3.OperationalError:
            file.close()
            journal = self.path.with_name(self.path.name + "-wal")
            if journal.exists() and journal.stat().st_size:
                raise
            # Nobody writes, and there is no room for the memory that processes share, as on a read-only disk.
            file = _connect(f"{uri}&immutable=1")
            tables = self._tables(file)
        if not tables:
            file.close()
            raise NoJobYetError(f"{self.path} has no job yet.")
        return file

    def _open_to_write(self) -> sqlite3.Connection:
        try:
            return self._prepared(_connect(self.path.absolute().as_uri()), "WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname not in _NO_LOCKS:
                raise
            _LOGGER.warning("%s: the disk has no locks that SQLite can use (%s): it does without", self.path, error)
            return self._prepared(_connect(f"{self.path.absolute().as_uri()}?nolock=1"), "TRUNCATE")

    def _prepared(self, file: sqlite3.Connection, journal: str) -> sqlite3.Connection:
        file.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        file.execute(f"PRAGMA journal_mode = {journal}")
        file.execute("PRAGMA synchronous = NORMAL")
        file.execute("PRAGMA secure_delete = OFF")
        file.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_BYTES // _PAGE_BYTES}")
        if not self._tables(file):
            file.executescript(f"BEGIN IMMEDIATE; {self._schema} COMMIT;")
        return file

    @staticmethod
    def _tables(file: sqlite3.Connection) -> int:
        return int(file.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """What the library says, in words that help."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if not isinstance(error, sqlite3.OperationalError) or error.sqlite_errorname == "SQLITE_ERROR":
                raise damaged(self.path, error) from error  # the latter where a table or a column is missing
            if self._read_only:
                raise JobError(f"cannot read {self.path}: {error}.") from error
            raise storage_error(self.path, error) from error


def remove_ledger(path: Path) -> None:
    """Remove the file and what SQLite keeps beside it.

    Raises:
        JobError: they cannot be removed.
    """
    for suffix in ("", "-wal", "-shm", "-journal"):
        file = path.with_name(path.name + suffix)
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise JobError(
                f"cannot replace {file}: {error.strerror}. Remove it, or choose another output (--out_path or "
                "--output_file)."
            ) from error


def damaged(path: Path, error: Exception | str) -> JobError:
    """What to tell the user of a ledger that is not as a run leaves it."""
    return JobError(f"the ledger {path} is damaged ({error}); begin anew with --overwrite.")


def _connect(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=10.0, check_same_thread=False)
