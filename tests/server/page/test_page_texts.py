"""Hostile, long and foreign texts; the keyboard, small screens, the token grid, and the real scripted."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.server.page.browsing import answer, expect_state, fill, opened, run_all, share_link, wait_until
from tests.server.page.conftest import Complaints
from tests.server.page.fake_server import HOLD, FakeServer

ATTACKS = [
    "<script>window.hacked = 1</script>",
    '<img src="x" onerror="window.hacked = 2">',
    '"><svg onload=window.hacked=3>',
    "</textarea><iframe src='javascript:parent.hacked=4'></iframe>",
    "${window.hacked = 5} {{window.hacked = 6}} javascript:window.hacked=7",
]


def test_texts_are_never_taken_for_markup(page: Page, scripted: FakeServer) -> None:
    scripted.script = lambda prompt: [prompt[:7], prompt[7:]]
    scripted.info |= {"model": ATTACKS[1], "adapters": [ATTACKS[0]], "visibilities": [ATTACKS[2]]}
    fill(opened(page, scripted.url), ATTACKS[1], *ATTACKS)
    expect(page.locator("#model")).to_have_text(ATTACKS[1])
    elements = page.evaluate("document.querySelectorAll('script, img, svg, iframe').length")
    run_all(page)
    for number, attack in enumerate(ATTACKS, start=1):
        expect(answer(page, number)).to_have_text(attack)
    page.locator("#grid summary").click()
    expect(page.locator(".token").first).to_have_text("<img")
    page.locator(".token").first.hover()
    expect(page.locator("#grid-said")).to_contain_text("“<img”")
    link = share_link(page)
    page.goto("about:blank")
    opened(page, link)
    expect(page.get_by_label("Prompt of branch 5")).to_have_value(ATTACKS[4])
    assert page.evaluate("document.querySelectorAll('script, img, svg, iframe').length") == elements
    assert page.evaluate("window.hacked") is None


def test_long_answers_and_long_lines(page: Page, scripted: FakeServer) -> None:
    lines = [f"line {number} " + "x" * 60 + "\n" for number in range(6_000)]
    unbroken = ["长" * 1_000] * 200
    scripted.script = lambda prompt: lines if prompt == "lines" else unbroken
    main = "word " * 100_000
    fill(opened(page, scripted.url), main, "lines", "unbroken")
    run_all(page)
    expect_state(page, 1, "done")
    expect_state(page, 2, "done")
    for number, whole in ((1, "".join(lines)), (2, "".join(unbroken))):
        wait_until(
            page,
            "([n, size]) => document.querySelectorAll('.output')[n].textContent.length === size",
            [number - 1, len(whole)],
        )
        assert answer(page, number).evaluate("element => element.textContent") == whole
    assert answer(page, 1).evaluate("element => element.childElementCount") > 50
    assert scripted.bodies[0]["main"] == main
    # The last lines are in view, as they came.
    left = answer(page, 1).evaluate("element => element.scrollHeight - element.scrollTop - element.clientHeight")
    assert left < 100
    assert answer(page, 2).evaluate("element => element.scrollWidth <= element.clientWidth")


def test_texts_of_many_languages(page: Page, scripted: FakeServer) -> None:
    texts = [
        "你好,世界。小明住在北京",
        "مرحبا بالعالم hello مرة أخرى",
        "שלום עולם",
        "👩‍👩‍👧 🇸🇪 é",
        "a\tb\n  indented\n\nend",
    ]
    scripted.script = lambda prompt: list(prompt)
    fill(opened(page, scripted.url), "\n".join(texts), *texts)
    run_all(page)
    for number, text in enumerate(texts, start=1):
        expect_state(page, number, "done")
        wait_until(
            page, "([n, text]) => document.querySelectorAll('.output')[n].textContent === text", [number - 1, text]
        )
    assert [branch["prompt"] for branch in scripted.bodies[0]["branches"]] == texts
    # Right-to-left text begins at the right.
    side = "element => getComputedStyle(element.firstElementChild).direction"
    assert [answer(page, number).evaluate(side) for number in (1, 2, 3)] == ["ltr", "rtl", "rtl"]


def test_everything_by_keyboard(page: Page, scripted: FakeServer) -> None:
    scripted.script = lambda prompt: [prompt, HOLD, "!"]
    opened(page, scripted.url)
    press, write = page.keyboard.press, page.keyboard.type
    press("Tab")
    expect(page.get_by_role("link", name="Skip to the shared text")).to_be_focused()
    press("Enter")
    press("Alt+m")
    write("shared")
    for prompt in ("one", "two", "three"):
        press("Alt+n")
        write(prompt)
    press("Alt+k")
    expect(page.get_by_label("Prompt of branch 2")).to_be_focused()
    press("Alt+x")
    expect(page.get_by_label("Prompt of branch 2")).to_have_value("three")
    press("Alt+k")
    expect(page.get_by_label("Prompt of branch 1")).to_be_focused()
    press("Control+Enter")
    expect_state(page, 1, "writing")
    expect_state(page, 2, "writing")
    press("Escape")
    expect_state(page, 1, "stopped")
    expect_state(page, 2, "stopped")
    press("Alt+j")
    press("Control+Shift+Enter")
    expect_state(page, 2, "writing")
    expect_state(page, 1, "stopped")
    scripted.release()
    expect(answer(page, 2)).to_have_text("three!")
    press("Alt+j")
    expect(page.get_by_label("Shared text", exact=True)).to_be_focused()
    assert [[one["prompt"] for one in body["branches"]] for body in scripted.bodies] == [["one", "three"], ["three"]]


def test_focus_is_visible_follows_the_page_and_survives(page: Page, scripted: FakeServer) -> None:
    scripted.script = lambda prompt: [prompt, HOLD]
    fill(opened(page, scripted.url), "main", "one")
    page.get_by_label("Shared text", exact=True).focus()
    order = []
    for _ in range(10):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            "[document.activeElement.getAttribute('aria-label') || document.activeElement.textContent.trim(),"
            " getComputedStyle(document.activeElement).outlineStyle]"
        )
        assert focused[1] != "none", focused
        order.append(focused[0].split("\n")[0].strip())
    assert order[:2] == ["Run all", "Add branch"]
    assert order[4:] == [
        "Run branch 1",
        "Settings of branch 1",
        "Remove branch 1",
        "Prompt of branch 1",
        "Answer of branch 1",
        "Token grid: positions, and who sees whom",
    ]
    page.get_by_role("button", name="Run branch 1").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Stop branch 1")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Run branch 1")).to_be_focused()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Keyboard")).to_be_hidden()


def test_every_control_has_a_name(page: Page, scripted: FakeServer) -> None:
    fill(opened(page, scripted.url), "main", "one")
    page.locator("#settings summary").click()
    page.get_by_role("button", name="Settings of branch 1").click()
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, input, select, textarea, [tabindex]")].filter((element) =>
            element.checkVisibility() && !(element.getAttribute("aria-label") || element.labels?.length ||
            (element.tagName === "BUTTON" && element.textContent.trim()))).map((element) => element.outerHTML)"""
    )
    assert nameless == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((element) => element.id)")
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("viewport", [(390, 844)])
def test_on_a_phone(page: Page, scripted: FakeServer, viewport: tuple[int, int]) -> None:
    fill(opened(page, scripted.url), "main", "one", "two", "three")
    run_all(page)
    expect_state(page, 3, "done")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    widths = page.locator(".branch").evaluate_all("all => all.map((one) => one.getBoundingClientRect().width)")
    assert all(300 < width < 360 for width in widths)
    page.get_by_label("Prompt of branch 3").focus()
    answer(page, 3).scroll_into_view_if_needed()
    expect(answer(page, 3)).to_be_in_viewport()
    small = page.evaluate(
        """[...document.querySelectorAll("button")].filter((one) => one.checkVisibility()).filter((one) =>
            one.getBoundingClientRect().height < 32 || one.getBoundingClientRect().width < 32).length"""
    )
    assert small == 0


def test_colours(page: Page, scripted: FakeServer) -> None:
    page.emulate_media(color_scheme="dark")
    opened(page, scripted.url)
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.get_by_role("button", name="Colours: like the system").click()
    light = page.evaluate(background)
    assert dark != light
    page.reload()
    assert page.evaluate(background) == light
    page.get_by_role("button", name="Colours: light").click()
    assert page.evaluate(background) == dark
    page.get_by_role("button", name="Colours: dark").click()
    page.emulate_media(color_scheme="light")
    assert page.evaluate(background) == light


def test_the_token_grid(page: Page, scripted: FakeServer, complaints: Complaints) -> None:
    complaints.expected.append("status of 400")
    fill(opened(page, scripted.url), "m0 m1 m2", "a3 a4", "b3")
    page.locator("#grid summary").click()
    expect(page.locator(".token")).to_have_text(["m0", "m1", "m2", "a3", "a4", "b3"])
    canvas = page.locator("#grid-canvas")
    expect(canvas).to_have_attribute(
        "aria-label",
        "Mask of 6 tokens, 3 of the shared text and the others in 2 branches;"
        " visibility isolated; 19 of 36 pairs see each other. Choose a token with the arrow keys to hear what it sees.",
    )
    page.locator(".token", has_text="a4").hover()
    said = page.locator("#grid-said")
    expect(said).to_have_text("“a4”: branch 1, time 4, position (128, 4); sees 3 of the shared text, 2 of branch 1")
    expect(page.locator(".token.seen")).to_have_text(["m0", "m1", "m2", "a3", "a4"])
    page.mouse.move(0, 0)
    expect(said).to_be_empty()
    page.locator("#grid-tokens").focus()
    page.keyboard.press("End")
    expect(said).to_contain_text("“b3”: branch 2")
    page.keyboard.press("ArrowLeft")
    expect(said).to_contain_text("“a4”: branch 1")
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 10)
    expect(said).to_contain_text("“m0”: shared text, time 0, position (0, 0)")
    page.get_by_label("Shared text", exact=True).fill("changed " * 600)
    expect(page.locator("#grid-note")).to_have_text("The texts have changed since.")
    page.get_by_role("button", name="Draw again").click()
    expect(page.locator("#grid-note")).to_have_text("the row has too many tokens")
    expect(page.locator("#grid-view")).to_be_hidden()
