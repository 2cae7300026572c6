"""POST /v1/branches, /generate, and what can be asked about the server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from parallelmind import Branch, Engine, Request, SamplingParams, load_model_with_lora
from parallelmind.columnar import VISIBILITIES, Visibility
from parallelmind.server.info_api import _drawn
from tests.server.serving import ANSWERS, LONG, QUESTIONS, STORY, Running, running, stream, tiny_engine


def test_branches_are_what_the_engine_generates(server: Running, offline: Engine) -> None:
    branches: list[dict[str, Any]] = [
        {"prompt": QUESTIONS[0]},
        {"prompt": QUESTIONS[1], "temperature": 1.5, "seed": 4, "ignore_eos": True, "max_tokens": 7},
        {"prompt": "", "stop": [" "], "top_k": 4, "min_p": 0.01, "repetition_penalty": 1.2},
        {"prompt": "🙂 你好 שלום"},
    ]
    answer = server.post(
        "/v1/branches",
        {"main": STORY, "branches": branches, "temperature": 0.8, "top_p": 0.95, "seed": 40, "max_tokens": 12},
    ).json
    params = [
        SamplingParams(max_new_tokens=12, temperature=0.8, top_p=0.95, seed=40),
        SamplingParams(max_new_tokens=7, temperature=1.5, top_p=0.95, seed=4, ignore_eos=True),
        SamplingParams(
            max_new_tokens=12,
            temperature=0.8,
            top_p=0.95,
            seed=42,
            stop=" ",
            top_k=4,
            min_p=0.01,
            repetition_penalty=1.2,
        ),
        SamplingParams(max_new_tokens=12, temperature=0.8, top_p=0.95, seed=43),
    ]
    request = Request(
        main=STORY, branches=[Branch(prompt=b["prompt"], sampling=p) for b, p in zip(branches, params, strict=True)]
    )
    expected = offline.generate([request])[0].branches
    assert [branch["text"] for branch in answer["branches"]] == [branch.text for branch in expected]
    assert [branch["finish_reason"] for branch in answer["branches"]] == [b.finish_reason for b in expected]
    assert answer["main_tokens"] == expected[0].main_tokens
    assert [branch["usage"] for branch in answer["branches"]] == [
        {"prompt_tokens": b.prompt_tokens, "completion_tokens": len(b.token_ids)} for b in expected
    ]
    again = server.post("/v1/branches", {"main": STORY, "branches": branches[:1]}).json
    assert again["cached_main_tokens"] == again["main_tokens"]


def test_a_branch_that_runs_again_alone_keeps_its_place() -> None:
    settings = {"main": STORY, "temperature": 0, "ignore_eos": True, "max_tokens": 24}
    places = [1, 5, 900]
    branches = [{"prompt": QUESTIONS[0], "branch_id": place} for place in places]
    with running(tiny_engine(patch_rope=True)) as server:
        together = [
            branch["text"] for branch in server.post("/v1/branches", settings | {"branches": branches}).json["branches"]
        ]
        alone = [
            server.post("/v1/branches", settings | {"branches": [branch]}).json["branches"][0]["text"]
            for branch in branches
        ]
    assert alone == together
    assert len(set(together)) == 3, "the place makes no difference"


@pytest.mark.parametrize("visibility", VISIBILITIES)
def test_visibility_is_chosen_by_request(server: Running, offline: Engine, visibility: Visibility) -> None:
    settings: dict[str, Any] = {"temperature": 0, "max_tokens": 10, "ignore_eos": True}
    body = {"main": STORY, "branches": [{"prompt": q} for q in QUESTIONS], "visibility": visibility} | settings
    answer = server.post("/v1/branches", body).json
    params = SamplingParams(max_new_tokens=10, temperature=0, ignore_eos=True)
    request = Request(main=STORY, branches=QUESTIONS, visibility=visibility)
    expected = [branch.text for branch in offline.generate([request], params)[0].branches]
    assert [branch["text"] for branch in answer["branches"]] == expected


def test_a_stream_tells_everything_once(server: Running) -> None:
    body = {"main": STORY, "branches": [{"prompt": q} for q in QUESTIONS], "temperature": 0, "stream": True}
    answer = server.post("/v1/branches", body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    start, *middle, done = answer.events
    assert start["type"] == "start"
    assert [branch["index"] for branch in start["branches"]] == [0, 1, 2]
    texts, ended = ["", "", ""], []
    for event in middle:
        assert event["index"] not in ended, "nothing follows the end of a branch"
        if event["type"] == "token":
            texts[event["index"]] += event["text"]
        else:
            assert (event["type"], event["finish_reason"], event["error"]) == ("finish", "stop", None)
            ended.append(event["index"])
    assert texts == ANSWERS
    assert sorted(ended) == [0, 1, 2]
    assert done["type"] == "done"
    prompt_tokens = start["main_tokens"] + sum(branch["prompt_tokens"] for branch in start["branches"])
    assert done["usage"]["prompt_tokens"] == prompt_tokens
    assert 0 < done["timings"]["time_to_first_token"] < 60
    assert done["timings"]["tokens_per_second"] > 0


def test_a_bad_branch_fails_alone(server: Running) -> None:
    body = {"main": STORY, "branches": [{"prompt": "x" * 9000}, {"prompt": QUESTIONS[0]}], "temperature": 0}
    bad, good = server.post("/v1/branches", body).json["branches"]
    assert bad["finish_reason"] == "error"
    assert "too long for the model" in bad["error"]
    assert good["text"] == ANSWERS[0]
    events = server.post("/v1/branches", body | {"stream": True}).events
    [failed] = [event for event in events if event["type"] == "finish" and event["index"] == 0]
    assert failed["error"] == bad["error"]


def test_one_branch_and_then_all_are_cancelled(server: Running) -> None:
    async def cancel() -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        body = {"main": STORY, "branches": [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}], "stream": True} | LONG
        async with stream(server.port, "/v1/branches", body) as reader:
            async for line in reader:
                if not line.startswith(b"data: {"):
                    if b"[DONE]" in line:
                        break
                    continue
                event = json.loads(line.removeprefix(b"data: "))
                events.append(event)
                if event["type"] == "start":
                    request_id = event["id"]
                if len(events) == 8:
                    answer = await asyncio.to_thread(server.request, "DELETE", f"/v1/branches/{request_id}/1", None)
                    assert answer.json == {"id": request_id, "cancelled": [1]}
                if event["type"] == "finish" and event["index"] == 1:
                    answer = await asyncio.to_thread(server.request, "DELETE", f"/v1/branches/{request_id}", None)
                    assert answer.json == {"id": request_id, "cancelled": [0, 2]}
        return events

    events = asyncio.run(cancel())
    ends = {event["index"]: event["finish_reason"] for event in events if event["type"] == "finish"}
    assert ends == {0: "cancelled", 1: "cancelled", 2: "cancelled"}
    order = [event["index"] for event in events if event["type"] == "finish"]
    assert order[0] == 1
    assert events[-1]["type"] == "done"
    server.wait_until(server.idle, "the request is forgotten")
    gone = server.request("DELETE", "/v1/branches/branches-0", None)
    assert gone.status == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"branches": []}, "branches"),
        ({"main": "x"}, "branches"),
        ({"main": "x", "messages": [{"role": "user", "content": "x"}], "branches": [{}]}, "main"),
        ({"main": "x", "branches": [{"prompt": 5}]}, "branches.0.prompt"),
        ({"main": "x", "branches": [{"prompt": "y", "adapter": "z"}]}, "adapter"),
        ({"main": "x", "branches": [{"prompt": "y", "max_tokens": 5000}]}, "branches.0.max_tokens"),
        ({"main": "x", "branches": [{"prompt": "y"}], "visibility": "all"}, "visibility"),
        ({"main": "x", "branches": [{"prompt": "y"}] * 129}, "branches"),
        ({"main": "x", "branches": [{"prompt": "y", "top_p": 0}]}, "branches.0.top_p"),
        ({"main": "x", "branches": [{"prompt": "y", "branch_id": 0}]}, "branches.0.branch_id"),
        ({"main": "x", "branches": [{"prompt": "y", "branch_id": 2}, {"prompt": "z"}]}, "branches"),
        ({"main": "x", "model": "other", "branches": [{"prompt": "y"}]}, "model"),
        ({"messages": [{"role": "robot", "content": "x"}], "branches": [{}]}, "messages.0.role"),
    ],
    ids=str,
)
def test_wrong_requests_name_the_field(server: Running, body: dict[str, Any], param: str) -> None:
    answer = server.post("/v1/branches", body)
    assert answer.status in (400, 404)
    assert answer.error["param"] == param
    assert answer.error["message"]


def test_generate(server: Running, offline: Engine) -> None:
    prompt = STORY + QUESTIONS[0]
    assert server.post("/generate", {"prompt": prompt, "max_new_tokens": 512, "temperature": 0}).json == {
        "response": prompt + ANSWERS[0]
    }
    drawn = server.post("/generate", {"prompt": STORY, "seed": 9, "max_new_tokens": 20, "temperature": 0.7}).json
    params = SamplingParams(max_new_tokens=20, temperature=0.7, seed=9)
    continuation = offline.generate([Request(main=STORY)], params)[0].branches[0].text
    assert drawn["response"] == STORY + continuation
    alone = {"prompt": STORY, "seed": 9, "max_new_tokens": 20, "temperature": 0.7, "return_full_text": False}
    assert server.post("/generate", alone).json == {"response": continuation}
    refused = server.post("/generate", {"prompt": STORY, "return_full_text": "no"})
    assert (refused.status, refused.error["param"]) == (400, "return_full_text")
    assert server.post("/generate", {"prompt": ""}).status == 400


@pytest.mark.parametrize(
    "prompt", [STORY + QUESTIONS[0], "<|endoftext|>" + STORY + QUESTIONS[0], "你好", " e\u0301 🙂\n"]
)
def test_generate_is_the_decoded_output_of_transformers(server: Running, prompt: str) -> None:
    """What a service of one's own returns that decodes all of `model.generate`'s tokens."""
    model, tokenizer = load_model_with_lora("tiny", device="cpu", dtype="float32")
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0]
    expected = tokenizer.decode(output, skip_special_tokens=True)
    assert server.post("/generate", {"prompt": prompt, "max_new_tokens": 6, "temperature": 0}).json == {
        "response": expected
    }


def test_the_grid_is_the_rows_definition(server: Running) -> None:
    body = {"main": "Dan is", "branches": ["How", {"prompt": "Who is"}], "visibility": "columnar"}
    grid = server.post("/v1/grid", body).json
    assert [(t["text"], t["branch"], t["time"], t["position"]) for t in grid["tokens"]] == [
        ("Dan", 0, 0, [0, 0]),
        ("·is", 0, 1, [0, 1]),
        ("How", 1, 2, [128, 2]),
        ("Who", 2, 2, [256, 2]),
        ("·is", 2, 3, [256, 3]),
    ]
    assert grid["visible"] == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 1, 1, 1],
    ]
    for main in ("word " * 1000, "x" * 100_000):
        too_large = server.post("/v1/grid", {"main": main, "branches": []})
        assert too_large.status == 400
        assert "400 tokens at most" in too_large.error["message"]


def test_the_grid_has_the_positions_of_an_adapter_that_was_trained_on_few(server: Running) -> None:
    drawn = json.loads(_drawn(server.service.served.prompts, "Dan is", ["How"] * 3, "isolated", 128, 2))
    assert [(one["branch"], one["position"][0]) for one in drawn["tokens"][2:]] == [(1, 128), (2, 256), (3, 128)]


def test_what_the_server_says_of_itself(server: Running) -> None:
    info = server.get("/v1/info").json
    assert info["model"] == "tiny"
    assert info["visibilities"] == ["isolated", "columnar", "strict"]
    assert info["max_model_len"] == 2048
    assert (info["sampling"]["max_tokens"], info["sampling"]["temperature"]) == (512, 0.7)
    assert server.get("/v1/presets").json["factual"]["top_k"] == 25
    assert server.get("/health").json == {"status": "ready"}
    documents = server.get("/docs")
    assert b"/v1/branches" in documents.body
    assert b"<script" not in documents.body
    assert b"https://" not in documents.body
    assert "/v1/chat/completions" in server.get("/openapi.json").json["paths"]


def test_metrics_count(server: Running) -> None:
    def value(name: str) -> float:
        lines = server.get("/metrics").body.decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    names = [
        "parallelmind_generated_tokens_total",
        'parallelmind_branches_total{finish_reason="stop"}',
        "parallelmind_time_to_first_token_seconds_count",
        "parallelmind_prefix_cache_hits_total",
        "parallelmind_prefix_cache_tokens_total",
        'parallelmind_branch_errors_total{kind="too_long"}',
        'parallelmind_requests_total{endpoint="/v1/branches",status="200"}',
    ]
    body = {"main": STORY, "branches": [{"prompt": QUESTIONS[0]}], "temperature": 0}
    server.post("/v1/branches", body)
    before = [value(name) for name in names]
    answer = server.post("/v1/branches", body).json
    server.post("/v1/branches", body | {"branches": [{"prompt": "x" * 9000}]})
    tokens, cached = answer["usage"]["completion_tokens"], answer["main_tokens"]
    gained = [value(name) - start for name, start in zip(names, before, strict=True)]
    assert gained == [tokens, 1, 1, 1, cached, 1, 2]
    assert value("parallelmind_branches_running") == 0
    assert value("parallelmind_kv_cache_bytes") > 0
