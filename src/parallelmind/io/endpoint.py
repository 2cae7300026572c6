"""Which server is asked, and with which key."""

from __future__ import annotations

import ipaddress
import logging
import os
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field

from parallelmind.errors import SettingsError
from parallelmind.io.urls import secrets_of, shown_url

_LOGGER = logging.getLogger(__name__)

OPENAI_URL = "https://api.openai.com/v1"
TOGETHER_URL = "https://api.together.xyz/v1"
_SERVICES = {"openai": (OPENAI_URL, "OPENAI_API_KEY"), "togetherai": (TOGETHER_URL, "TOGETHER_API_KEY")}
_NO_KEY = "none"
"""Sent to servers that ask for no key, since the SDK insists on one."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server of the OpenAI protocol."""

    base_url: str = field(repr=False)
    """The address with its version: requests go to `{base_url}/chat/completions`."""
    key_name: str
    """The environment variable of the key."""
    key: str = field(repr=False, default=_NO_KEY)

    @property
    def secrets(self) -> list[str]:
        """What must not be written anywhere: the key, and the password of the address."""
        return ([] if self.key == _NO_KEY else [self.key]) + secrets_of(self.base_url)

    @property
    def shown_url(self) -> str:
        """The address as it may be written anywhere."""
        return shown_url(self.base_url)

    @property
    def is_openai(self) -> bool:
        return urllib.parse.urlsplit(self.base_url).hostname == urllib.parse.urlsplit(OPENAI_URL).hostname


def find_endpoint(
    inference_type: str,
    *,
    base_url: str | None = None,
    api_key_env: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Endpoint:
    """The server of `--inference_type openai|togetherai`, with the key from the environment.

    A server of your own (`base_url`) needs no key, unless `api_key_env` names one.

    Raises:
        SettingsError: there is no key, or it or the address cannot be right.
    """
    service_url, service_key = _SERVICES[inference_type]
    url = _checked_url(base_url) if base_url else service_url
    name = api_key_env or service_key
    key = environ.get(name, "").strip()
    if not key and (api_key_env or not base_url):
        raise SettingsError(
            f"the environment variable {name} is not set; --inference_type {inference_type} takes its key from it "
            "(--api_key_env names another variable)."
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise SettingsError(
            f"the environment variable {name} has characters that no key has (spaces, line ends, accents)."
        )
    endpoint = Endpoint(url, name, key or _NO_KEY)
    if key and _is_open_road(url):
        _LOGGER.warning("the key of %s goes to %s without encryption; use https", name, endpoint.shown_url)
    return endpoint


def _checked_url(url: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url.strip())
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 0) >= 0
    except ValueError:  # a port that is not a number, or half an IPv6 address
        valid = False
    if not valid or parts.query or parts.fragment or any(character.isspace() for character in url.strip()):
        shown = shown_url(url.rpartition("@")[2]).partition("?")[0]
        raise SettingsError(f"--base_url is {shown!r}; expected an address such as http://127.0.0.1:8000/v1.")
    path = parts.path.rstrip("/")
    for suffix in ("/chat/completions", "/completions"):
        path = path.removesuffix(suffix)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def _is_open_road(url: str) -> bool:
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    try:
        local = ipaddress.ip_address(host).is_private
    except ValueError:
        local = host == "localhost" or "." not in host
    return parts.scheme == "http" and not local
