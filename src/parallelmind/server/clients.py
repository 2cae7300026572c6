"""The other end of a connection: who it is, and whether it is still there."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable
from typing import Any, TypeVar

from starlette.types import Receive

T = TypeVar("T")


class ClientGoneError(Exception):
    """The client no longer waits for the answer."""


def client_of(scope: Any) -> str:
    """Whose request it is, by its address; of IPv6 the first 64 bits, since one machine has all addresses in there."""
    host = str((scope.get("client") or ("",))[0])
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return host


async def gone(receive: Receive) -> None:
    """Wait until the client has hung up; its body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """Wait for work, which is cancelled when the client hangs up.

    Raises:
        ClientGoneError: it did.
    """
    watch, job = asyncio.ensure_future(gone(receive)), asyncio.ensure_future(work)
    try:
        await asyncio.wait((watch, job), return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            raise ClientGoneError
        return job.result()
    finally:
        watch.cancel()
        job.cancel()
