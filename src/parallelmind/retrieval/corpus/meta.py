"""What is known about a built corpus: the JSON file beside it, written last."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parallelmind.errors import DataError
from parallelmind.io.atomic import replacing
from parallelmind.retrieval.corpus_rows import corpus_file

_SHOWN_MODULES = 3
BUILDER_VERSION = 4
"""Goes up when the same archive gives other rows; corpora of an older builder are built again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusMeta:
    """One version of one import name."""

    import_name: str
    version: str
    distribution: str
    import_names: list[str]
    """All of the distribution."""
    wheel: str
    wheel_sha256: str
    rows: dict[str, int]
    """By corpus type."""
    documented: dict[str, int]
    """Objects with a docstring, by the source it was found in: static, add_newdoc, runtime."""
    source_archive: str = ""
    """Where documentation of compiled objects was read that the wheel does not have; "" if it was not needed."""
    notes: int = 0
    """Entries of release notes that speak of its names."""
    notes_archive: str = ""
    """The archive that has them; "" if none has."""
    notes_failure: str = ""
    runtime_requested: str
    """The interpreter that was to inspect the package: "default" is the one of the builder; "" if none."""
    runtime_python: str = ""
    """Version of the interpreter that did."""
    runtime_failure: str = ""
    module_errors: dict[str, str] = field(default_factory=dict)
    """Modules that could not be imported."""
    unread_files: list[str] = field(default_factory=list)
    """Files too deeply nested to be read."""
    compiled_modules: list[str] = field(default_factory=list)
    """Modules of machine code, of which the files give the names and no more."""
    sandbox: str = ""
    """What the inspection ran in: bubblewrap, or namespaces; "" where it ran in none, or did not run."""
    dependencies: dict[str, str] = field(default_factory=dict)
    """Distributions it was inspected with, and their versions."""
    runtime_documented: int | None = None
    """Objects the running package documents; None if it did not run."""
    static_documented: int | None = None
    """Of these, those whose documentation the files have too."""
    texts: int = 0
    """Pages, examples and tests that were read for examples."""
    texts_archive: str = ""
    """The source archive that has them; "" if only the wheel was there."""
    texts_failure: str = ""
    with_examples: int = 0
    """Objects with an example from there, or from other docstrings."""
    with_mentions: int = 0
    """Objects that pages of the documentation mention."""
    builder: int = BUILDER_VERSION

    @property
    def loss(self) -> str:
        """What a description by files alone lacks; "" if the package was inspected."""
        if self.runtime_python and not self.runtime_failure:
            return ""
        count, total = len(self.compiled_modules), max(self.rows.values(), default=0)
        lacking = total - sum(self.documented.values())
        shown = ", ".join(self.compiled_modules[:_SHOWN_MODULES]) + (", …" if count > _SHOWN_MODULES else "")
        compiled = f"what is in {count:,} compiled modules ({shown}), and " if count else ""
        return (
            f"it lacks {compiled}names and texts that are made when it runs;"
            f" {lacking:,} of its {total:,} objects have no documentation"
        )

    def covers(self, corpus_types: list[str], runtime_requested: str) -> bool:
        """Whether a build with these settings would give nothing new; what failed may not fail again."""
        if self.runtime_failure:
            return False
        same = self.builder == BUILDER_VERSION and self.runtime_requested == runtime_requested
        return same and all(name in self.rows for name in corpus_types)


_FIELDS = {item.name for item in dataclasses.fields(CorpusMeta)}


def meta_file(corpus_path: Path, import_name: str, version: str) -> Path:
    """The file with the description of one version."""
    return corpus_path / import_name / f"{version}.meta.json"


def write_meta(corpus_path: Path, meta: CorpusMeta) -> None:
    """Write the description; the corpus is complete with it.

    Raises:
        SettingsError: the file cannot be written.
    """
    with replacing(meta_file(corpus_path, meta.import_name, meta.version)) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(meta), indent=1, ensure_ascii=False) + "\n", "utf-8")


def read_meta(path: Path) -> CorpusMeta:
    """Read a description.

    Raises:
        DataError: it cannot be read, or is not a description.
    """
    try:
        found: Any = json.loads(path.read_text("utf-8"))
        return CorpusMeta(**{name: value for name, value in found.items() if name in _FIELDS})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        words = f"{path} is not the description of a corpus ({error}); delete it, and build the corpus again."
        raise DataError(words) from None


def read_metas(corpus_path: Path) -> list[CorpusMeta]:
    """The descriptions of all complete corpora in a folder; folders without one are still being built."""
    metas = []
    for path in sorted(corpus_path.glob("*/*.meta.json")):
        if path.name.startswith("."):
            continue
        meta = read_meta(path)
        if all(corpus_file(corpus_path, meta.import_name, meta.version, kind).exists() for kind in meta.rows):
            metas.append(meta)
    return metas


def matching_metas(corpus_path: Path, name: str, version: str | None) -> list[CorpusMeta]:
    """Corpora of an import or distribution name, of one version or all."""
    return [
        meta
        for meta in read_metas(corpus_path)
        if name in (meta.import_name, meta.distribution) and version in (None, meta.version)
    ]
