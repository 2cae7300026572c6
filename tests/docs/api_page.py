"""docs/api.md from the signatures and docstrings of what `parallelmind` exports: `python -m tests.docs.api_page`."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import parallelmind
from parallelmind.settings.setting import Settings, described

BAR = "\\|"
PATH = Path(__file__).parents[2] / "docs" / "api.md"


class Group(NamedTuple):
    """Names that are used together, and a program that uses each of them; it runs as a test."""

    title: str
    names: tuple[str, ...]
    example: str
    file: str = ""
    """The name of the program, where it has to be a file since worker processes import it."""


GROUPS = [
    Group(
        "Generate",
        (
            "Engine",
            "Request",
            "Branch",
            "SamplingParams",
            "RequestResult",
            "BranchResult",
            "Event",
            "load_model_with_lora",
            "generate_text",
            "optimize_for_cpu",
        ),
        """
from parallelmind import (
    Branch,
    BranchResult,
    Engine,
    Event,
    Request,
    RequestResult,
    SamplingParams,
    generate_text,
    load_model_with_lora,
    optimize_for_cpu,
)

engine = Engine.from_pretrained("tiny", device="cpu", dtype="float32")

request = Request(
    main="Story: The age of Dan is 26. The hat costs 91 dollars.\\n",
    branches=["How old is Dan?", Branch(prompt="How much does the hat cost?", sampling=SamplingParams(temperature=1))],
)
greedy = SamplingParams(temperature=0, max_new_tokens=16)
result: RequestResult = engine.generate([request], sampling=greedy)[0]
answer: BranchResult = result.branches[0]
print(answer.text, answer.finish_reason)

event: Event
for event in engine.stream([request], sampling=greedy):
    print(event.branch_index, event.text)

model, tokenizer, patch_rope = load_model_with_lora("tiny", device="cpu", dtype="float32")
print(generate_text(model, tokenizer, "Story: Emma likes blue.\\nWhat does Emma like?", temperature=0))
optimize_for_cpu(model)  # for inference alone from here on
shared = Engine(model, tokenizer)
""",
    ),
    Group(
        "Answer a file",
        ("BatchOptions", "run_batch", "AnswerOptions", "run_answer", "QueryBasedInference"),
        """
from pathlib import Path

from parallelmind import AnswerOptions, BatchOptions, QueryBasedInference, run_answer, run_batch


class FirstLine(QueryBasedInference):
    def generate_answer(self, query: str, context: str, retrieval_method: str) -> str:
        return context.splitlines()[0]


if __name__ == "__main__":
    records, out = Path("records.jsonl"), Path("out.jsonl")
    run_batch(BatchOptions(base_model="tiny", data_path=records, out_path=out, max_new_tokens=8, device="cpu"))

    contexts, answers = Path("contexts.jsonl"), Path("answers.jsonl")
    run_answer(AnswerOptions(contexts_file=contexts, output_file=answers, backend="answer_files.py:FirstLine"))
""",
        file="answer_files.py",
    ),
    Group(
        "Run a job of your own",
        ("Task", "RecordResult", "RunOptions", "run_job"),
        """
import json
from pathlib import Path

from parallelmind import RecordResult, RunOptions, Task, run_job


class Words(Task):
    kind = "words"
    input_path, out_path = Path("records.jsonl"), Path("words.jsonl")

    def settings(self):
        return {}

    def start(self, worker, alive):
        return self

    def run(self, lines, write):
        for line in lines:
            write(line, RecordResult.of([{"words": len(json.loads(line.content)["main"].split())}]))

    def close(self):
        pass

    def failure(self, line, reason, error_class):
        return RecordResult.of([{"error": reason}], error_class=error_class)


if __name__ == "__main__":
    run_job(Words(), RunOptions(workers=2))
""",
        file="words.py",
    ),
    Group(
        "Find documentation of exact versions",
        ("RetrieverOptions", "RetrieverSettings", "Query", "ContextOptions", "run_contexts"),
        """
from pathlib import Path

from parallelmind import ContextOptions, Query, RetrieverOptions, RetrieverSettings, run_contexts

settings = RetrieverSettings(max_tokens=500, enable_str_match=True)
options = RetrieverOptions(corpus_path=Path("corpora"), settings=settings)
versions = {"numpy": "1.26.4"}
query = Query(original_item_id="1", query_index=0, query="Sort?", target_api="numpy.sort", dependencies=versions)

if __name__ == "__main__":
    retriever = options.make()
    found = retriever.retrieve(query)
    print(found.method, found.context.text[:80])
    retriever.close()

    queries, contexts = Path("queries.json"), Path("found.jsonl")
    run_contexts(ContextOptions(queries_file=queries, output_file=contexts, retriever=options, max_samples=2))
""",
        file="find_contexts.py",
    ),
    Group(
        "Train",
        ("TrainOptions", "run_training", "ParallelPretrainDataset", "ParallelPretrainCollator"),
        """
from pathlib import Path

from parallelmind import (
    ParallelPretrainCollator,
    ParallelPretrainDataset,
    TrainOptions,
    load_model_with_lora,
    run_training,
)

options = TrainOptions(base_model="tiny", data_path=Path("train.jsonl"), lora_name="mine", max_steps=2, device="cpu")
report = run_training(options)
print(report.written)

# Or the data alone, for a training loop of one's own:
tokenizer = load_model_with_lora("tiny", device="cpu").tokenizer
dataset = ParallelPretrainDataset.from_jsonl("train.jsonl", tokenizer, branches_per_sample=4, batch_size=8)
collator = ParallelPretrainCollator(tokenizer.pad_token_id)
for batch in map(collator, dataset):
    print(batch["input_ids"].shape, batch["position_ids"].shape)
""",
    ),
    Group(
        "Two-dimensional positions and LoRA on any model",
        (
            "auto_pair_indices",
            "patch_model_with_interleaved_2d_rope",
            "set_rope_pos2d",
            "pack_row",
            "build_columnar_causal_mask",
            "apply_lora",
            "save_lora",
            "load_lora",
        ),
        """
from parallelmind import (
    apply_lora,
    auto_pair_indices,
    build_columnar_causal_mask,
    load_lora,
    load_model_with_lora,
    pack_row,
    patch_model_with_interleaved_2d_rope,
    save_lora,
    set_rope_pos2d,
)

model, tokenizer, _ = load_model_with_lora("tiny", device="cpu", dtype="float32")  # or any model of transformers
patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, ratio=0.5))
apply_lora(model, rank=8)
save_lora(model, "untrained.pth")
load_lora(model, "untrained.pth")

texts = ["How old is Dan?", "What does Emma like?"]
main = tokenizer("Dan is 26. Emma likes blue.").input_ids
row = pack_row(main, [tokenizer(text).input_ids for text in texts])
pos2d = row.pos2d(stride=128)[None]  # [1, S, 2]: branch position and time of each token
mask = build_columnar_causal_mask(pos2d, visibility="isolated")
logits = model(row.input_ids[None], position_ids=pos2d, attention_mask=mask).logits

set_rope_pos2d(model, pos2d)  # for code that cannot pass position_ids
set_rope_pos2d(model, None)
""",
    ),
    Group(
        "Errors and version",
        ("ParallelMindError", "__version__"),
        """
from parallelmind import ParallelMindError, SamplingParams, __version__

try:
    SamplingParams(temperature=-1)
except ParallelMindError as error:
    print(__version__, error)
""",
    ),
]

_HEAD = """\
# Python interface

What `parallelmind` exports, and all that its documents and examples import. Other names, in modules below it, may
change with every version. Importing `parallelmind` takes milliseconds; a name brings what it needs, such as torch, when
it is first used.

This page is written from the signatures and docstrings by `python -m tests.docs.api_page`, and its programs run as
tests.
"""


def render() -> str:
    """The page."""
    parts = [_HEAD]
    parts += [f"- [{group.title}](#{_anchor(group.title)}): " + ", ".join(map(_link, group.names)) for group in GROUPS]
    for group in GROUPS:
        named = [f"# {group.file}"] if group.file else []
        parts += ["", f"## {group.title}", "", "```python", *named, group.example.strip(), "```"]
        if group.file:
            parts += ["", "```sh", f"python {group.file}", "```"]
        for name in group.names:
            parts += ["", *_entry(name)]
    return "\n".join(parts) + "\n"


def _entry(name: str) -> Iterator[str]:
    member = getattr(parallelmind, name)
    yield f"### `{name}`"
    yield ""
    if isinstance(member, str):
        yield "The version of the package, as text."
        return
    if not (isinstance(member, type) and issubclass(member, Exception)):
        yield from ("```text", *_signature(name, member), "```", "")
    yield _first_paragraph(inspect.getdoc(member) or "")
    if _is_settings(member):
        yield from _settings(member)
    methods = [
        (method, value)
        for method, value in vars(member).items()
        if isinstance(member, type) and not method.startswith("_") and isinstance(value, (classmethod, *_FUNCTIONS))
    ]
    if methods and not dataclasses.is_dataclass(member):
        yield from ("", "| method | |", "|---|---|")
        for method, value in methods:
            described = _first_paragraph(inspect.getdoc(getattr(member, method)) or "")
            yield f"| `{method}{_parameters(value)}` | {described} |"


_FUNCTIONS = (type(render),)


def _signature(name: str, member: Any) -> Iterator[str]:
    """One line, or a parameter a line; the settings that may be left out are in the table of `_settings`."""
    signature = inspect.signature(member)
    parameters = list(signature.parameters.values())
    if _is_settings(member):
        optional = {one.name for one in described(member) if not one.required}
        hints = get_type_hints(member)
        parameters = [p.replace(annotation=hints[p.name]) for p in parameters if p.name not in optional]
        parameters.append(inspect.Parameter("settings", inspect.Parameter.VAR_KEYWORD))
    shown = [_parameter(parameter) for parameter in parameters]
    keywords = [parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters]
    if any(keywords) and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        shown.insert(keywords.index(True), "*")
    returned = signature.return_annotation
    result = "" if isinstance(member, type) or returned is inspect.Signature.empty else f" -> {_type(returned)}"
    line = f"{name}({', '.join(shown)}){result}"
    if len(line) <= 100:
        yield line
    else:
        yield f"{name}("
        yield from (f"    {parameter}," for parameter in shown)
        yield f"){result}"


def _is_settings(member: Any) -> bool:
    return isinstance(member, type) and issubclass(member, Settings)


def _settings(member: type[Settings]) -> Iterator[str]:
    """The settings of a class, as the help of the command line describes them."""
    hints = get_type_hints(member)
    yield from ("", "| setting | type | default | |", "|---|---|---|---|")
    for one in described(member):
        default = "required" if one.required else one.setting.default or f"`{_default(one.default)}`"
        cells = (f"`{one.name}`", f"`{_type(hints[one.name])}`", default, one.setting.help)
        yield f"| {' | '.join(' '.join(cell.split()).replace('|', BAR) for cell in cells)} |"


def _default(value: Any) -> str:
    return value.as_posix() if isinstance(value, Path) else repr(value)


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    if stars:
        return f"{stars}{parameter.name}"
    shown = parameter.name
    if parameter.annotation is not parameter.empty:
        shown += f": {_type(parameter.annotation)}"
    if parameter.default is not parameter.empty:
        default = repr(parameter.default)
        shown += f" = {default if default == '()' or not re.search(r'[<(]', default) else '…'}"
    return shown


def _parameters(function: Any) -> str:
    function = getattr(function, "__func__", function)
    names = [
        {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        + p.name
        + ("=…" if p.default is not p.empty else "")
        for p in list(inspect.signature(function).parameters.values())[1:]
    ]
    return f"({', '.join(names)})"


def _type(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else str(annotation)
    if isinstance(annotation, type) and not hasattr(annotation, "__args__"):
        text = annotation.__name__
    text = re.sub(r"\b[a-z]\w*\.", "", text)
    return re.sub(r"^Optional\[(.*)\]$", r"\1 | None", text)


def _first_paragraph(docstring: str) -> str:
    """Up to the first empty line or the first heading such as `Args:`."""
    text = re.split(r"\n\s*\n|\n(?:Args|Returns|Raises):", docstring.strip())[0]
    return " ".join(text.split()).replace("|", "\\|")


def _link(name: str) -> str:
    return f"[`{name}`](#{_anchor(name)})"


def _anchor(title: str) -> str:
    """As GitHub makes them."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
