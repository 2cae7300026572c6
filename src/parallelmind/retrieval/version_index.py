"""Names of one version of a package, on disk: a look-up reads a few pages, and processes share them.

The index is a SQLite file: for every path and alias the row it names, for every row where it lies in the corpus file,
and the namespaces of the running package, where it ran. It is named after a hash of both files, so an edited corpus
gets a new index.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import secrets
import shutil
import sqlite3
import time
import weakref
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from parallelmind.errors import DataError, SettingsError
from parallelmind.io.jsonl import JsonLine
from parallelmind.io.line_table import UTF8_BOM
from parallelmind.retrieval.advice import names_in
from parallelmind.retrieval.corpus_rows import CorpusRow, parse_row, summary
from parallelmind.retrieval.namespaces import Namespace, from_row, names_file, read_namespaces, to_row
from parallelmind.retrieval.notes import Note, notes_file, read_notes
from parallelmind.retrieval.row_blocks import RowReader

_FORMAT = 5
_ROWS_KEPT = 256
_NAMESPACES_KEPT = 512
_WORDS_THAT_TELL = 5
_PATIENCE_SECONDS = 120.0
_FORGOTTEN_SECONDS = 86_400.0
_SCHEMA = """
CREATE TABLE rows (id INTEGER PRIMARY KEY, block INTEGER, offset INTEGER, size INTEGER, public TEXT);
CREATE TABLE names (key INTEGER PRIMARY KEY, row INTEGER);
CREATE TABLE lasts (last TEXT, row INTEGER, PRIMARY KEY (last, row)) WITHOUT ROWID;
CREATE TABLE facts (python TEXT);
CREATE TABLE spaces (id INTEGER PRIMARY KEY, content BLOB);
CREATE TABLE modules (name TEXT PRIMARY KEY, space INTEGER) WITHOUT ROWID;
CREATE TABLE objects (id INTEGER PRIMARY KEY, row INTEGER);
CREATE TABLE summaries (digest TEXT, row INTEGER, PRIMARY KEY (digest, row)) WITHOUT ROWID;
CREATE TABLE errors (module TEXT PRIMARY KEY, error TEXT) WITHOUT ROWID;
CREATE TABLE beside (package TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT, version TEXT, source TEXT);
CREATE TABLE noted (last TEXT, note INTEGER, PRIMARY KEY (last, note)) WITHOUT ROWID;
"""


class VersionIndex:
    """The rows of one corpus file, by number (their order in the file) and by name."""

    def __init__(self, corpus_file: Path, index_path: Path, *, package: str, version: str) -> None:
        """Opens the index, and builds it first if there is none for the present content of `corpus_file`.

        Raises:
            DataError: the corpus file cannot be read, or a row of it is wrong.
            SettingsError: the index cannot be written.
        """
        self.package = package
        self.version = version
        self._corpus_file = corpus_file
        try:
            # Kept open: a corpus that is built anew replaces the name, and this file stays what was indexed.
            self._file = corpus_file.open("rb")
            self._reader = RowReader(self._file, corpus_file)
        except OSError as error:
            raise DataError(
                f"cannot read {corpus_file}: {error.strerror}; check the path and its permissions."
            ) from error
        try:
            self._database = self._open_database(index_path)
        except BaseException:
            self._file.close()
            raise
        (self.rows,) = self._database.execute("SELECT count(*) FROM rows").fetchone()
        (self.python,) = self._database.execute("SELECT python FROM facts").fetchone()
        """Version of the interpreter that was asked which names there are; "" if none was."""
        # Nothing below refers to this object, so that one which is dropped while others open closes at once.
        self._read = functools.partial(_read_row, self._reader, self._database, corpus_file)
        self.row = functools.lru_cache(_ROWS_KEPT)(self._read)
        self.namespace = functools.lru_cache(_NAMESPACES_KEPT)(functools.partial(_read_namespace, self._database))
        """The namespace of a number."""
        self.close = weakref.finalize(self, _close, self._file, self._database)

    def find(self, name: str) -> int | None:
        """The row with this path or alias."""
        found = self._database.execute("SELECT row FROM names WHERE key = ?", (_key(name),)).fetchone()
        return None if found is None else int(found[0])

    def module(self, name: str) -> int | None:
        """The number of the namespace of an imported module."""
        found = self._database.execute("SELECT space FROM modules WHERE name = ?", (name,)).fetchone()
        return None if found is None else int(found[0])

    def object_row(self, number: int) -> int | None:
        """The row that describes an object which a namespace refers to."""
        found = self._database.execute("SELECT row FROM objects WHERE id = ?", (number,)).fetchone()
        return None if found is None else int(found[0])

    def import_error(self, module: str) -> str:
        """Why a module could not be imported; "" if it could, or was not tried."""
        found = self._database.execute("SELECT error FROM errors WHERE module = ?", (module,)).fetchone()
        return "" if found is None else str(found[0])

    def rows_ending_in(self, last: str) -> list[int]:
        """The rows with a name whose last component is `last`."""
        return [row for (row,) in self._database.execute("SELECT row FROM lasts WHERE last = ? ORDER BY row", (last,))]

    def rows_summarised_as(self, digest: str) -> list[int]:
        """The rows whose documentation begins with the same sentence, by `summary_digest`."""
        return [row for (row,) in self._database.execute("SELECT row FROM summaries WHERE digest = ?", (digest,))]

    def notes_on(self, last: str) -> list[Note]:
        """What the release notes say of names whose last component is `last`, in their order."""
        asked = "SELECT text, version, source FROM noted JOIN notes ON id = note WHERE last = ? ORDER BY note"
        found = self._database.execute(asked, (last,))
        return [Note(text=text, version=version, source=source) for text, version, source in found]

    @functools.cached_property
    def has_notes(self) -> bool:
        """Whether release notes were read for it."""
        return self._database.execute("SELECT 1 FROM notes LIMIT 1").fetchone() is not None

    def is_beside(self, package: str) -> bool:
        """Whether something in the version's own modules is defined in another package of that name."""
        return self._database.execute("SELECT 1 FROM beside WHERE package = ?", (package,)).fetchone() is not None

    def last_components(self) -> list[str]:
        """Every last component of a name, once."""
        return [last for (last,) in self._database.execute("SELECT DISTINCT last FROM lasts ORDER BY last")]

    def public(self, row: int) -> str:
        """The name to show for a row: the one that users write."""
        (name,) = self._database.execute("SELECT public FROM rows WHERE id = ?", (row,)).fetchone()
        return str(name)

    def all_rows(self) -> Iterator[CorpusRow]:
        return (self._read(row) for row in range(self.rows))

    def all_names(self) -> Iterator[tuple[str, int]]:
        """(name, row) of every path and alias, in the order of the rows."""
        for number, row in enumerate(self.all_rows()):
            yield from ((name, number) for name in sorted(set(row.names)) if self.find(name) == number)

    def _open_database(self, index_path: Path) -> sqlite3.Connection:
        digest = self._digest()
        name = self._corpus_file.name.removesuffix(".gz").removesuffix(".jsonl")
        self.folder = index_path / self.package / f"{name}-{digest}"
        names = cached_folder(self.folder / f"names-{_FORMAT}", self._build, flag="--index_path") / "names.sqlite"
        # Immutable: no locks and no journal, so a read-only or network folder will do.
        database = sqlite3.connect(f"{names.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
        database.execute("PRAGMA mmap_size = 1073741824")  # the pages are then shared by all processes
        return database

    def _digest(self) -> str:
        digest = hashlib.blake2b(digest_size=8)
        digest.update(hashlib.file_digest(self._file, "blake2b").digest())
        for path in (names_file(self._corpus_file), notes_file(self._corpus_file)):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
        return digest.hexdigest()

    def _build(self, folder: Path) -> None:
        _remove_indexes_of_former_content(self.folder)
        with contextlib.closing(sqlite3.connect(folder / "names.sqlite", isolation_level=None)) as database:
            database.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {_SCHEMA} BEGIN;")
            aliases: list[tuple[int, int]] = []
            for row, (block, offset, line) in enumerate(_lines_with_offsets(self._reader)):
                parsed = parse_row(line, self._corpus_file)
                place = (row, block, offset, line.size, public_name(parsed))
                database.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", place)
                database.execute("INSERT OR IGNORE INTO names VALUES (?, ?)", (_key(parsed.path), row))
                lasts = {(name.rpartition(".")[2], row) for name in parsed.names}
                database.executemany("INSERT OR IGNORE INTO lasts VALUES (?, ?)", sorted(lasts))
                if digest := summary_digest(parsed.doc):
                    database.execute("INSERT INTO summaries VALUES (?, ?)", (digest, row))
                aliases += [(_key(alias), row) for alias in parsed.aliases]
            # After all paths: where an object is defined counts more than a name that leads elsewhere.
            database.executemany("INSERT OR IGNORE INTO names VALUES (?, ?)", aliases)
            self._add_namespaces(database)
            self._add_notes(database)
            database.execute("COMMIT")

    def _add_namespaces(self, database: sqlite3.Connection) -> None:
        path = names_file(self._corpus_file)
        if not path.exists():
            database.execute("INSERT INTO facts VALUES ('')")
            return
        head, spaces = read_namespaces(path)
        database.execute("INSERT INTO facts VALUES (?)", (head.python,))
        database.executemany("INSERT INTO errors VALUES (?, ?)", head.errors.items())
        objects = ((number, _key(name)) for number, name in enumerate(head.objects))
        database.executemany("INSERT INTO objects SELECT ?, row FROM names WHERE key = ?", objects)
        for number, space in enumerate(spaces):
            content = zlib.compress(json.dumps(to_row(space), separators=(",", ":")).encode())
            database.execute("INSERT INTO spaces VALUES (?, ?)", (number, content))
            database.executemany(
                "INSERT OR IGNORE INTO modules VALUES (?, ?)", [(name, number) for name in space.modules]
            )
            homes = {target[1:].partition(".")[0] for target in space.names.values() if target[:1] == "="}
            database.executemany("INSERT OR IGNORE INTO beside VALUES (?)", [(home,) for home in sorted(homes)])

    def _add_notes(self, database: sqlite3.Connection) -> None:
        path = notes_file(self._corpus_file)
        for number, note in enumerate(read_notes(path) if path.exists() else ()):
            database.execute("INSERT INTO notes VALUES (?, ?, ?, ?)", (number, note.text, note.version, note.source))
            lasts = {mention.name.rpartition(".")[2] for mention in names_in(note.text)}
            database.executemany("INSERT INTO noted VALUES (?, ?)", [(last, number) for last in sorted(lasts)])


def _read_row(reader: RowReader, database: sqlite3.Connection, corpus_file: Path, row: int) -> CorpusRow:
    place = database.execute("SELECT block, offset, size FROM rows WHERE id = ?", (row,)).fetchone()
    content = reader.read(*place)
    try:
        return parse_row(JsonLine(index=row, number=row + 1, content=content, size=len(content)), corpus_file)
    except DataError:
        raise DataError(f"{corpus_file} was edited in place while it was read; start again.") from None


def _read_namespace(database: sqlite3.Connection, number: int) -> Namespace:
    (content,) = database.execute("SELECT content FROM spaces WHERE id = ?", (number,)).fetchone()
    return from_row(json.loads(zlib.decompress(content)))


def _close(file: BinaryIO, database: sqlite3.Connection) -> None:
    database.close()
    file.close()


def _key(name: str) -> int:
    """Stands for a name, in a fifth of its room; two of a million names share one in one of 10^7 indexes."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), signed=True)


def summary_digest(doc: str) -> str:
    """The same for documentation that begins with the same sentence; "" for one that says too little."""
    words = re.findall(r"\w+", summary(doc).casefold())
    if len(words) < _WORDS_THAT_TELL:
        return ""
    return hashlib.blake2b(" ".join(words).encode(), digest_size=6).hexdigest()


def public_name(row: CorpusRow) -> str:
    """The name with the fewest private components, then the fewest components, then the shortest."""

    def cost(name: str) -> tuple[int, int, int, str]:
        components = name.split(".")
        return sum(part.startswith("_") for part in components), len(components), len(name), name

    return min(row.names, key=cost)


def _lines_with_offsets(reader: RowReader) -> Iterator[tuple[int, int, JsonLine]]:
    """(block, offset in it, line) of those that are not blank."""
    index = 0
    for number, (block, offset, content) in enumerate(reader.lines(), start=1):
        skipped = len(UTF8_BOM) if number == 1 and content.startswith(UTF8_BOM) else 0
        stripped = content[skipped:].rstrip()
        if stripped:
            line = JsonLine(index=index, number=number, content=stripped, size=len(stripped))
            yield block, offset + skipped, line
            index += 1


def _remove_indexes_of_former_content(folder: Path) -> None:
    stem = folder.name.rpartition("-")[0]
    for other in folder.parent.glob(f"{stem}-*"):
        if other != folder and other.name.rpartition("-")[0] == stem:
            shutil.rmtree(other, ignore_errors=True)


def cached_folder(
    folder: Path, build: Callable[[Path], None], *, flag: str = "", patience: float = _PATIENCE_SECONDS
) -> Path:
    """Return `folder`, filled by `build(temporary folder)` unless it exists; safe with many processes.

    One process builds and the others wait for it, but not without end: one that stands still costs them `patience`
    seconds, after which they build for themselves.

    Raises:
        SettingsError: the folder cannot be written; `flag` is the one that chooses the place.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(folder.name + ".lock"))
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(Timeout):
                stack.enter_context(lock.acquire(timeout=patience))
            if folder.is_dir():  # made by another process while we waited
                return folder
            if lock.is_locked:
                for other in folder.parent.glob(f"{folder.name}.*.tmp"):
                    if time.time() - other.stat().st_mtime > _FORGOTTEN_SECONDS:  # of a process that was killed
                        shutil.rmtree(other, ignore_errors=True)
            _build_apart(folder, build)
    except OSError as error:
        raise SettingsError(
            f"{folder} cannot be written: {error.strerror or error}; free space, or permit it"
            f"{f', or choose another place with {flag}' if flag else ''}."
        ) from error
    return folder


def _build_apart(folder: Path, build: Callable[[Path], None]) -> None:
    temporary = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        build(temporary)
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
