"""The files of a distribution in the package indexes that pip is configured for, by the simple API (PEP 503, 691).

Only for what pip does not do, or not without running a package's code: choosing a wheel for another Python, and
fetching a source archive.
"""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from http import HTTPStatus
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import Version

from parallelmind.errors import DataError
from parallelmind.io.atomic import replacing
from parallelmind.retrieval.corpus.names import parse_archive_name
from parallelmind.retrieval.corpus.pip import MAX_ARCHIVE, pip_settings

_DEFAULT_INDEX = "https://pypi.org/simple"
_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
_SECONDS = 60
_MAX_PAGE = 256 * 2**20


@dataclass(frozen=True, slots=True)
class IndexFile:
    """One archive that an index offers."""

    name: str
    url: str
    distribution: str
    version: Version
    sha256: str = ""
    yanked: bool = False
    uploaded: str = ""
    """When, in the ISO format of UTC; "" if the index does not say."""

    @property
    def is_wheel(self) -> bool:
        return self.name.endswith(".whl")


class PackageIndex:
    """The indexes and folders in pip's configuration and environment."""

    def __init__(self, indexes: list[str], folders: list[str], certificates: str | None = None) -> None:
        self._indexes, self._folders = indexes, folders
        # A file of certificates is a person's own choice, as for pip.
        self._tls = ssl.create_default_context(cafile=certificates)

    @classmethod
    def configured(cls) -> PackageIndex:
        """The settings that `pip config list` shows."""
        settings = pip_settings()
        indexes = settings.get("index-url", _DEFAULT_INDEX).split() + settings.get("extra-index-url", "").split()
        if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
            indexes = []
        return cls(indexes, settings.get("find-links", "").split(), settings.get("cert"))

    def files(self, distribution: str) -> list[IndexFile]:
        """Everything that is offered; [] if no index has the distribution.

        Raises:
            DataError: no index could be asked.
        """
        found: dict[str, IndexFile] = {}
        failures = []
        for index in self._indexes:
            url = f"{index.rstrip('/')}/{canonicalize_name(distribution)}/"
            try:
                offered = list(_offered(url, *self._get(url, _MAX_PAGE)))
            except (OSError, ValueError) as error:
                if getattr(error, "code", None) != HTTPStatus.NOT_FOUND and not url.startswith("file:"):
                    failures.append(f"{_without_password(url)}: {error}")
                continue
            for item in offered:
                found.setdefault(item.name, item)
        for folder in self._folders:
            for path in sorted(Path(folder.removeprefix("file://")).glob("*")):
                if (local := _file(path.name, path.resolve().as_uri())) is not None:
                    found.setdefault(local.name, local)
        if failures and not found:
            raise DataError(f"no package index can be asked ({'; '.join(failures)}); give the archive with --wheel.")
        name = canonicalize_name(distribution)
        return [item for item in found.values() if item.distribution == name]

    def download(self, item: IndexFile, folder: Path, *, limit: int = MAX_ARCHIVE) -> Path:
        """Fetch a file of at most `limit` bytes, and compare it with the hash in the index.

        Raises:
            DataError: it cannot be fetched, or has another hash.
        """
        try:
            content, _ = self._get(item.url, limit)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{item.name} cannot be fetched from {_without_password(item.url)}: {error}; start again."
            ) from error
        digest = hashlib.sha256(content).hexdigest()
        if item.sha256 and digest != item.sha256:
            raise DataError(
                f"{item.name} has the hash {digest}, but the index says {item.sha256}; it is not used. Start again."
            )
        path = folder / item.name
        with replacing(path) as temporary:
            temporary.write_bytes(content)
        return path

    def _get(self, url: str, limit: int) -> tuple[bytes, str]:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme == "file":
            path = Path(urllib.request.url2pathname(parts.path))
            return (path / "index.html" if path.is_dir() else path).read_bytes(), "text/html"
        request = urllib.request.Request(url, headers={"Accept": _ACCEPT, "User-Agent": "parallelmind"})
        handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=self._tls)]
        if parts.username:
            request.full_url = urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
            passwords = urllib.request.HTTPPasswordMgrWithPriorAuth()
            user, password = (urllib.parse.unquote(part or "") for part in (parts.username, parts.password))
            passwords.add_password(None, request.full_url, user, password, is_authenticated=True)
            handlers.append(urllib.request.HTTPBasicAuthHandler(passwords))
        with urllib.request.build_opener(*handlers).open(request, timeout=_SECONDS) as answer:
            content: bytes = answer.read(limit + 1)
            if len(content) > limit:
                raise ValueError(f"more than {limit:,} bytes")
            return content, answer.headers.get_content_type()


def _offered(page: str, content: bytes, kind: str) -> Iterator[IndexFile]:
    if kind == "application/vnd.pypi.simple.v1+json":
        for entry in json.loads(content)["files"]:
            url = urllib.parse.urljoin(page, entry["url"])
            sha256 = entry.get("hashes", {}).get("sha256", "")
            uploaded = str(entry.get("upload-time") or "")
            item = _file(entry["filename"], url, sha256=sha256, yanked=bool(entry.get("yanked")), uploaded=uploaded)
            if item is not None and not _leads_home(page, url):
                yield item
        return
    links = _Links()
    links.feed(content.decode("utf-8", "replace"))
    for href, yanked in links.found:
        url = urllib.parse.urljoin(page, href)
        parts = urllib.parse.urlsplit(url)
        name = urllib.parse.unquote(parts.path.rpartition("/")[2])
        sha256 = re.search(r"sha256=([0-9a-f]{64})", parts.fragment)
        plain = urllib.parse.urlunsplit(parts._replace(fragment=""))
        item = _file(name, plain, sha256=sha256.group(1) if sha256 else "", yanked=yanked)
        if item is not None and not _leads_home(page, url):
            yield item


def _leads_home(page: str, url: str) -> bool:
    """Whether a page on the network offers a file of this machine."""
    return urllib.parse.urlsplit(url).scheme == "file" and not page.startswith("file:")


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "a" and (href := given.get("href")):
            self.found.append((href, "data-yanked" in given))


def _file(name: str, url: str, *, sha256: str = "", yanked: bool = False, uploaded: str = "") -> IndexFile | None:
    try:
        distribution, version = parse_archive_name(name)
    except ValueError:
        return None
    return IndexFile(name, url, distribution, version, sha256, yanked, uploaded)


def _without_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)
