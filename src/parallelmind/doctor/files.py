"""Whether the files that come with ParallelMind are whole, and there is room for what it writes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path

from parallelmind.doctor.check import Check, CheckFailedError, Subject

SCRIPTS = (
    "parallel_generate.py",
    "scripts/convert_sft_to_pretrain.py",
    "scripts/inference_hf_lora.py",
    "scripts/parallel_inference_hf_lora.py",
    "scripts/test_inference.sh",
    "scripts/test_pos2d_handling.py",
    "scripts/validate_inference_setup.py",
    "trainer/train_hf_lora.py",
    "trainer/train_hf_parallel_lora.py",
    "trainer/train_pretrain.py",
    "model/model_lora.py",
    "parallel/columnar.py",
    "utils/RAGutils/queryResultByInfer/batch_context_generator.py",
    "utils/RAGutils/queryResultByInfer/multi_worker_inference.py",
    "utils/RAGutils/queryResultByInfer/run_complete_pipeline.sh",
    "utils/RAGutils/queryResultByInfer/run_multi_worker_inference.sh",
    "utils/RAGutils/queryResultByInfer/test_multi_worker_inference.py",
)
"""The entry scripts that the documents name."""

_MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
_OUTPUT_FOLDER = Path("out")
"""Where commands write unless told otherwise."""
_ROOM = 2**30
"""Bytes that should be free: less holds no adapter of a larger model with its checkpoints."""


def checks(subject: Subject) -> list[Check]:
    assets, page = subject.package / "assets", subject.package / "server" / "static"
    restore = (
        "Restore them from the repository: git checkout -- parallel_generate.py scripts trainer model parallel utils"
    )
    reinstall = "Install ParallelMind again: pip install --force-reinstall --no-deps parallelmind"
    room = "Make room, or work in another folder (--out_dir, --out_path; TMPDIR for temporary files)"
    return [
        Check("entry scripts", partial(_scripts, subject), restore),
        Check("bundled model", partial(_bundled_model, assets / "tiny"), reinstall),
        Check("demo records", partial(_demo_records, assets / "demo_records.jsonl"), reinstall),
        Check("demo corpus", partial(_demo_corpus, assets / "rag"), reinstall),
        Check("web page", partial(_web_page, page), reinstall),
        Check("output folder", partial(_writable, _OUTPUT_FOLDER), room),
        Check("temporary folder", partial(_writable, Path(tempfile.gettempdir())), room),
    ]


def _scripts(subject: Subject) -> str:
    root, bash = subject.checkout_root(), shutil.which("bash")
    for name in SCRIPTS:
        path = root / name
        if not path.is_file():
            raise CheckFailedError(f"{name} is not there")
        if path.suffix == ".py":
            compile(path.read_text(encoding="utf-8"), name, "exec")
        elif bash is not None:
            done = subprocess.run([bash, "-n", str(path)], capture_output=True, text=True, check=False)
            if done.returncode:
                raise CheckFailedError(f"{name}: {done.stderr.strip()}")
    return f"{len(SCRIPTS)} scripts"


def _bundled_model(folder: Path) -> str:
    from safetensors import safe_open
    from tokenizers import Tokenizer

    if missing := [name for name in _MODEL_FILES if not (folder / name).is_file()]:
        raise CheckFailedError(f"{folder} has no {', '.join(missing)}")
    for name in _MODEL_FILES:
        if name.endswith(".json"):
            json.loads((folder / name).read_text(encoding="utf-8"))
    parameters = 0
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  (no mapping)
            tensor = tensors.get_tensor(name)
            if not bool(tensor.isfinite().all()):
                raise CheckFailedError(f"{folder / 'model.safetensors'}: {name} holds values that are not numbers")
            parameters += tensor.numel()
    tokenizer, text = Tokenizer.from_file(str(folder / "tokenizer.json")), "How old is 小明? 🙂"
    if (back := tokenizer.decode(tokenizer.encode(text).ids)) != text:
        raise CheckFailedError(f"{folder / 'tokenizer.json'} turns {text!r} into {back!r}")
    return f"{parameters:,} parameters, a vocabulary of {tokenizer.get_vocab_size():,}"


def _demo_records(path: Path) -> str:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows, start=1):
        if not row["branches"] or len(row["branches"]) != len(row["answers"]):
            raise CheckFailedError(f"{path}, line {number}: not one answer for each branch")
    if not rows:
        raise CheckFailedError(f"{path} is empty")
    return f"{len(rows)} records with {sum(len(row['branches']) for row in rows)} branches"


def _demo_corpus(folder: Path) -> str:
    from parallelmind.retrieval.corpus_rows import corpus_file, corpus_versions, read_corpus
    from parallelmind.retrieval.query_files import read_items

    corpus = folder / "corpus"
    counts = {
        f"{package} {version}": sum(1 for _ in read_corpus(corpus_file(corpus, package, version)))
        for package, versions in corpus_versions(corpus).items()
        for version in versions
    }
    queries = list(read_items(folder / "queries.json"))
    wrong = [item.where for item in queries if item.error is not None]
    if wrong or not queries or not counts or not all(counts.values()):
        raise CheckFailedError(f"{folder}: {counts}, {len(queries)} queries, {len(wrong)} of them wrong")
    return ", ".join(f"{name}: {count} objects" for name, count in counts.items()) + f"; {len(queries)} queries"


def _web_page(folder: Path) -> str:
    page = (folder / "index.html").read_text(encoding="utf-8")
    asked = set(re.findall(r'(?:href|src)="static/([^"]+)"', page))
    for script in folder.glob("*.js"):
        asked |= set(re.findall(r'from "\./([^"]+)"', script.read_text(encoding="utf-8")))
    if missing := sorted(name for name in asked if not (folder / name).is_file()):
        raise CheckFailedError(f"{folder} has no {', '.join(missing)}")
    if not asked:
        raise CheckFailedError(f"{folder / 'index.html'} refers to no file, so it is not the page")
    return f"index.html and the {len(asked)} files it asks for"


def _writable(folder: Path) -> str:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"parallelmind")
            file.flush()
    except OSError as error:
        raise CheckFailedError(f"{existing} cannot be written in ({error.strerror})") from error
    free = shutil.disk_usage(existing).free
    if free < _ROOM:
        raise CheckFailedError(f"{free / 2**20:,.0f} MiB are free in {existing}; {_ROOM / 2**20:,.0f} should be")
    return f"{folder.absolute()}: writable, {free / 2**30:,.1f} GiB free"
