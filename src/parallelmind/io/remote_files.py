"""Inputs and outputs that are not on a local disk: s3://, gs://, hf://, and whatever else fsspec reads.

A job needs files it can seek in, lock and append to. So a remote input is copied to the work folder first, the job
runs there, and its output is copied back when it is complete. The work folder keeps the state of the job: the same
command continues from it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import posixpath
from pathlib import Path
from typing import Any

from parallelmind.errors import DataError, JobError, SettingsError
from parallelmind.io.urls import shown_url, shown_urls

_LOGGER = logging.getLogger(__name__)
_EXTRAS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}


def is_remote(path: str | Path) -> bool:
    """Whether a path names a file system of its own, such as s3://bucket/file."""
    return "://" in str(path)


class LocalCopies:
    """Local stand-ins of remote files, in a work folder.

    Args:
        work_dir: where the copies and the state of the job live.
    """

    def __init__(self, work_dir: Path) -> None:
        self._work_dir = work_dir

    def input(self, path: str | Path) -> Path:
        """A local file with the content of `path`; copied again only if the remote file changed.

        Raises:
            DataError: it cannot be read.
            SettingsError: the library for this file system is not installed.
        """
        if not is_remote(path):
            return Path(path)
        url = str(path)
        local = self._local(url)
        system, name = _file_system(url)
        stamp_file = local.with_name(local.name + ".stamp")
        try:
            stamp = json.dumps([shown_url(url), system.checksum(name), system.size(name)], default=str)
            if local.exists() and stamp_file.exists() and stamp_file.read_text(encoding="utf-8") == stamp:
                return local
            local.parent.mkdir(parents=True, exist_ok=True)
            _LOGGER.info("copying %s to %s", shown_url(url), local)
            temporary = local.with_name(local.name + ".tmp")
            system.get_file(name, str(temporary))
        except FileNotFoundError:
            raise DataError(f"the input {shown_url(url)} does not exist.") from None
        except Exception as error:  # every file system has exceptions of its own
            raise DataError(f"cannot read {shown_url(url)} ({_said(error)}).") from None
        temporary.replace(local)
        stamp_file.write_text(stamp, encoding="utf-8")
        return local

    def local(self, path: str | Path) -> Path:
        """The local stand-in of a file: where `input` puts a copy, and from where `upload` takes it."""
        return self._local(str(path)) if is_remote(path) else Path(path)

    def upload(self, path: str | Path, written: Path | None = None) -> str | Path:
        """Copy the finished output to its place, under another name first, so that it is never seen in part.

        `written` is the local output, if its job gave it another name than `local` has; the place is then beside
        `path`, under that name. Returns where the output is now.

        Raises:
            JobError: it cannot be written; the local copy stays.
        """
        if not is_remote(path):
            return path if written is None else written
        url = str(path)
        local = self._local(url)
        if written is not None and written.name != local.name:
            prefix = local.name.removesuffix(posixpath.basename(url))
            url = posixpath.join(posixpath.dirname(url), written.name.removeprefix(prefix))
            local = written
        system, name = _file_system(url)
        try:
            system.makedirs(posixpath.dirname(name), exist_ok=True)
            partial = f"{name}.partial"
            system.put_file(str(local), partial)
            system.mv(partial, name)
        except Exception as error:
            raise JobError(
                f"cannot write {shown_url(url)} ({_said(error)}). The output is in {local}; "
                "start the same command again to copy it."
            ) from None
        _LOGGER.info("copied %s to %s", local, shown_url(url))
        return shown_url(url)

    def _local(self, url: str) -> Path:
        digest = hashlib.blake2b(url.encode(), digest_size=6).hexdigest()
        return self._work_dir / f"{digest}-{posixpath.basename(shown_url(url)) or 'file'}"


def _said(error: Exception) -> str:
    """What a file system said, which may have the address in it."""
    return shown_urls(f"{type(error).__name__}: {error}")


def _file_system(url: str) -> tuple[Any, str]:
    shown = shown_url(url)
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise SettingsError(f"{shown} needs fsspec; install it with pip install 'parallelmind[cloud]'.") from None
    scheme = url.partition("://")[0]
    try:
        system, name = url_to_fs(url)
    except ImportError:
        library = _EXTRAS.get(scheme, "its library")
        raise SettingsError(f"{shown} needs {library}; install it with pip install 'parallelmind[cloud]'.") from None
    except ValueError as error:
        said = shown_urls(f"{url}: {error}")
        raise SettingsError(f"{said}; known are paths such as s3://, gs:// and hf://.") from None
    return system, name
