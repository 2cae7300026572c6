"""Addresses with secrets in them (a password before the host, a signature behind the path), as they may be shown."""

from __future__ import annotations

import base64
import re
import urllib.parse

_WITH_SECRETS = re.compile(r"([a-zA-Z][\w+.-]*://)([^\s/?#]*@)?([^\s?#\"']*)(\?[^\s#\"']*)?(#[^\s\"']*)?")
_SHORTEST_ALONE = 8
"""A shorter password is hidden together with its name only: alone it may be a word of any text."""


def shown_url(url: str) -> str:
    """The address without name and password, and without what stands behind its path."""
    return shown_urls(url)


def shown_urls(text: str) -> str:
    """A text in which every address is a `shown_url`."""
    return _WITH_SECRETS.sub(lambda found: found[1] + found[3], text)


def credentials_of(url: str) -> tuple[str, str] | None:
    """(name, password) of an address, if it has them."""
    given, found, _ = urllib.parse.urlsplit(url).netloc.rpartition("@")
    if not found:
        return None
    name, _, password = given.partition(":")
    return urllib.parse.unquote(name), urllib.parse.unquote(password)


def secrets_of(url: str) -> list[str]:
    """What of an address must not be written anywhere, in the forms in which servers repeat it."""
    name_and_password = urllib.parse.urlsplit(url).netloc.rpartition("@")[0]
    if ":" not in name_and_password:
        return []
    plain = urllib.parse.unquote(name_and_password)
    found = [name_and_password, plain, base64.b64encode(plain.encode()).decode()]
    password = plain.partition(":")[2]
    return found + ([password] if len(password) >= _SHORTEST_ALONE else [])
