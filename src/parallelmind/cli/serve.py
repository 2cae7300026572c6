"""`parallelmind serve`: a model behind an HTTP API and a web page."""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec

from parallelmind.cli.args import add_model_flags, documented_default
from parallelmind.errors import SettingsError

_KEY_VARIABLE = "PARALLELMIND_API_KEY"
_NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_flags(parser, several_adapters=True)
    _add_server_flags(parser)
    _add_limits(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted or terminated; 0 if no request was cut off."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"serve needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed; "
            "run: pip install 'parallelmind[serve]'"
        )
    from parallelmind.server.options import ServeOptions
    from parallelmind.server.run import serve

    given = {name: value for name, value in vars(args).items() if name not in ("run", "debug")}
    given["lora_path"] = tuple(args.lora_path or ())
    given["cors_origin"] = tuple(args.cors_origin)
    given["allowed_host"] = tuple(args.allowed_host)
    # Read here and not in add_arguments, so that --help shows no key.
    given["api_key"] = args.api_key if args.api_key is not None else os.environ.get(_KEY_VARIABLE) or None
    return serve(ServeOptions(**given))


def _add_server_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server")
    group.add_argument("--host", default="127.0.0.1", help=documented_default("address to listen on", "127.0.0.1"))
    group.add_argument(
        "--port",
        type=int,
        default=8000,
        metavar="N",
        help=documented_default("port to listen on; 0: any free one", 8000),
    )
    group.add_argument(
        "--api_key",
        metavar="KEY",
        help=f"require this key; prefer to set {_KEY_VARIABLE}, which no process list shows (default: no key)",
    )
    group.add_argument(
        "--cors_origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="allow pages from this web origin to call the API; may be given several times (default: none)",
    )
    group.add_argument(
        "--allowed_host",
        action="append",
        default=[],
        metavar="NAME",
        help="name by which a server on 127.0.0.1 without a key may be called; may be given several times "
        "(default: localhost and its address)",
    )
    group.add_argument(
        "--shutdown_timeout",
        type=float,
        default=30.0,
        metavar="X",
        help=documented_default("seconds that running requests have to finish in after SIGTERM", 30),
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits")

    def add(name: str, default: int | None, text: str, shown: object = None) -> None:
        text = documented_default(text, default if shown is None else shown)
        group.add_argument(name, type=int, default=default, metavar="N", help=text)

    add("--max_queue", 256, "branches that may wait for a free place; more are refused with 429")
    add("--max_request_bytes", 8 * 2**20, "bytes in a request")
    add("--max_branches", 128, "branches in a request")
    add("--max_main_tokens", None, "tokens in a shared text", "what the model takes")
    add("--max_new_tokens", 4096, "tokens a branch may ask for")
    add("--max_running_branches", 64, "branches decoded at once")
    add("--max_batched_tokens", 2048, "tokens in one forward pass")
    group.add_argument(
        "--kv_cache_gb",
        type=float,
        metavar="X",
        help=documented_default("memory for keys and values, GiB", "half of what is free"),
    )
    group.add_argument(
        "--prefix_cache_gb",
        type=float,
        metavar="X",
        help=documented_default("the part of it that keeps shared texts for later requests, GiB", "half of it"),
    )
