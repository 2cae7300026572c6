"""The page in a browser: writing, running, stopping, sharing."""

from __future__ import annotations

import base64
import re
import zlib

import pytest
from playwright.sync_api import Page, expect
from starlette.responses import JSONResponse

from tests.server.page.browsing import (
    answer,
    branch,
    expect_state,
    fill,
    opened,
    run_all,
    share_link,
    stored,
    wait_for,
    wait_until,
)
from tests.server.page.conftest import Complaints
from tests.server.page.fake_server import HOLD, FakeServer


def test_branches_fill_while_they_are_written(page: Page, scripted: FakeServer) -> None:
    scripted.script = lambda prompt: ["so ", "far ", prompt, HOLD, " and", " on"]
    fill(opened(page, scripted.url), "a story", "one", "two", "three")
    run_all(page)
    for number, prompt in enumerate(["one", "two", "three"], start=1):
        expect(answer(page, number)).to_have_text(f"so far {prompt}")
        expect_state(page, number, "writing")
    expect(page.locator("#main-meta")).to_have_text("12 tokens")
    scripted.release()
    for number, prompt in enumerate(["one", "two", "three"], start=1):
        expect(answer(page, number)).to_have_text(f"so far {prompt} and on")
        expect_state(page, number, "done")
        expect(branch(page, number).locator(".stats")).to_have_text(re.compile(r"^5 tokens · [\d.]+/s · first \d+ ms$"))
    expect(page.locator("#total-tokens")).to_have_text("15")
    expect(page.locator("#total-cached")).to_have_text("7 of 12")
    expect(page.locator("#total-first")).to_have_text(re.compile(r"^\d+ ms$"))
    expect(page.locator("#announcer")).to_have_text("Branch 3 done: so far three and on")
    assert scripted.bodies == [
        {
            "main": "a story",
            "branches": [{"prompt": text, "branch_id": n} for n, text in enumerate(["one", "two", "three"], 1)],
            "stream": True,
        }
    ]


def test_one_branch_is_stopped_then_all(page: Page, scripted: FakeServer) -> None:
    scripted.script = lambda prompt: [prompt, HOLD, "never"]
    fill(opened(page, scripted.url), "main", "one", "two", "three")
    run_all(page)
    for number in (1, 2, 3):
        expect_state(page, number, "writing")
    page.get_by_role("button", name="Stop branch 2").click()
    expect_state(page, 2, "stopped")
    expect_state(page, 1, "writing")
    page.get_by_role("button", name="Stop all").click()
    for number, text in enumerate(["one", "two", "three"], start=1):
        expect_state(page, number, "stopped")
        expect(answer(page, number)).to_have_text(text)
    assert scripted.cancellations == ["request-1/1", "request-1"]
    expect(page.get_by_role("button", name="Stop all")).to_be_disabled()


def test_edit_rerun_and_remove(page: Page, scripted: FakeServer) -> None:
    fill(opened(page, scripted.url), "main", "one", "two")
    run_all(page)
    expect_state(page, 2, "done")
    page.get_by_label("Prompt of branch 2").fill("other")
    expect_state(page, 2, "prompt changed")
    page.get_by_role("button", name="Run branch 2").click()
    expect(answer(page, 2)).to_have_text("answer to other")
    expect(answer(page, 1)).to_have_text("answer to one")
    assert scripted.bodies[1]["branches"] == [{"prompt": "other", "branch_id": 2}]
    page.get_by_role("button", name="Remove branch 1").click()
    expect(page.get_by_label("Prompt of branch 1")).to_have_value("other")
    expect(page.get_by_label("Prompt of branch 1")).to_be_focused()
    expect(page.get_by_role("article")).to_have_count(1)


def test_settings_presets_and_those_of_one_branch(page: Page, scripted: FakeServer) -> None:
    fill(opened(page, scripted.url), "main", "one", "two")
    expect(page.locator("#preset option")).to_have_count(6)
    page.get_by_label("Preset").select_option("code")
    page.locator("#settings summary").click()
    settings = page.locator("#settings-form")
    expect(settings.get_by_label("Temperature")).to_have_value("0.15")
    settings.get_by_label("Max tokens").fill("20")
    settings.get_by_label("Seed").fill("5")
    settings.get_by_label("Stop texts").fill("END\n\n")
    settings.get_by_label("Presence penalty").fill("0.5")
    settings.get_by_label("Frequency penalty").fill("-1")
    settings.get_by_label("Stop token ids").fill("7, 8")
    settings.get_by_label("Logit bias").fill("50: -100\n51: 1.5\n")
    settings.get_by_label("Visibility").select_option("columnar")
    settings.get_by_label("Adapter").select_option("legal")
    page.get_by_role("button", name="Settings of branch 2").click()
    own = branch(page, 2)
    expect(own.get_by_label("Temperature")).to_have_attribute("placeholder", "0.15")
    expect(own.get_by_label("Min p")).to_have_attribute("placeholder", "0")
    own.get_by_label("Temperature").fill("1.5")
    own.get_by_label("Adapter").select_option("none: the base model")
    run_all(page)
    expect_state(page, 2, "done")
    assert scripted.bodies == [
        {
            "main": "main",
            "branches": [
                {"prompt": "one", "branch_id": 1},
                {"prompt": "two", "branch_id": 2, "temperature": 1.5, "adapter": ""},
            ],
            "seed": 5,
            "temperature": 0.15,
            "top_p": 0.8,
            "top_k": 30,
            "repetition_penalty": 1.1,
            "presence_penalty": 0.5,
            "frequency_penalty": -1,
            "max_tokens": 20,
            "stop": ["END"],
            "stop_token_ids": [7, 8],
            "logit_bias": {"50": -100, "51": 1.5},
            "visibility": "columnar",
            "adapter": "legal",
            "stream": True,
        }
    ]
    settings.get_by_label("Temperature").fill("0.3")
    expect(page.get_by_label("Preset")).to_have_value("")
    settings.get_by_label("Top p").fill("7")
    run_all(page)
    expect(settings.get_by_label("Top p")).to_be_focused()
    assert len(scripted.bodies) == 1


def test_a_model_with_a_chat_template_is_asked_in_its_form(page: Page, scripted: FakeServer) -> None:
    scripted.info["chat_template"] = True
    fill(opened(page, scripted.url), "be brief", "one")
    expect(page.locator("#model")).to_have_text("scripted")
    run_all(page)
    expect_state(page, 1, "done")
    page.locator("#settings summary").click()
    page.locator("#settings-form").get_by_role("combobox", name="Prompt").select_option("text")
    run_all(page)
    expect(answer(page, 1)).to_have_text("answer to one")
    first, second = scripted.bodies
    assert first["messages"] == [{"role": "system", "content": "be brief"}]
    assert "main" not in first
    assert second["main"] == "be brief"


def test_a_link_holds_texts_and_settings_and_runs_nothing(page: Page, scripted: FakeServer) -> None:
    fill(opened(page, scripted.url), "Grüße 你好\nمرحبا", "one\ntwo", "👩‍👩‍👧?")
    page.get_by_label("Preset").select_option("creative")
    page.get_by_role("button", name="Settings of branch 2").click()
    branch(page, 2).get_by_label("Max tokens").fill("9")
    branch(page, 2).get_by_label("Adapter").select_option("medical")
    link = share_link(page)
    assert link.startswith(scripted.url + "#s=")
    assert re.fullmatch(r"[\w-]+", link.partition("#s=")[2])
    page.get_by_role("button", name="Copy", exact=True).last.click()
    expect(page.locator("#share-note")).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == link
    page.get_by_role("button", name="Close").last.click()
    wait_until(page, "localStorage.getItem('parallelmind.draft')?.includes('medical')")
    shared = stored(page)

    page.get_by_label("Shared text", exact=True).fill("my own")
    wait_until(page, "localStorage.getItem('parallelmind.draft').includes('my own')")
    page.goto("about:blank")
    opened(page, link)
    expect(page.get_by_label("Shared text", exact=True)).to_have_value("Grüße 你好\nمرحبا")
    expect(page.get_by_label("Prompt of branch 2")).to_have_value("👩‍👩‍👧?")
    expect(page.get_by_label("Preset")).to_have_value("creative")
    wait_until(page, "localStorage.getItem('parallelmind.draft').includes('Grüße')")
    assert stored(page) == shared
    assert page.url == scripted.url
    assert scripted.bodies == []
    page.get_by_role("button", name="Back to my own texts").click()
    expect(page.get_by_label("Shared text", exact=True)).to_have_value("my own")


def test_a_broken_link_is_said_to_be_broken(page: Page, scripted: FakeServer) -> None:
    opened(page, scripted.url + "#s=AAAA")
    for fragment in ("", "%ff", "not/base64!", "q1YqSy0qzszPU7JS", "bomb"):
        expect(page.locator("#notices")).to_contain_text("The link cannot be read")
        expect(page.get_by_role("button", name="Load an example")).to_be_visible()
        page.get_by_role("button", name="Close this message").click()
        if fragment == "bomb":  # 50 MB of spaces in 50 KB
            packed = zlib.compress(b" " * 50_000_000, 9)[2:-4]
            fragment = base64.urlsafe_b64encode(packed).decode().rstrip("=")
        page.evaluate("fragment => { location.hash = fragment; }", f"#s={fragment}")
    expect(page.locator("#notices")).to_contain_text("it holds too much text")
    expect(page.locator("#server")).to_have_text("ready")


def test_a_draft_is_kept_over_a_reload(page: Page, scripted: FakeServer) -> None:
    opened(page, scripted.url)
    page.get_by_role("button", name="Load an example").click()
    page.get_by_label("Prompt of branch 4").fill("mine")
    page.reload()
    expect(page.get_by_label("Prompt of branch 4")).to_have_value("mine")
    expect(page.get_by_label("Prompt of branch 1")).to_have_value("How old is Dan?")
    expect(page.locator("#settings-summary")).to_have_text("temperature 0, max tokens 64")


def test_a_key_is_asked_for_until_it_is_right(page: Page, scripted: FakeServer, complaints: Complaints) -> None:
    complaints.expected.append("status of 401")
    scripted.key = "secret"
    opened(page, scripted.url)
    dialog = page.get_by_role("dialog", name="This server asks for a key")
    dialog.get_by_label("API key").fill("wrong")
    dialog.get_by_role("button", name="Use this key").click()
    expect(dialog).to_contain_text("The key was refused")
    dialog.get_by_label("API key").fill("secret")
    page.keyboard.press("Enter")
    expect(page.locator("#model")).to_have_text("scripted")
    fill(page, "main", "one")
    run_all(page)
    expect(answer(page, 1)).to_have_text("answer to one")
    assert page.evaluate("sessionStorage.getItem('parallelmind.key')") == "secret"
    assert page.evaluate("JSON.stringify(localStorage)").count("secret") == 0


def test_without_a_key_the_page_says_why(page: Page, scripted: FakeServer, complaints: Complaints) -> None:
    complaints.expected.append("status of 401")
    scripted.key = "secret"
    opened(page, scripted.url)
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#notices")).to_contain_text("wrong API key")
    fill(page, "main", "one")
    run_all(page)
    expect(page.get_by_role("dialog", name="This server asks for a key")).to_be_visible()
    page.keyboard.press("Escape")
    expect(branch(page, 1).locator(".problem")).to_have_text("wrong API key")
    assert scripted.bodies == []


def test_a_refusal_is_shown_where_it_happened(page: Page, scripted: FakeServer, complaints: Complaints) -> None:
    complaints.expected.append("status of 429")
    fill(opened(page, scripted.url), "main", "one")
    scripted.refuse = JSONResponse(
        {"error": {"message": "<b>full</b>; try again later"}}, 429, headers={"Retry-After": "3"}
    )
    run_all(page)
    expect(branch(page, 1).locator(".problem")).to_have_text("<b>full</b>; try again later (in 3 s)")
    expect_state(page, 1, "failed")
    scripted.refuse = None
    page.get_by_role("button", name="Run branch 1").click()
    expect(answer(page, 1)).to_have_text("answer to one")
    expect(branch(page, 1).locator(".problem")).to_be_hidden()


def test_the_server_goes_and_comes_back(page: Page, scripted: FakeServer, complaints: Complaints) -> None:
    complaints.expected.append(
        "ERR_CONNECTION_REFUSED|ERR_INCOMPLETE_CHUNKED_ENCODING|ERR_EMPTY_RESPONSE|ERR_CONNECTION"
    )
    scripted.script = lambda prompt: ["half", HOLD, " whole"]
    fill(opened(page, scripted.url), "main", "one", "two")
    run_all(page)
    expect(answer(page, 2)).to_have_text("half")
    scripted.stop()
    try:
        for number in (1, 2):
            expect_state(page, number, "connection lost")
            expect(answer(page, number)).to_have_text("half")
        expect(page.locator("#server")).to_have_text("unreachable, trying again…")
        expect(page.locator("#notices")).to_contain_text("Your texts are kept")
        page.get_by_label("Prompt of branch 1").fill("still here")
        page.get_by_role("button", name="Run branch 1").click()
        expect(branch(page, 1).locator(".problem")).to_contain_text("cannot be reached")
    finally:
        scripted.start()
    expect(page.locator("#server")).to_have_text("ready")
    expect(page.locator("#notices")).to_be_empty()
    scripted.script = lambda prompt: ["back to ", prompt]
    run_all(page)
    expect(answer(page, 1)).to_have_text("back to still here")
    expect(answer(page, 2)).to_have_text("back to two")


def test_a_stream_that_breaks_off_is_not_taken_for_an_answer(
    page: Page, scripted: FakeServer, complaints: Complaints
) -> None:
    complaints.expected.append("ERR_INCOMPLETE_CHUNKED_ENCODING")
    scripted.script = lambda prompt: ["answer to", HOLD]
    scripted.breaks_off = True
    fill(opened(page, scripted.url), "main", "one")
    run_all(page)
    expect(answer(page, 1)).to_have_text("answer to")
    scripted.release()
    expect_state(page, 1, "connection lost")
    expect(answer(page, 1)).to_have_text("answer to")


@pytest.mark.parametrize(("state", "shown"), [("loading", "loading the model…"), ("draining", "shutting down")])
def test_states_of_the_server(page: Page, scripted: FakeServer, complaints: Complaints, state: str, shown: str) -> None:
    complaints.expected.append("status of 503")
    scripted.health = state
    opened(page, scripted.url)
    expect(page.locator("#server")).to_have_text(shown)
    scripted.health = "ready"
    expect(page.locator("#model")).to_have_text("scripted")
    expect(page.locator("#server")).to_have_text("ready")


def test_leaving_the_page_ends_what_runs(page: Page, scripted: FakeServer) -> None:
    scripted.script = lambda prompt: ["half", HOLD]
    fill(opened(page, scripted.url), "main", "one")
    run_all(page)
    expect(answer(page, 1)).to_have_text("half")
    page.goto(scripted.url + "health")
    wait_for(page, lambda: scripted.clients_gone, "the server saw the page go")
    assert scripted.clients_gone == 1
