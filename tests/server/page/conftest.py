"""A real Chromium on the page; whatever it complains about, or asks of others, fails the test."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Route, expect, sync_playwright

from tests.server.page.fake_server import FakeServer

ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
OUTSIDE = re.compile(r"^(?!http://127\.0\.0\.1:)")
expect.set_options(timeout=60_000)  # machines that run other tests beside are slow
REPORT_VIOLATIONS = """document.addEventListener("securitypolicyviolation",
    (event) => console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`));"""


@dataclass
class Complaints:
    """What the browser reported, and what the test expects of it."""

    seen: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.seen.append(message.text)

    def unexpected(self) -> list[str]:
        return [text for text in self.seen if not any(re.search(known, text) for known in self.expected)]


# Not for the whole session: while Playwright runs, no other test could run an event loop of its own.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        assert not os.environ.get("CI"), "no Chromium: install it (apt-get install chromium)"
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS.split())
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def _scripted() -> Iterator[FakeServer]:
    server = FakeServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def scripted(_scripted: FakeServer) -> FakeServer:
    _scripted.reset()
    return _scripted


@pytest.fixture
def complaints() -> Iterator[Complaints]:
    complaints = Complaints()
    yield complaints
    assert complaints.unexpected() == []


@pytest.fixture
def viewport() -> tuple[int, int]:
    return 1280, 800


@pytest.fixture
def page(browser: Browser, complaints: Complaints, viewport: tuple[int, int]) -> Iterator[Page]:
    """A fresh profile, no page opened yet."""
    width, height = viewport
    context = browser.new_context(viewport={"width": width, "height": height}, has_touch=width < 500)
    context.set_default_timeout(60_000)
    context.grant_permissions(["clipboard-read", "clipboard-write"])

    def outside(route: Route) -> None:
        complaints.seen.append(f"outside request: {route.request.url}")
        route.abort()

    context.route(OUTSIDE, outside)
    context.add_init_script(REPORT_VIOLATIONS)
    page = context.new_page()
    page.on("console", complaints.note)
    page.on("pageerror", lambda error: complaints.seen.append(f"exception: {error}"))
    yield page
    context.close()
