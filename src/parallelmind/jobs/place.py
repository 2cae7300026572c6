"""A name that a job may write under: the output, the folder with the job's state, the lock of the run that writes."""

from __future__ import annotations

import time
from pathlib import Path

from parallelmind.errors import JobError, SettingsError
from parallelmind.io.locks import HeldLock
from parallelmind.jobs.ledger import Ledger
from parallelmind.jobs.output import OutputFile
from parallelmind.jobs.sqlite_file import NoJobYetError
from parallelmind.jobs.storage import job_folder, ledger_path, lock_path, storage_error
from parallelmind.jobs.stored import Output, StoredJob
from parallelmind.jobs.writer import describe_writer, note_writer

_LOOK_SECONDS = 1.0
_PATIENCE_SECONDS = 5.0
"""For the ledger of a run that has just taken the lock."""


class JobPlace:
    """The place of the job whose output is `out_path`."""

    def __init__(self, out_path: Path) -> None:
        self.out_path = out_path
        self.folder = job_folder(out_path)
        self.ledger = ledger_path(self.folder)
        self.output = OutputFile(out_path, self.folder)

    @property
    def is_foreign(self) -> bool:
        """Whether something stands there that no job of this version made."""
        return not self.ledger.exists() and (self.output.has_content or self._is_of_earlier_version)

    def check(self, *, overwrite: bool) -> None:
        """Raises:
        SettingsError: the output is no file, or cannot be one.
        JobError: something stands there that no job of this version made, and it is not to be overwritten.
        """
        try:
            is_foreign, is_other = self.is_foreign, self.out_path.exists() and not self.out_path.is_file()
        except OSError as error:
            raise SettingsError(
                f"the output {self.out_path} cannot be: {error.strerror}; choose another (--out_path or --output_file)."
            ) from error
        if is_other:
            raise SettingsError(f"the output {self.out_path} is not a regular file; choose a file name.")
        if overwrite or not is_foreign:
            return
        if self.output.has_content:
            raise foreign(self.out_path)
        raise JobError(
            f"the job in {self.folder} was begun by an earlier version; finish it with that version, or begin anew "
            "with --overwrite."
        )

    def lock(self) -> HeldLock:
        """Make the folder, and be the run that writes there.

        Raises:
            JobError: the disk is full or failing.
            BusyError: another run is writing.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            busy = BusyError(
                f"another run is writing {self.out_path}{describe_writer(self.folder)}; wait until it ends, end it, or "
                "give another output (--out_path or --output_file)."
            )
            # Whoever looks whether a run is writing (`is_locked`) has the lock for a moment.
            lock = HeldLock(lock_path(self.folder), busy=busy, seconds=_LOOK_SECONDS)
            note_writer(self.folder)
        except OSError as error:
            raise storage_error(Path(error.filename or self.folder), error) from error
        return lock

    def soon_stored(self) -> StoredJob | None:
        """The job as it is stored by a run that writes, which may have begun a moment ago."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < until:
            if (stored := read_job(self.ledger)) is not None:
                return stored
            time.sleep(0.05)
        return None

    def standing(self, job: StoredJob) -> Output | None:
        """The output that stands there, which must be one that the job knows, byte for byte; None: there is none.

        Raises:
            JobError: it is another one, which is not to be replaced.
        """
        if not self.out_path.exists():
            return None
        digest = self.output.digest()
        # The next one, if the job was killed between putting it in place and saying so.
        for known in (job.next_output, job.output):
            if known is not None and digest == known.digest:
                return known
        if job.output is not None:
            raise JobError(
                f"{self.out_path} was edited after its job was complete; choose another output, or begin anew with "
                "--overwrite."
            )
        if self.output.has_content:
            raise foreign(self.out_path)
        return None

    @property
    def _is_of_earlier_version(self) -> bool:
        return (self.folder / "job.json").exists()


class BusyError(JobError):
    """Another run is writing."""


def read_job(path: Path) -> StoredJob | None:
    """The job that a ledger holds, which another process may be writing; None if there is none yet.

    Raises:
        JobError: the ledger is damaged, or of another version.
    """
    if not path.exists():
        return None
    try:
        ledger = Ledger(path, read_only=True)
    except NoJobYetError:
        return None
    try:
        return ledger.job()
    finally:
        ledger.close()


def foreign(path: Path) -> JobError:
    """What to tell the user of an output that is not the job's."""
    return JobError(
        f"{path} exists and was not made by this job; move it away, choose another output, or replace it with "
        "--overwrite."
    )
