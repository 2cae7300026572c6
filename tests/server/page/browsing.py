"""What the tests of the page do with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from playwright.sync_api import Locator, Page, expect


def opened(page: Page, url: str) -> Page:
    page.goto(url)
    page.locator("html[data-set=up]").wait_for()
    return page


def fill(page: Page, main: str, *prompts: str) -> None:
    page.get_by_label("Shared text", exact=True).fill(main)
    for number, prompt in enumerate(prompts, start=1):
        page.get_by_role("button", name="Add branch").click()
        page.get_by_label(f"Prompt of branch {number}").fill(prompt)


def run_all(page: Page) -> None:
    page.get_by_role("button", name="Run all").click()


def answer(page: Page, number: int) -> Locator:
    return page.get_by_role("region", name=f"Answer of branch {number}")


def branch(page: Page, number: int) -> Locator:
    return page.get_by_role("article", name=f"Branch {number}")


def expect_state(page: Page, number: int, state: str) -> None:
    expect(branch(page, number).locator(".state")).to_have_text(state)


def share_link(page: Page) -> str:
    """The link of the dialog that is left open."""
    page.get_by_role("button", name="Share").click()
    expect(page.get_by_role("dialog", name="Share by link")).to_be_visible()
    return page.get_by_label("Link", exact=True).input_value()


def wait_until(page: Page, expression: str, argument: Any = None) -> None:
    """Wait for a truthy value; `page.wait_for_function` evaluates text in the page, which its policy forbids."""
    wait_for(page, lambda: page.evaluate(expression, argument), expression)


def wait_for(page: Page, reached: Callable[[], Any], what: str) -> None:
    """Wait while the page goes on: for as long as `expect` would, at least."""
    for _ in range(3000):
        if reached():
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"did not become true: {what}")


def stored(page: Page) -> Any:
    """The draft that the page keeps."""
    return page.evaluate("JSON.parse(localStorage.getItem('parallelmind.draft'))")
