"""Whether the documents of a checkout are there, can be read, and lead where their links say."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from urllib.parse import unquote

from parallelmind.doctor.check import Check, CheckFailedError, NotApplicableError, Subject

DOCUMENTS = (
    "README.md",
    "README.zh.md",
    "CHANGELOG.md",
    "COMPLETION_SUMMARY.md",
    "docs/README.md",
    "docs/QUICK_START_LORA.md",
    "docs/INFERENCE_GUIDE.md",
    "docs/TRAIN_HF_LORA_USAGE.md",
    "docs/POS2D_IMPLEMENTATION_SUMMARY.md",
    "docs/installation.md",
    "docs/troubleshooting.md",
    "docs/errors.md",
    "docs/api.md",
    "docs/cli.md",
    "docs/compatibility.md",
    "docs/architecture.md",
    "docs/jobs.md",
    "docs/service.md",
    "docs/corpus.md",
    "docs/contexts.md",
)
_CODE = re.compile(r"^ *(```|~~~).*?^ *\1|`[^`\n]*`", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(<?([^)>\s]+)")


def checks(subject: Subject) -> list[Check]:
    root = subject.checkout
    more = [] if root is None else [path.relative_to(root).as_posix() for path in sorted((root / "docs").rglob("*.md"))]
    return [
        Check(name, partial(_document, root, name), f"Restore it from the repository: git checkout -- {name}")
        for name in dict.fromkeys((*DOCUMENTS, *more))
    ]


def _document(root: Path | None, name: str) -> str:
    if root is None:
        raise NotApplicableError("installed as a package: the documents are in the repository")
    path = root / name
    if not path.is_file():
        raise CheckFailedError("it is not there")
    text = path.read_text(encoding="utf-8")
    if not text.strip():
        raise CheckFailedError("it is empty")
    links = [link for link in _LINK.findall(_CODE.sub("", text)) if ":" not in link and not link.startswith("#")]
    if dead := [link for link in links if not (path.parent / unquote(link.partition("#")[0])).exists()]:
        raise CheckFailedError(
            f"{len(dead)} of its links lead nowhere, such as {dead[0]}", "Restore what it links to, or correct the link"
        )
    return f"{len(text.splitlines())} lines, {len(links)} links to files"
