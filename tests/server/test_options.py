"""A server's settings, from flags and from the environment."""

from __future__ import annotations

import argparse

import pytest

from parallelmind.cli import serve
from parallelmind.errors import SettingsError
from parallelmind.server.loading import split_adapters
from parallelmind.server.options import ServeOptions


def test_options_from_the_environment() -> None:
    found = ServeOptions.from_environment(
        {
            "PARALLELMIND_BASE_MODEL": "m",
            "PARALLELMIND_LORA_PATH": "a=x.pth, b=y",
            "PARALLELMIND_PORT": "81",
            "PARALLELMIND_PATCH_ROPE": "no",
            "PARALLELMIND_KV_CACHE_GB": "1.5",
            "PARALLELMIND_API_KEY": "k",
            "PARALLELMIND_DEVICE": "",
            "PARALLELMIND_UNRELATED": "1",
        }
    )
    assert found == ServeOptions(
        base_model="m", lora_path=("a=x.pth", "b=y"), port=81, patch_rope=False, kv_cache_gb=1.5, api_key="k"
    )
    assert "'k'" not in repr(found)
    for wrong in ({"PORT": "x"}, {"LOAD_IN_8BIT": "perhaps"}, {"max_branches": "0"}):
        with pytest.raises(SettingsError, match=f"^PARALLELMIND_{next(iter(wrong)).upper()} is "):
            ServeOptions.from_environment(
                {"PARALLELMIND_BASE_MODEL": "m"}
                | {f"PARALLELMIND_{name.upper()}": value for name, value in wrong.items()}
            )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"port": 70000}, "--port is 70000"),
        ({"shutdown_timeout": float("nan")}, "--shutdown_timeout"),
        ({"api_key": " "}, "--api_key is empty"),
        ({"cors_origin": ("example.org",)}, "--cors_origin is 'example.org'"),
        ({"max_request_bytes": 10}, "--max_request_bytes is 10"),
        ({"kv_cache_gb": -1}, "--kv_cache_gb"),
    ],
    ids=str,
)
def test_wrong_values_name_the_flag(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        ServeOptions(base_model="m", **wrong)  # type: ignore[arg-type]


def test_adapters_have_names_unless_there_is_one() -> None:
    def split(*paths: str) -> tuple[str | None, dict[str, str]]:
        return split_adapters(ServeOptions(base_model="m", lora_path=paths))

    assert split() == (None, {})
    assert split("x.pth") == ("x.pth", {})
    assert split("a=x.pth", "b=y=z") == (None, {"a": "x.pth", "b": "y=z"})
    for wrong in (("x.pth", "y.pth"), ("a=x.pth", "y.pth"), ("a=x", "a=y"), ("m=x",), ("=x",), ("a=",), ("a:b=x",)):
        with pytest.raises(SettingsError, match="--lora_path"):
            split(*wrong)


def test_help_shows_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARALLELMIND_API_KEY", "very-secret")
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    assert "very-secret" not in parser.format_help()
