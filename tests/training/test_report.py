"""The HTML report: self-contained, escaped, true to the run."""

from __future__ import annotations

import base64
import io
import re
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from parallelmind.columnar import VISIBILITIES, pack_row, visible
from parallelmind.errors import SettingsError
from parallelmind.models.sidecar import RopeSettings
from parallelmind.training.evaluation import SampleAnswer
from parallelmind.training.facts import BestStep, RunFacts, branch_facts, read_environment
from parallelmind.training.report import TrainingReport, report_html, write_report
from parallelmind.training.report_charts import Series, _ticks, line_chart, mask_png
from parallelmind.visuals.grid import row_grid

EVIL = "<script>alert('x')</script>\"&"
ROW = pack_row([1, 2], [[3, 4], [5, 6, 7]])


def report(**changes):
    values = {
        "title": "a run",
        "settings": {"base_model": "tiny", "lora_rank": 8, "use_dora": False, "load_lora": None, "hf": {"warmup": 3}},
        "data_counts": {"records": 1234, "supervised_tokens": 5, "notes": ["line 3: cut"]},
        "train_history": [
            {"step": 10, "loss": 2.5, "learning_rate": 1e-3, "tokens_per_second": 900.0},
            {"step": 20, "loss": 1.25, "learning_rate": 5e-4, "tokens_per_second": 1100.0},
        ],
        "eval_history": [{"step": 10, "loss": 2.0, "exact": 0.25}, {"step": 20, "loss": 1.0, "exact": 0.975}],
        "example_row": ROW,
        "example_tokens": ["Anna", " likes", " red", "\n", "红色", "b", "c"],
        "visibility": "columnar",
        "stride": 128,
    }
    return TrainingReport(**(values | changes))


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.words, self.open = [], "", []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "line", "polyline", "circle", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in ("line", "polyline", "circle"):
            return
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def test_everything_is_in_the_page():
    page = Page(report_html(report(example_loss_mask=[False] * 6 + [True])))
    assert page.open == []  # every element is closed
    for text in ("a run", "97.5%", "from 25%", "1.25", "1,234", "line 3: cut", '{"warmup": 3}', "·likes", "⏎", "红色",
                 "position 256", "time 0–1", "columnar"):  # fmt: skip
        assert text in page.words, text
    titles = [tag for tag, _ in page.tags].count("title") - 1
    assert titles == 2 * 5  # a point of every line: two losses, exact, speed, rate
    assert [attrs["class"] for _, attrs in page.tags if attrs.get("class") == "token supervised"] == [
        "token supervised"
    ] * 2


def test_settings_that_are_off_are_named_below_the_table():
    html = report_html(report())
    assert "2 settings off or not given" in html
    assert "<p>use_dora, load_lora</p>" in html
    assert "<th>lora_rank</th><td>8</td>" in html


def test_nothing_comes_from_outside():
    html = report_html(report())
    page = Page(html)
    sources = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href", "data")]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert len(sources) == 1
    assert not re.search(r"https?:|//[a-z]|@import|url\(", html)
    assert "default-src 'none'" in html


def test_all_that_comes_from_users_is_escaped():
    page = Page(
        report_html(
            report(
                title=EVIL,
                settings={EVIL: EVIL, "nested": {EVIL: [EVIL]}},
                data_counts={EVIL: EVIL, "notes": [EVIL]},
                example_tokens=[EVIL] * 7,
            )
        )
    )
    assert page.open == []
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.words.count("<script>alert('x')</script>\"&") >= 12


@pytest.mark.parametrize(
    "changes",
    [
        {"train_history": [], "eval_history": [], "example_row": None, "example_tokens": []},
        {"settings": {}, "data_counts": {}},
        {"train_history": [{"step": 1, "loss": float("nan"), "learning_rate": float("inf")}]},
        {"train_history": [{"step": 7, "loss": 3.0}], "eval_history": [{"step": 7, "loss": 2.0, "exact": None}]},
        {"train_history": [{"step": 1, "loss": 0.0}, {"step": 2, "loss": 0.0}], "eval_history": []},
    ],
)
def test_runs_that_have_little_to_show(changes):
    page = Page(report_html(report(**changes)))
    assert page.open == []
    assert "nan" not in " ".join(str(attrs) for tag, attrs in page.tags if tag in ("polyline", "circle", "line"))


def test_a_loss_that_is_no_number_is_said():
    history = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": float("nan")}]
    assert "1 entries have a loss that is not a number" in Page(report_html(report(train_history=history))).words


@pytest.mark.parametrize("visibility", VISIBILITIES)
def test_the_mask_picture_is_the_mask_of_the_model(visibility):
    grid = row_grid(ROW, ["t"] * 7, stride=1, visibility=visibility)
    png = base64.b64decode(mask_png(grid).partition(",")[2])
    data = png[png.index(b"IDAT") + 4 : png.index(b"IEND") - 8]
    lines = zlib.decompress(data)
    shown = [[bool(pixel) for pixel in lines[8 * line + 1 : 8 * line + 8]] for line in range(7)]
    expected = visible(ROW.branch_ids, ROW.time_ids, ROW.branch_ids, ROW.time_ids, visibility)
    assert shown == expected.tolist()

    from PIL import ImageFile  # noqa: F401 - a decoder that is not ours

    with Image.open(io.BytesIO(png)) as image:
        assert image.size == (7, 7)
        assert image.convert("RGBA").getpixel((6, 0))[3] == 0  # unseen: transparent


def test_the_mask_of_a_long_row_is_a_picture_of_every_nth_token():
    row = pack_row(range(2000), [range(500)] * 2)  # 3000 tokens: every third
    grid = row_grid(row, ["t"] * 3000, stride=1, visibility="isolated")
    png = base64.b64decode(mask_png(grid).partition(",")[2])
    with Image.open(io.BytesIO(png)) as image:
        assert image.size == (1000, 1000)
        seen = [[alpha > 0 for alpha in line] for line in np.asarray(image.convert("RGBA"))[::97, :, 3].tolist()]
    assert seen == grid.seen()[::3, ::3][::97].tolist()


def test_a_row_of_any_length_is_drawn_from_some_pairs_of_its_tokens(monkeypatch):
    held = []

    def noting(*arguments, **named):
        held.append(visible(*arguments, **named))
        return held[-1]

    monkeypatch.setattr("parallelmind.visuals.grid.visible", noting)
    row = pack_row(range(20_000), [range(20_000)])
    report_html(report(example_row=row, example_tokens=["t"] * 40_000, example_loss_mask=None))
    assert 0 < sum(seen.numel() for seen in held) < 10**7


def test_points_stand_where_their_values_are():
    svg = line_chart(
        [Series("a", "train", [(0, 0.0), (10, 1.0), (5, float("nan"))])], label="x", show=str, limits=(0.0, 1.0)
    )
    assert 'points="52.0,202.0 466.0,12.0"' in svg
    long = line_chart([Series("a", "train", [(i, 1.0) for i in range(5000)])], label="x", show=str)
    assert long.count("<circle") <= 300


def test_ticks_are_round_and_within():
    assert _ticks(0, 200) == [0, 50, 100, 150, 200]
    assert _ticks(0.13, 0.19) == [0.14, 0.16, 0.18]
    assert _ticks(3, 3) == [3]


def test_large_rows_stay_small(tmp_path):
    row = pack_row(range(900), [range(60)] * 30)
    write_report(report(example_row=row, example_tokens=["token"] * len(row)), tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "660 more tokens" in text
    assert "14 more branches" in text
    assert "20 more times" in text
    assert len(text) < 400_000


def test_the_file_appears_complete_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "logs" / "report.html"
    write_report(report(), path)
    former = path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="as many texts"):
        write_report(report(example_tokens=["one"]), path)
    assert path.read_text(encoding="utf-8") == former
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    with pytest.raises(SettingsError, match="cannot be written"):
        write_report(report(), path / "below a file.html")


def test_supervised_tokens_may_be_a_tensor():
    page = Page(report_html(report(example_loss_mask=torch.tensor([0, 0, 0, 1, 0, 0, 1]).bool())))
    assert "tokens are supervised" in page.words


def facts(**changes):
    rope = RopeSettings(visibility="columnar", branch_range=64)
    values = {
        "name": "a run",
        "base_model": "Qwen/Qwen2.5-0.5B",
        "base_model_on_hub": True,
        "rope": rope,
        "adapter": {"rank": 16, "alpha": 32, "target modules": "q_proj, v_proj"},
        "branches": branch_facts(rope, rope),
        "run": {"trainable parameters": 1234567, "time": "4 min 10 s", "peak memory": None, "LoRA+ ratio": 16.0},
        "environment": {"python": "3.11", "parallelmind": "9.9"},
        "data": [],
        "counts": {},
        "steps": 20,
        "evaluation": {},
        "best": BestStep(step=10, metric="exact", value=0.975, kept=True),
        "samples": [
            SampleAnswer(main="Tom is 26.", prompt=" How old?", branch=7, expected="26", generated="62", exact=False),
            SampleAnswer(main="Tom is 26.", prompt="Who is 26?", branch=8, expected="Tom", generated="Tom", exact=True),
        ],
    }
    return RunFacts(**(values | changes))


def test_what_the_run_was_is_in_the_page():
    html = report_html(report(facts=facts()))
    page = Page(html)
    assert page.open == []
    for name, value in (
        ("rank", "16"), ("alpha", "32"), ("target modules", "q_proj, v_proj"), ("LoRA+ ratio", "16"),
        ("visibility", "columnar"), ("stride", "128"), ("branch numbers (branch_range)", "64"),
        ("trainable parameters", "1,234,567"), ("time", "4 min 10 s"), ("parallelmind", "9.9"), ("python", "3.11"),
        ("best step", "step 10, exact 0.975; this is written"), ("peak memory", "not recorded"),
    ):  # fmt: skip
        assert f"<th>{name}</th><td>{value}</td>" in html, name
    assert "best step10exact 97.5%" in page.words
    for text in ("Tom is 26.", "How old?", "62 other", "Tom exact"):
        assert text in page.words, text
    assert page.words.count("Tom is 26.") == 1  # once for both questions


def test_what_an_old_run_did_not_record_is_not_made_up(tmp_path):
    html = report_html(report(facts=facts(environment=read_environment(tmp_path / "none.json"), best=None, samples=[])))
    for name in ("python", "parallelmind", "torch", "transformers", "peft", "processor"):
        assert f"<th>{name}</th><td>not recorded</td>" in html
    assert "Sample answers" not in html


def test_long_answers_are_shortened():
    long = SampleAnswer(main="", prompt="p" * 5000, branch=1, expected="e" * 5000, generated="g" * 5000, exact=False)
    html = report_html(report(facts=facts(samples=[long])))
    assert all(letter * 100 in html and letter * 1000 not in html for letter in "peg")


def test_answers_are_escaped():
    evil = SampleAnswer(main=EVIL, prompt=EVIL, branch=1, expected=EVIL, generated=EVIL, exact=False)
    page = Page(report_html(report(facts=facts(samples=[evil], name=EVIL, base_model=EVIL, adapter={EVIL: EVIL}))))
    assert page.open == []
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.words.count("<script>alert('x')</script>") >= 7


def test_the_gradient_norm_is_drawn():
    history = [{"step": 1, "loss": 1.0, "grad_norm": 3.0}, {"step": 2, "loss": 1.0, "grad_norm": 2.0}]
    assert 'aria-label="Gradient norm over steps"' in report_html(report(train_history=history))


def test_more_branches_than_fit_beside_one_another_stand_below():
    row = pack_row([1], [[2]] * 11)
    html = report_html(report(example_row=row, example_tokens=["t"] * 12))
    assert re.findall(r'<table style="--n:(\d+)">', html) == ["8", "3"]
    assert all(f"<b>branch {number}</b>" in html for number in range(1, 12))
