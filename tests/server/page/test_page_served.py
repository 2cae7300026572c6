"""The page on the real server, with the bundled model."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.server.page.browsing import answer, branch, expect_state, fill, opened, run_all
from tests.server.page.conftest import Complaints
from tests.server.serving import Running


def test_the_example(page: Page, server: Running) -> None:
    opened(page, server.url)
    expect(page.locator("#model")).to_have_text("tiny")
    page.get_by_role("button", name="Load an example").click()
    run_all(page)
    for number, text in enumerate(["26", "91", "blue", "北京"], start=1):
        expect(answer(page, number)).to_have_text(text)
        expect_state(page, number, "done")
    expect(page.locator("#main-meta")).to_have_text("36 tokens")
    run_all(page)
    expect(page.locator("#total-cached")).to_have_text("36 of 36")
    page.locator("#grid summary").click()
    page.locator(".token", has_text="·Dan").last.hover()
    expect(page.locator("#grid-said")).to_have_text(
        "“·Dan”: branch 1, time 39, position (128, 39); sees 36 of the shared text, 4 of branch 1"
    )
    page.get_by_label("Preset").select_option("factual")
    page.locator("#settings summary").click()
    page.locator("#settings-form").get_by_label("Visibility").select_option("strict")
    page.get_by_role("button", name="Draw again").click()
    expect(page.locator("#grid-note")).to_contain_text("visibility strict")


def test_stopping_frees_the_server(page: Page, server: Running) -> None:
    fill(opened(page, server.url), "", *["北京北京北京"] * 3)  # what the bundled model goes on with for ever
    page.locator("#settings summary").click()
    for name, value in {"Temperature": "0", "Max tokens": "1900", "Repetition penalty": "1.1"}.items():
        page.locator("#settings-form").get_by_label(name).fill(value)
    run_all(page)
    for number in (1, 2, 3):
        expect_state(page, number, "writing")
    page.get_by_role("button", name="Stop branch 2").click()
    expect_state(page, 2, "stopped")
    page.keyboard.press("Escape")
    for number in (1, 3):
        expect_state(page, number, "stopped")
        expect(branch(page, number).locator(".stats")).to_contain_text("tokens")
        assert 0 < len(answer(page, number).inner_text()) < 3800
    server.wait_until(server.idle, "the server is idle")


def test_what_the_server_refuses_is_shown(page: Page, server: Running, complaints: Complaints) -> None:
    complaints.expected.append("status of 400")
    fill(opened(page, server.url), "", "one")
    page.locator("#settings summary").click()
    page.locator("#settings-form").get_by_label("Max tokens").fill("100000")
    run_all(page)
    expect(branch(page, 1).locator(".problem")).to_contain_text("max_tokens is 100000")
