"""Which server, which key, and that the key is not shown."""

from __future__ import annotations

import logging

import pytest

from parallelmind.answering.backends.api_errors import Redactor
from parallelmind.errors import SettingsError
from parallelmind.io.endpoint import find_endpoint
from tests.fake_openai import KEY


def test_services_and_their_keys() -> None:
    environ = {"OPENAI_API_KEY": "of-openai", "TOGETHER_API_KEY": " of-together\n", "MINE": "of-mine"}
    openai = find_endpoint("openai", environ=environ)
    assert (openai.base_url, openai.key, openai.is_openai) == ("https://api.openai.com/v1", "of-openai", True)
    together = find_endpoint("togetherai", environ=environ)
    assert (together.base_url, together.key) == ("https://api.together.xyz/v1", "of-together")
    mine = find_endpoint("openai", base_url="http://127.0.0.1:8000/v1/", api_key_env="MINE", environ=environ)
    assert (mine.base_url, mine.key, mine.is_openai) == ("http://127.0.0.1:8000/v1", "of-mine", False)
    assert "of-mine" not in repr(mine)


def test_a_server_of_ones_own_needs_no_key() -> None:
    endpoint = find_endpoint("openai", base_url="http://127.0.0.1:8000/v1", environ={})
    assert endpoint.secrets == []
    assert endpoint.key


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"inference_type": "togetherai"}, "TOGETHER_API_KEY is not set"),
        ({"inference_type": "openai"}, "OPENAI_API_KEY is not set"),
        ({"inference_type": "openai", "base_url": "http://h/v1", "api_key_env": "MINE"}, "MINE is not set"),
    ],
)
def test_a_missing_key_is_named(arguments: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        find_endpoint(**arguments, environ={"MINE": "  "})


@pytest.mark.parametrize("key", ["two words", "schlüssel-12345", "line\nbreak", "nul\0"])
def test_a_key_that_cannot_be_sent_is_not_shown(key: str) -> None:
    with pytest.raises(SettingsError, match="OPENAI_API_KEY has characters") as caught:
        find_endpoint("openai", environ={"OPENAI_API_KEY": key})
    assert key not in str(caught.value)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://h/v1", "http://", "http://h:port/v1", "http://h/v1?key=3"])
def test_a_bad_address(url: str) -> None:
    with pytest.raises(SettingsError, match=r"--base_url is .*expected an address such as"):
        find_endpoint("openai", base_url=url, environ={})


@pytest.mark.parametrize("url", ["http://name:my secret@h/v1", "http://h/v1?key=secret", "http://name:a/secret@h/v1"])
def test_a_bad_address_is_shown_without_secrets(url: str) -> None:
    with pytest.raises(SettingsError, match="expected an address such as") as caught:
        find_endpoint("openai", base_url=url, environ={})
    assert "secret" not in str(caught.value)


def test_the_address_of_a_request_is_cut_to_the_base() -> None:
    endpoint = find_endpoint("openai", base_url="http://h:1/v1/chat/completions", environ={})
    assert endpoint.base_url == "http://h:1/v1"


def test_a_password_in_the_address_is_not_shown() -> None:
    endpoint = find_endpoint("openai", base_url="https://me:secret@h:1/v1", environ={})
    assert endpoint.shown_url == "https://h:1/v1"
    with pytest.raises(SettingsError) as caught:
        find_endpoint("openai", base_url="https://me:secret@h:x/v1", environ={})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("http://example.com/v1", True),
        ("https://example.com/v1", False),
        ("http://10.1.2.3/v1", False),
        ("http://localhost:80/v1", False),
        ("http://[::1]:80/v1", False),
    ],
)
def test_a_key_in_the_open_is_warned_of(url: str, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        find_endpoint("openai", base_url=url, environ={"OPENAI_API_KEY": KEY})
    assert ("without encryption" in caplog.text) is warned
    assert KEY not in caplog.text


def test_redaction_in_every_form_a_server_may_echo() -> None:
    key = 'a+b/c"d=='
    redactor = Redactor(key)
    for form in (key, 'a+b/c\\"d==', "a%2Bb%2Fc%22d%3D%3D", "YStiL2MiZD09"):
        assert redactor.text(f"<{form}>") == "<[key removed]>"
    assert redactor.value({"x": [f"y{key}", 3, None]}) == {"x": ["y[key removed]", 3, None]}
    assert Redactor("").text("any") == "any"
    assert key not in repr(redactor)
